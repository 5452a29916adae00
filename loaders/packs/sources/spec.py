"""`--splits name=PATH`: which adapter reads which PATH."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.sources.beton_file import BetonSource
from loaders.packs.sources.folder import FolderSource
from loaders.packs.sources.image_table import ImageTableSource, holds_images
from loaders.packs.sources.item import ImageSource
from loaders.packs.sources.label_file import LabeledSource
from loaders.packs.sources.list_rows import LIST_SUFFIXES
from loaders.packs.sources.other_pack import PACK_PREFIX, PackSource
from loaders.packs.sources.path_list import PathListSource
from loaders.packs.sources.remote_folder import is_remote, open_remote_folder
from loaders.packs.sources.spool import local_copy, local_files, unzipped_copy
from loaders.packs.sources.table_columns import ColumnOptions
from loaders.packs.sources.tar_file import TarSource
from loaders.packs.sources.webdataset import WebDatasetSource
from loaders.packs.sources.zip import ZipSource

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LABELS_MARK = "#labels="
_WEBDATASET_PREFIX = "wds:"
_TABLE_SUFFIXES = (".parquet", ".arrow")
_KINDS = (
    "a folder, .tar, .tar.gz, .zip, .beton, .csv, .tsv, .txt, .jsonl, .parquet, .arrow, or wds: in front of "
    "WebDataset shards"
)


@dataclass(frozen=True)
class SplitSource:
    """A split and where its images come from.

    Attributes:
        split: name of the split.
        source: PATH as it was given, see `open_source`.
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


def identity(source: str) -> str:
    """Return the source with its paths made absolute, so that a command means the same from any folder."""
    text, mark, labels = source.partition(_LABELS_MARK)
    prefix = next((p for p in (_WEBDATASET_PREFIX, PACK_PREFIX) if text.startswith(p)), "")
    return prefix + _absolute(text.removeprefix(prefix)) + mark + (_absolute(labels) if mark else "")


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).resolve())


def open_source(source: str, spool: Path, options: ColumnOptions | None = None) -> ImageSource:
    """Open the adapter for a PATH.

    Args:
        source: a folder, an archive, WebDataset shards (`wds:` in front), betons, a list of paths, a table of
            images, a split of another pack (`pack:FOLDER#split`); several files by `*` or `{000..012}`;
            `#inside` names a folder inside an archive or a split of a list; `#labels=FILE` gives labels to
            the images of a folder or an archive. Paths may be remote (s3://, gs://, https://, hf://).
        spool: folder for copies of what cannot be read in place (remote files, .tar.gz).
        options: which columns of lists and tables to use.

    Raises:
        UserError: nothing there, or a kind of file that no adapter reads.
    """
    text, mark, labels = source.partition(_LABELS_MARK)
    options = options or ColumnOptions()
    opened = _open(text, spool, options)
    return LabeledSource(opened, text, local_copy(labels, spool), options) if mark else opened


def _open(source: str, spool: Path, options: ColumnOptions) -> ImageSource:
    if source.startswith(_WEBDATASET_PREFIX):
        shards = local_files(source.removeprefix(_WEBDATASET_PREFIX), spool, (".tar",))
        return WebDatasetSource(shards, options)
    if source.startswith(PACK_PREFIX):
        return PackSource(source.removeprefix(PACK_PREFIX), options.multi_label)
    # A folder may have "#" in its name; then the whole text is the path.
    if not is_remote(source) and Path(source).is_dir():
        return FolderSource(Path(source))
    path, hash_sign, fragment = source.partition("#")
    inside = fragment if hash_sign else None
    name = path.lower()
    if name.endswith((".tar.gz", ".tgz")):
        return TarSource(unzipped_copy(path, spool), inside, path)
    if name.endswith(".tar"):
        return TarSource(local_copy(path, spool), inside, path)
    if name.endswith(".zip"):
        return ZipSource(local_copy(path, spool), inside, path)
    if name.endswith(".beton"):
        return BetonSource(local_files(path, spool, (".beton",)))
    if name.endswith((*_TABLE_SUFFIXES, *LIST_SUFFIXES)):
        files = local_files(path, spool, (*_TABLE_SUFFIXES, *LIST_SUFFIXES))
        if name.endswith(_TABLE_SUFFIXES) and holds_images(files[0], options):
            return ImageTableSource(files, inside, options)
        return PathListSource(files, path, inside, options)
    if is_remote(path):
        return open_remote_folder(path)
    return _refuse(source, Path(path), fragment)


def _refuse(source: str, path: Path, inside: str) -> ImageSource:
    if not path.exists():
        raise UserError(f"no images at {path}: expected {_KINDS}; check the path")
    if path.is_dir():
        raise UserError(f"{source}: '#' names a folder inside an archive; for a folder give {path / inside}")
    raise UserError(f"{path} is no source of images: expected {_KINDS}; unpack or convert it")
