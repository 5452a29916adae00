"""User-given names in pictures: a name that no font can draw becomes a number, which the caption explains.

A browser draws the page and has fonts for every script. Matplotlib draws the pictures: it has only its own
font and those of the machine, and can neither join letters nor write from right to left.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError, one_line

_OWN_FAMILY = "DejaVu Sans"  # font that comes with matplotlib
_BOXES = "Last Resort"  # matplotlib's fallback font, which draws a box in place of any letter
_LONGEST = 32  # maximum number of letters of a name in a picture
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_JOINING = ("Mn", "Mc", "Me", "Cf")  # marks and joiners, which change the look of their neighbours


@dataclass(frozen=True)
class DrawnNames:
    """Names in the form that a picture shows.

    Attributes:
        texts: one per name; `$` is escaped, since it would begin a formula.
        families: font families that have all letters of the texts, in the order of preference.
        note: for the caption: the names that numbers stand for; empty if there are none.
    """

    texts: tuple[str, ...]
    families: tuple[str, ...]
    note: str


def drawn_names(names: Sequence[str]) -> DrawnNames:
    """Return names in a form that matplotlib can draw with the fonts of this machine."""
    families = [_OWN_FAMILY]
    texts, numbered = [], []
    for number, name in enumerate(names):
        text = one_line(unicodedata.normalize("NFC", name))
        family = _family_of(frozenset(text)) if _is_simple(text) else None
        if family is None:
            texts.append(f"#{number}")
            numbered.append(f"#{number} {name}")
            continue
        if family not in families:
            families.append(family)
        half = _LONGEST // 2  # names differ at their ends more often than in their middles
        short = text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"
        texts.append(short.replace("$", r"\$"))
    note = f"No font here draws these names: {', '.join(numbered)}." if numbered else ""
    return DrawnNames(tuple(texts), tuple(families), note)


def names_of(places: Sequence[Path]) -> list[str]:
    """Return a name for each path: its last part, or the whole path if several have the same last part."""
    short = [place.name or place.absolute().name for place in places]
    return [name if short.count(name) == 1 else str(p) for name, p in zip(short, places, strict=True)]


def natural(name: str) -> list[str | int]:
    """Return a key that sorts names with numbers in them by these numbers: 10 after 2."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def check_classes(names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse names that no class has.

    Raises:
        UserError: no class has one of the names; the message contains it.
    """
    unknown = [name for name in names if name not in classes]
    if unknown:
        known = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
        raise UserError(f"classes: expected some of {known}, found {unknown[0]!r}; change it")


def _is_simple(text: str) -> bool:
    """Return whether a text is drawn letter by letter from left to right."""
    return not any(
        unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT or unicodedata.category(letter) in _JOINING
        for letter in text
    )


@cache
def _family_of(letters: frozenset[str]) -> str | None:
    """Return a font family that, together with matplotlib's own, has all these letters; None if none has."""
    from matplotlib import font_manager

    missing = frozenset(map(ord, letters)) - _letters_of(font_manager.findfont(_OWN_FAMILY))
    if not missing:
        return _OWN_FAMILY
    upright = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and not font.name.startswith(_BOXES)
    ]
    for font in sorted(upright, key=lambda font: (font.weight != 400, font.name, font.fname)):
        if missing <= _letters_of(font.fname):
            return str(font.name)
    return None


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Return the code points of a font file; none if it cannot be read or is not scalable."""
    from matplotlib.ft2font import FT2Font

    try:
        font: Any = FT2Font(path)
    except (RuntimeError, OSError):  # a format that matplotlib does not read, such as coloured emoji
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
