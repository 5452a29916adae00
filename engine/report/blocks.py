"""Bars, and sheets of a pack's images, for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from engine.report.page import jpeg_uri
from loaders.packs import Pack
from loaders.packs.images.thumbnail import thumbnail

_NAME_CHARACTERS = 24  # characters of a name that fit beside a bar
_BAR_PX = 18


@dataclass(frozen=True)
class Bars:
    """A histogram as horizontal bars.

    Attributes:
        names: names of the bars.
        counts: lengths of the bars.
        caption: text below the bars, and description for those who cannot see them.
    """

    names: Sequence[str]
    counts: Sequence[int]
    caption: str

    def html(self) -> str:
        """Return the block's markup."""
        most = max(self.counts, default=0) or 1
        height = _BAR_PX * len(self.counts)
        bars = ""
        for i, (name, count) in enumerate(zip(self.names, self.counts, strict=True)):
            top, length = _BAR_PX * i, 400 * count // most
            bars += (
                f'<text x="0" y="{top + 13}" fill="currentColor">{escape(_short(name))}'
                f"<title>{escape(name)}</title></text>"
                f'<rect x="190" y="{top + 2}" width="{max(1, length)}" height="{_BAR_PX - 5}" '
                f'fill="var(--accent)"/>'
                f'<text x="{198 + length}" y="{top + 13}" fill="currentColor">{count:,}</text>'
            )
        caption = escape(self.caption)
        return (
            f'<figure><svg viewBox="0 0 700 {height}" width="100%" font-size="12" role="img" '
            f'aria-label="{caption}">{bars}</svg><figcaption>{caption}</figcaption></figure>'
        )


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: some images of one kind; a click enlarges an image.

    Attributes:
        name: the kind, such as a class.
        images: JPEG files.
        keys: keys of the images, shown on hovering.
    """

    name: str
    images: Sequence[bytes]
    keys: Sequence[str]

    def html(self) -> str:
        """Return the block's markup."""
        pictures = "".join(
            f'<img src="{jpeg_uri(image)}" alt="{escape(key)}" title="{escape(key)}" loading="lazy">'
            for image, key in zip(self.images, self.keys, strict=True)
        )
        caption = f"<figcaption>{escape(self.name)}</figcaption>"
        return f'<figure><div class="sheet">{pictures}</div>{caption}</figure>'


def image_sheet(pack: Pack, name: str, rows: Sequence[int], said: Sequence[str]) -> Sheet:
    """Return a sheet of the images in some rows of a pack; `said` has a text to follow the key of each."""
    keys = [f"{pack.key(row)}: {text}" for row, text in zip(rows, said, strict=True)]
    return Sheet(name, [thumbnail(pack, row) for row in rows], keys)
