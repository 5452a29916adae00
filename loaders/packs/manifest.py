"""The manifest: one small JSON file that describes a pack.

Data that grows with the number of images is in other files, so that any local pack opens equally fast. The
manifest lists the checksums of all these files but the shards, whose checksums are in `shards.jsonl`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.files import sha256_of, write_atomic
from loaders.common.json_text import parse_json

FORMAT_VERSION = 2  # 2: the index has the column crc32
MANIFEST_NAME = "manifest.json"
OWN_OPTIONS = "split_options"  # per-split options, by name of the split, that override the pack's
DIVISION = "division"  # how sources were divided among splits: seed, and whether near copies stay together
# The end of a divided source in a manifest, as `SplitSource.text` writes it.
_DIVIDED = re.compile(r":[\d.,e-]+ \(seed (-?\d+)(, near copies together)?\)(?= \+ |$)")
SOURCES_DIGEST = "sources_sha256"  # SHA-256 of split names and sources' absolute paths; no effect on images
_CHECKSUM = "sha256"  # checksum of the manifest's own content
BUILD_FOLDER = ".build"
SHARDS_FOLDER = "shards"
INDEX_FOLDER = "index"
LABELS_FOLDER = "labels"
TRUE_LABELS = "true"  # name of the table of the labels that came with the images
MAX_CYCLE = 2**31 - 1  # largest value of the int32 column `cycle` of label tables
MULTI_LABELS_NAME = f"{LABELS_FOLDER}/multi.parquet"
SHARD_LIST_NAME = "shards.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"
WARNINGS_NAME = "warnings.jsonl"
SHARD_SUFFIX = {"webdataset": ".tar", "ffcv": ".beton"}


@dataclass(frozen=True)
class SplitRange:
    """A run of rows of one split and the shards that hold exactly these rows.

    Shard `first_shard + i` of the pack is the split's file number `first_number + i`. A number is missing if
    all inputs of the planned shard were quarantined.
    """

    first_row: int
    stop_row: int
    first_shard: int
    stop_shard: int
    first_number: int


@dataclass(frozen=True)
class SplitInfo:
    """One split: its name, its ranges (several after an append or a missing shard number) and its source.

    Files of folders and archives whose names show that they are not images, such as notes, are no inputs;
    `num_skipped` counts them.
    """

    name: str
    source: str
    ranges: tuple[SplitRange, ...]
    num_images: int
    num_labeled: int
    num_quarantined: int
    num_skipped: int = 0


@dataclass(frozen=True)
class FileInfo:
    """Path, size and SHA-256 of one file of a pack."""

    path: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: str) -> FileInfo:
        """Return path, size and checksum of a finished file; `path` is relative to `folder`."""
        return cls(path, (folder / path).stat().st_size, sha256_of(folder / path))


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        shard_format: "webdataset" (.tar) or "ffcv" (.beton).
        num_images: number of rows.
        num_inputs: number of inputs of the sources; equals `num_images` + `num_quarantined`.
        num_quarantined: number of inputs in `quarantine.jsonl`.
        actions: number of images per action ("copied", "reencoded", "reencoded+resized", ...).
        classes: class names; a label is an index into them.
        splits: facts of each split, in the order in which the splits were added.
        options: options with which the pack was made, such as image policy and shard size.
        files: the index columns, the tables of packed labels, and the lists, with their checksums.
        notes: what a user should know about sources and labels, one line each.
    """

    format_version: int
    shard_format: str
    num_images: int
    num_shards: int
    num_inputs: int
    num_quarantined: int
    actions: dict[str, int]
    classes: tuple[str, ...]
    splits: tuple[SplitInfo, ...]
    options: dict[str, Any]
    files: tuple[FileInfo, ...]
    notes: tuple[str, ...] = ()

    def next_shard_number(self, split: str) -> int:
        """Return the number of the next shard of `split`; 0 for a new split."""
        stops = [
            rows.first_number + rows.stop_shard - rows.first_shard
            for info in self.splits
            if info.name == split
            for rows in info.ranges
        ]
        return max(stops, default=0)

    def shard_name(self, shard: int) -> str:
        """Return the file name of the pack's shard number `shard`."""
        for split in self.splits:
            for rows in split.ranges:
                if rows.first_shard <= shard < rows.stop_shard:
                    number = rows.first_number + shard - rows.first_shard
                    return shard_file_name(split.name, number, self.shard_format)
        raise IndexError(f"shard {shard} of a pack with {self.num_shards} shards")

    def require_one_label(self, pack: object) -> None:
        """Refuse a pack whose images have several labels; `pack` is its place, for the message."""
        if self.options.get("multi_label"):
            raise UserError(
                f"the pack {pack} has several labels per image ({MULTI_LABELS_NAME}), expected one: "
                "recipes learn one class per image; pack a column with one label per row (--label-column)"
            )

    def require_labels(self, split: str, option: str) -> None:
        """Refuse a split in which no image has a label, given by an option."""
        if not any(info.num_labeled for info in self.splits if info.name == split):
            other = 'give another split, or --test-split "" if the recipe can do without one'
            remedy = other if option == "test_split" else "name a labelled split"
            raise UserError(f"{option}: expected labels in {split!r}, found none; {remedy}")


def divisions_of(manifest: Manifest, split: str) -> list[tuple[int, bool]]:
    """Return how each divided source of a split was divided, in the order of packing.

    Returns:
        For each source, the seed and whether near copies stayed together.
    """
    sources = " + ".join(info.source for info in manifest.splits if info.name == split)
    return [(int(found[1]), bool(found[2])) for found in _DIVIDED.finditer(sources)]


def shard_file_name(split: str, number: int, shard_format: str) -> str:
    """Return the name of a shard, e.g. `train-000012.tar`."""
    return f"{split}-{number:06d}{SHARD_SUFFIX[shard_format]}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, as the last file of a pack: its presence means that the pack is finished."""
    content = asdict(manifest)
    if not manifest.notes:  # so that older readers, which do not know this field, accept the file too
        del content["notes"]
    content[_CHECKSUM] = content_checksum(content)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # A path that is not valid UTF-8 holds lone surrogates; they become JSON escapes such as "\udcff".
    write_atomic(folder / MANIFEST_NAME, text.encode("utf-8", "backslashreplace"))


def content_checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, which does not depend on the layout of the JSON."""
    rest = {name: value for name, value in content.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the pack in `folder`.

    Raises:
        UserError: there is no pack, it is unfinished or of another format version, or its manifest is damaged
            or cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_absence(folder)) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): expected JSON; make it readable"
        ) from None
    return parse_manifest(data, os.fspath(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Check the bytes of a manifest file and return the manifest; `path` is for error messages.

    Raises:
        UserError: another format version, or a damaged manifest.
    """
    try:
        raw = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): expected JSON; restore it or pack again") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("format_version"), int):
        raise UserError(f"{path} is damaged: expected an object with `format_version`; pack again")
    if raw["format_version"] != FORMAT_VERSION:
        remedy = "update Sluice" if raw["format_version"] > FORMAT_VERSION else "pack again"
        raise UserError(
            f"{path} has format version {raw['format_version']}, this Sluice reads {FORMAT_VERSION}: {remedy}"
        )
    # The manifests of older packs have no checksum.
    if _CHECKSUM in raw and raw.pop(_CHECKSUM) != content_checksum(raw):
        raise UserError(
            f"{path} was edited or is damaged: its content differs from its checksum; restore it or pack "
            f"again"
        )
    try:
        manifest = _parse(raw)
        _check(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged ({detail}); restore it or pack again") from None
    return manifest


def _absence(folder: Path) -> str:
    if folder.exists() and not folder.is_dir():
        return (
            f"{folder} is not a pack: expected a folder with {MANIFEST_NAME} in it, found a file; give the "
            "--out of tools/pack_dataset.py, which makes packs of images, tars and betons"
        )
    if not folder.exists():
        beside = (path.parent.name for path in folder.parent.glob(f"*/{MANIFEST_NAME}"))
        near = difflib.get_close_matches(folder.name, [*beside], n=1)
        meant = f" (did you mean {folder.parent / near[0]}?)" if near else ""
        return f"no pack at {folder}{meant}: make one with `python tools/pack_dataset.py --out {folder} ...`"
    if (folder / BUILD_FOLDER).exists():
        return f"the pack {folder} is not finished: start the same command again, it resumes"
    return f"{folder} is not a pack: expected {MANIFEST_NAME} in it; give the --out of tools/pack_dataset.py"


def _parse(raw: dict[str, Any]) -> Manifest:
    splits = tuple(
        SplitInfo(**{**split, "ranges": tuple(SplitRange(**rows) for rows in split["ranges"])})
        for split in raw["splits"]
    )
    files = tuple(FileInfo(**file) for file in raw["files"])
    return Manifest(
        **{
            **raw,
            "splits": splits,
            "files": files,
            "classes": tuple(raw["classes"]),
            "notes": tuple(raw.get("notes", ())),
        }
    )


def _check(manifest: Manifest) -> None:
    """Check what the reading code relies on: a manifest may have been edited by hand."""
    if manifest.shard_format not in SHARD_SUFFIX:
        raise ValueError(f"shard_format {manifest.shard_format!r}, expected one of {sorted(SHARD_SUFFIX)}")
    names = [split.name for split in manifest.splits]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"split names {names} are not distinct")
    for name in names:
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise ValueError(f"split name {name!r}")
    for file in manifest.files:
        parts = Path(file.path).parts
        if Path(file.path).is_absolute() or ".." in parts or not parts or "\0" in file.path:
            raise ValueError(f"file {file.path!r} lies outside the pack")
        if not isinstance(file.size_bytes, int) or file.size_bytes < 0 or not isinstance(file.sha256, str):
            raise ValueError(f"file {file.path!r} has size {file.size_bytes!r}, checksum {file.sha256!r}")
    _check_tiling(manifest)
    if not all(isinstance(text, str) for text in (*manifest.classes, *manifest.notes)):
        raise ValueError("class names and notes must be text")


def _check_tiling(manifest: Manifest) -> None:
    ranges = sorted(
        (rows.first_row, rows.stop_row, rows.first_shard, rows.stop_shard)
        for split in manifest.splits
        for rows in split.ranges
    )
    row = shard = 0
    for first_row, stop_row, first_shard, stop_shard in ranges:
        if first_row != row or first_shard != shard or stop_row <= first_row or stop_shard <= first_shard:
            raise ValueError("the row ranges of the splits do not tile the pack")
        row, shard = stop_row, stop_shard
    if row != manifest.num_images or shard != manifest.num_shards:
        raise ValueError(
            f"the splits hold {row} rows in {shard} shards, the pack claims "
            f"{manifest.num_images} in {manifest.num_shards}"
        )
    for split in manifest.splits:
        if sum(rows.stop_row - rows.first_row for rows in split.ranges) != split.num_images:
            raise ValueError(f"split {split.name!r} claims {split.num_images} images, its ranges differ")
