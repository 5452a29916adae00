"""Part files: each holds the rows and checksums of one shard, and its presence means "finished".

A part is written after its shard has its final name. The folder of parts is thus the journal of a pack: a
resumed run packs the shards whose part or files are missing.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json
from loaders.packs.listing import ShardPlan
from loaders.packs.manifest import FileInfo

_TEXTS = ("info", "rejected", "warned")


@dataclass(frozen=True)
class PartInfo:
    """Summary of one finished shard.

    Attributes:
        files: the shard, then its DALI index if it is a tar; empty if no input could be packed.
        num_images: number of images in the shard.
        num_key_bytes: total bytes of the images' keys.
        num_quarantined: number of inputs that were refused.
        actions: number of images per `Action` value.
        num_warned: number of packed images about which decoders warned.
    """

    files: tuple[FileInfo, ...]
    num_images: int
    num_key_bytes: int
    num_quarantined: int
    actions: dict[str, int]
    num_warned: int = 0


def part_path(build: Path, shard: ShardPlan) -> Path:
    """Return the path of the part of a shard."""
    return build / "parts" / f"{shard.split}-{shard.number:06d}.npz"


def write_part(
    path: Path,
    info: PartInfo,
    rows: dict[str, NDArray[Any]],
    rejected: list[dict[str, Any]],
    warned: list[dict[str, Any]],
) -> None:
    """Write a part atomically; from then on its shard counts as finished."""
    texts = {"info": asdict(info), "rejected": rejected, "warned": warned}
    packed = {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **rows, **packed)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def read_part_info(path: Path) -> PartInfo:
    """Read the summary of a part."""
    with np.load(path, allow_pickle=False) as part:
        raw = parse_json(part["info"].tobytes())
    return PartInfo(**{**raw, "files": tuple(FileInfo(**file) for file in raw["files"])})


def read_part_rows(path: Path) -> dict[str, NDArray[Any]]:
    """Read the rows of a part: the arrays of `ShardRows.arrays`."""
    with np.load(path, allow_pickle=False) as part:
        return {name: part[name] for name in part.files if name not in _TEXTS}


def read_part_entries(path: Path, kind: Literal["rejected", "warned"]) -> list[dict[str, Any]]:
    """Read a part's entries of one kind: refused inputs, or packed images about which decoders warned."""
    with np.load(path, allow_pickle=False) as part:
        entries: list[dict[str, Any]] = parse_json(part[kind].tobytes())
    return entries
