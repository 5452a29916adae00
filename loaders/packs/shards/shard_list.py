"""The list of shards, `shards.jsonl`: the files of each shard with their checksums, in shard order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.manifest import SHARD_LIST_NAME, FileInfo


@dataclass(frozen=True)
class ShardRecord:
    """A line of `shards.jsonl`: a shard's number of images and its files, beginning with the shard itself."""

    num_images: int
    files: tuple[FileInfo, ...]


def read_shard_records(folder: Path) -> list[ShardRecord]:
    """Read `shards.jsonl`.

    Raises:
        UserError: the file is missing or damaged, or names a file outside the folder of shards.
    """
    path = folder / SHARD_LIST_NAME
    try:
        with open(path, encoding="utf-8") as lines:
            return [_parse(parse_json(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or pack again") from None


def _parse(line: dict[str, Any]) -> ShardRecord:
    record = ShardRecord(int(line["num_images"]), tuple(FileInfo(**file) for file in line["files"]))
    if not record.files:
        raise ValueError("a shard without files")
    for file in record.files:
        if not isinstance(file.path, str) or Path(file.path).name != file.path or file.path in ("", ".."):
            raise ValueError(f"file {file.path!r} lies outside the folder of shards")
        if not isinstance(file.size_bytes, int) or file.size_bytes < 0 or not isinstance(file.sha256, str):
            raise ValueError(f"file {file.path!r} has size {file.size_bytes!r}, checksum {file.sha256!r}")
    return record
