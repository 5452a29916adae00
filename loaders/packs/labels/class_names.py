"""Class names that were added after packing, in a file beside the label tables.

The manifest does not change, since runs identify a pack by its manifest and must still find it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json
from loaders.packs.manifest import LABELS_FOLDER

CLASS_NAMES_PATH = f"{LABELS_FOLDER}/classes.json"


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the names in the file of class names of the pack in `folder`; () if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / CLASS_NAMES_PATH
    try:
        return parse_class_names(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from None


def parse_class_names(raw: bytes, where: str) -> tuple[str, ...]:
    """Return the class names in the bytes of a file of class names; raise `UserError` if it is damaged."""
    try:
        names = parse_json(raw)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); restore it") from None
    return _checked(tuple(names), where)


def require_classes(pack: object, classes: tuple[str, ...]) -> None:
    """Refuse a pack without class names; `pack` is its place, for the message."""
    if not classes:
        raise UserError(
            f"labels: the pack {pack} was made without labels and names no classes; name them with "
            "tools/labels.py import --classes"
        )


def joined_class_names(folder: Path, packed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes of the pack in `folder`: those from packing, followed by those named later.

    Raises:
        UserError: the file of class names is damaged, or belongs to another pack.
    """
    named = read_class_names(folder)
    longer, shorter = (packed, named) if len(packed) >= len(named) else (named, packed)
    if longer[: len(shorter)] != shorter:
        raise UserError(
            f"{folder / CLASS_NAMES_PATH}: expected the classes of the pack first ({', '.join(packed[:8])}), "
            f"found {', '.join(named[:8])}; restore it"
        )
    return longer


def write_class_names(folder: Path, names: tuple[str, ...]) -> None:
    """Store the names of all classes of the pack in `folder`; its present classes must come first."""
    _checked(names, "classes")
    path = folder / CLASS_NAMES_PATH
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(names, ensure_ascii=False, indent=1).encode() + b"\n")


def class_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return the class names in `given`: two or more names, or the path of a text file with one per line.

    Raises:
        UserError: an unreadable file, fewer than two names, an empty name, or a name that comes twice.
    """
    if len(given) != 1:
        return _checked(tuple(name.strip() for name in given), "classes")
    path = Path(given[0])
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"classes: expected two names or more, or a text file with one per line, found {given[0]!r} "
            f"({error}); give all names"
        ) from None
    return _checked(tuple(line.strip() for line in text.splitlines() if line.strip()), str(path))


def _checked(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if len(names) < 2 or "" in names or twice is not None:
        found = f"{twice!r} twice" if twice else f"{len(names)}" + (", one empty" if "" in names else "")
        raise UserError(f"{where}: expected two or more different class names, found {found}; correct them")
    return names
