"""Converting a pack to another shard format."""

from __future__ import annotations

from pathlib import Path

from loaders.packs.image import ImagePolicy
from loaders.packs.manifest import Manifest, read_manifest
from loaders.packs.packer import PackOptions, Progress, pack_dataset
from loaders.packs.sources.other_pack import PACK_PREFIX
from loaders.packs.sources.spec import SplitSource
from loaders.packs.sources.table_columns import ColumnOptions


def convert_pack(
    folder: Path,
    out: Path,
    shard_format: str,
    shard_size_mb: float = 64.0,
    workers: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Write a pack of another format with the same images, keys, true labels, actions and quarantine.

    Args:
        folder: the pack to read; an image that differs from its content hash goes to the quarantine.
        out: folder of the new pack, whose rows are ordered by split; an interrupted run resumes.
        shard_format: "webdataset" or "ffcv".
        shard_size_mb: approximate size of a shard in 10^6 bytes.
        workers: number of parallel processes or threads; 0 means one per available core.
        progress: called with (inputs done, total inputs) at the start and after every shard.

    Raises:
        UserError: `folder` holds no readable pack, or `pack_dataset` fails.
    """
    manifest = read_manifest(folder)
    return pack_dataset(
        PackOptions(
            tuple(SplitSource(info.name, f"{PACK_PREFIX}{folder}#{info.name}") for info in manifest.splits),
            out,
            shard_format,
            ImagePolicy(encoding="raw" if manifest.options.get("encoding") == "raw" else "jpeg"),
            shard_size_mb,
            workers,
            columns=ColumnOptions(multi_label=bool(manifest.options.get("multi_label"))),
        ),
        progress,
    )
