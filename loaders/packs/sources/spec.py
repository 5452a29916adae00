"""`--splits name=PATH`: which adapter reads which PATH."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.image import ImagePolicy
from loaders.packs.labels.division import SplitDivision, parse_shares
from loaders.packs.sources.beton_file import BetonSource
from loaders.packs.sources.folder import FolderSource
from loaders.packs.sources.image_table import TABLE_SUFFIXES, ImageTableSource, holds_images
from loaders.packs.sources.item import Source
from loaders.packs.sources.label_file import LabeledSource
from loaders.packs.sources.list_rows import LIST_SUFFIXES
from loaders.packs.sources.naming import not_a_source
from loaders.packs.sources.other_pack import PACK_PREFIX, PackSource
from loaders.packs.sources.path_list import PathListSource
from loaders.packs.sources.remote_folder import RemoteFolderSource
from loaders.packs.sources.spool import local_copy, local_files, unzipped_copy
from loaders.packs.sources.table_columns import ColumnOptions
from loaders.packs.sources.tar_file import TarSource
from loaders.packs.sources.webdataset import WebDatasetSource
from loaders.packs.sources.zip import ZipSource
from loaders.packs.stores.connect import is_remote

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LABELS_MARK = "#labels="
_WEBDATASET_PREFIX = "wds:"


@dataclass(frozen=True)
class SplitSource:
    """A split, the source of its images, and its own options.

    Attributes:
        source: PATH, see `open_source`; as the user gave it, or as `resolve_layout` returns it.
        division: division of the images of the source among several splits; None if this split has all of
            them.
        quality: JPEG quality of this split; None takes that of the pack's policy.
        short_side: limit of the shorter side in pixels; None takes that of the pack's policy.
    """

    split: str
    source: str
    division: SplitDivision | None = None
    quality: int | None = None
    short_side: int | None = None

    @property
    def text(self) -> str:
        """The source and its division, as the manifest records them."""
        return self.source if self.division is None else f"{self.source}:{self.division}"

    @property
    def own_options(self) -> dict[str, int]:
        """The options that were given for this split alone."""
        own = {"quality": self.quality, "short_side": self.short_side}
        return {name: value for name, value in own.items() if value is not None}

    def policy(self, policy: ImagePolicy) -> ImagePolicy:
        """Return the image policy of this split."""
        return replace(policy, **self.own_options) if self.own_options else policy  # type: ignore[arg-type]

    def group(self) -> tuple[SplitSource, ...]:
        """Return all splits among which the source is divided, including this one."""
        names = (self.split,) if self.division is None else self.division.names
        return tuple(replace(self, split=name) for name in names)


def parse_splits(
    texts: Sequence[str], seed: int = 0, near: bool = False, several: bool = False
) -> tuple[SplitSource, ...]:
    """Parse texts such as `name=PATH`, or `name,name=PATH:0.8,0.2`, which divides the images of a PATH.

    Args:
        near: for a divided PATH, whether images that look the same must go to the same split.
        several: whether a name may be repeated, for a split that has several sources after an append.

    Raises:
        UserError: no split, a text other than NAME=PATH, a wrong or repeated name, or no or wrong shares.
    """
    if not texts:
        raise UserError("no split given: expected --splits NAME=PATH ..., e.g. train=images/train")
    splits: list[SplitSource] = []
    for text in texts:
        given, equals, source = text.partition("=")
        if not equals or not source:
            raise UserError(f"split {text!r}: expected NAME=PATH, e.g. train=images/train")
        names, division = tuple(given.split(",")), None
        for name in names:
            if not _SPLIT_NAME.fullmatch(name):
                raise UserError(f"split name {name!r}: expected letters, digits, '-' and '_', e.g. train")
            again = not several and name in [split.split for split in splits]
            if again or names.count(name) > 1:
                raise UserError(
                    f"split {name!r} is given twice: give every split once, and add further sources to it by "
                    "--append when it is packed"
                )
        if len(names) > 1:
            source, colon, shares = source.rpartition(":")
            if not colon or "/" in shares:
                raise UserError(
                    f"split {text!r}: expected shares behind the path of several splits, found none; write "
                    f"{given}=PATH:{','.join(['0.8', *['0.1'] * (len(names) - 1)][: max(1, len(names) - 1)])}"
                )
            parsed = parse_shares(shares, len(names), f"split {text!r}")
            division = SplitDivision(names, parsed, seed, near)
        splits += [SplitSource(name, source, division) for name in names]
    return tuple(splits)


def with_own_options(
    splits: Sequence[SplitSource], quality: Sequence[str], short_side: Sequence[str]
) -> tuple[tuple[SplitSource, ...], int | None, int | None]:
    """Read `--quality` and `--short-side`: a number for all splits, or NAME=NUMBER for one.

    Returns:
        The splits with their own values; quality and short side of all other splits, None if not given.

    Raises:
        UserError: no number, a split that is not packed, or two values for one split or for all others.
    """
    own = {split.split: split for split in splits}
    common: list[int | None] = []
    for option, field, texts in (
        ("--quality", "quality", quality),
        ("--short-side", "short_side", short_side),
    ):
        values: dict[str, int] = {}
        for text in texts:
            name, _, number = text.rpartition("=")
            try:
                value = int(number)
            except ValueError:
                raise UserError(
                    f"{option} {text!r}: expected a number, or NAME=NUMBER for one split, e.g. train=90"
                ) from None
            if name and name not in own:
                raise UserError(f"{option} {text!r}: expected one of the splits {', '.join(own)}")
            if name in values:
                raise UserError(
                    f"{option}: expected one value for {name or 'all splits'}, found two; leave one out"
                )
            values[name] = value
        common.append(values.pop("", None))
        own |= {name: replace(own[name], **{field: number}) for name, number in values.items()}  # type: ignore[arg-type]
    return tuple(own.values()), common[0], common[1]


def identity(source: str) -> str:
    """Return the source with absolute paths, to compare commands that were started in different folders."""
    text, mark, labels = source.partition(LABELS_MARK)
    prefix = next((p for p in (_WEBDATASET_PREFIX, PACK_PREFIX) if text.startswith(p)), "")
    return prefix + _absolute(text.removeprefix(prefix)) + mark + (_absolute(labels) if mark else "")


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).resolve())


def open_source(source: str, spool: Path, options: ColumnOptions | None = None) -> Source:
    """Open the adapter for a PATH.

    Args:
        source: a folder, an archive, a split of another pack (`pack:FOLDER#split`); or WebDataset shards
            (`wds:` in front), betons, lists of paths or tables of images, several by `*` or `{000..012}`.
            `#inside` names a folder in an archive or a split of lists or tables; `#labels=FILE` gives labels
            to the images of a folder or an archive. All but packs may be remote (s3://, https://, hf://).
        spool: folder for copies of files that cannot be read in place (remote files, .tar.gz).

    Raises:
        UserError: nothing is there, or no adapter can read what is there.
    """
    text, mark, labels = source.partition(LABELS_MARK)
    options = options or ColumnOptions()
    opened = _open(text, spool, options)
    return LabeledSource(opened, text, local_copy(labels, spool), options) if mark else opened


def _open(source: str, spool: Path, options: ColumnOptions) -> Source:
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
    if name.endswith((*TABLE_SUFFIXES, *LIST_SUFFIXES)):
        files = local_files(path, spool, (*TABLE_SUFFIXES, *LIST_SUFFIXES))
        if name.endswith(TABLE_SUFFIXES) and holds_images(files[0], options):
            return ImageTableSource(files, inside, options)
        return PathListSource(files, path, inside, options)
    if is_remote(path):
        return RemoteFolderSource(path)
    return _refuse(source, Path(path), fragment)


def _refuse(source: str, path: Path, inside: str) -> Source:
    if path.is_dir():
        raise UserError(f"{source}: '#' names a folder inside an archive; for a folder give {path / inside}")
    raise not_a_source(path)
