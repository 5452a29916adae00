"""The options of packing, which go from the command line to the workers that write shards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loaders.common.cores import available_cores
from loaders.common.errors import MissingBackendError, UserError
from loaders.packs.image import ImagePolicy
from loaders.packs.manifest import BUILD_FOLDER, SHARD_SUFFIX
from loaders.packs.sources.spec import SplitSource
from loaders.packs.sources.table_columns import ColumnOptions


@dataclass(frozen=True)
class PackOptions:
    """What to pack and how; `workers` and `executor` have no effect on the bytes of the pack.

    Attributes:
        out: folder of the pack.
        shard_format: "webdataset" or "ffcv".
        shard_size_mb: approximate size of a shard in 10^6 bytes.
        workers: number of parallel processes or threads; 0 means one per available core.
        executor: "processes" on this machine, or "ray" for a Ray cluster.
        upload: URL to which the pack is uploaded; `out` is then the local folder in which it is prepared.
        columns: columns of lists and tables to use, and whether a label cell holds several labels.
    """

    splits: tuple[SplitSource, ...]
    out: Path
    shard_format: str = "webdataset"
    policy: ImagePolicy = field(default_factory=ImagePolicy)
    shard_size_mb: float = 64.0
    workers: int = 0
    executor: Literal["processes", "ray"] = "processes"
    upload: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)

    def __post_init__(self) -> None:
        """Refuse wrong values, and the executor "ray" if Ray is not installed."""
        if self.shard_format not in SHARD_SUFFIX:
            raise UserError(f"--format {self.shard_format!r}: expected one of {', '.join(SHARD_SUFFIX)}")
        if not 0 < self.shard_size_mb <= 1e6:
            raise UserError(f"--shard-size-mb {self.shard_size_mb}: expected more than 0 and at most 1000000")
        for split in self.splits:
            split.policy(self.policy)  # raises if the split's own options are out of range
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: expected 0 (one per core) or more")
        if self.executor not in ("processes", "ray"):
            raise UserError(f"--executor {self.executor!r}: expected processes or ray")
        if self.executor == "ray":
            try:
                import ray  # noqa: F401
            except ImportError:
                remedy = "pip install '.[ray]', or leave --executor out"
                raise MissingBackendError(f"--executor ray needs Ray: {remedy}") from None

    @property
    def build(self) -> Path:
        """Folder for the working files of an unfinished pack."""
        return self.out / BUILD_FOLDER

    @property
    def num_workers(self) -> int:
        """Number of parallel processes or threads."""
        return self.workers or available_cores()

    @property
    def shard_bytes(self) -> int:
        """Approximate size of a shard in bytes."""
        return int(self.shard_size_mb * 1e6)
