"""`--splits name=PATH`: which adapter reads which PATH."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loaders.errors import UserError
from loaders.packs.sources.folder import FolderSource
from loaders.packs.sources.item import ImageSource
from loaders.packs.sources.tar import TarSource

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class SplitSource:
    """A split and where its images come from.

    Attributes:
        split: name of the split.
        source: PATH as it was given: a folder, a .tar, or `x.tar#folder/inside`.
    """

    split: str
    source: str


def parse_splits(texts: Sequence[str]) -> tuple[SplitSource, ...]:
    """Parse `name=PATH` texts.

    Raises:
        UserError: no split, a text without "=", a name that cannot be part of a file name, a name twice.
    """
    if not texts:
        raise UserError("no split given: expected --splits NAME=PATH ..., e.g. train=images/train")
    splits: list[SplitSource] = []
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise UserError(f"split {text!r}: expected NAME=PATH, e.g. train=images/train")
        if not _SPLIT_NAME.fullmatch(name):
            raise UserError(f"split name {name!r}: expected letters, digits, '-' and '_', e.g. train")
        if any(name == split.split for split in splits):
            raise UserError(f"split {name!r} is given twice: give every split once, under a name of its own")
        splits.append(SplitSource(name, source))
    return tuple(splits)


def open_source(source: str) -> ImageSource:
    """Open the adapter for a PATH.

    Raises:
        UserError: nothing there, or a kind of file that no adapter reads.
    """
    path_text, hash_sign, inside = source.partition("#")
    # A folder may have "#" in its name; then the whole text is the path.
    if Path(source).is_dir():
        return FolderSource(Path(source))
    path = Path(path_text)
    if path.is_file() and path.suffix == ".tar":
        return TarSource(path, inside if hash_sign else None)
    if not path.exists():
        raise UserError(f"no images at {path}: expected a folder or a .tar file; check the path")
    if path.is_dir():
        raise UserError(f"{source}: '#' names a folder inside a .tar; for a folder give {path / inside}")
    raise UserError(f"{path} is neither a folder nor a .tar file; unpack it or make it a .tar")
