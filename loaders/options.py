"""The options of a loader: one value that is passed whole from a command line to the backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

import tyro

from loaders.common.checks import check_flag, check_one_of, check_seconds, check_whole
from loaders.common.errors import MissingBackendError, UserError
from loaders.packs.stores.store import StoreOptions

BackendName = Literal["auto", "cpu", "stream", "dali", "ffcv", "resident", "hybrid"]
DTypeName = Literal["float32", "float16", "bfloat16", "uint8"]
BadImages = Literal["replace", "raise"]
Mode = Literal["train", "eval"]

PACKAGES = {
    "dali": (
        "nvidia.dali",
        "'pip install nvidia-dali-cuda130' (or nvidia-dali-cuda120), or use backend='cpu'",
    ),
    "ffcv": ("ffcv", "'make ffcv', or use backend='cpu', which reads the same packs"),
}
"""Per backend, the package of another project that it needs, and how to install it or do without."""
MAX_SEED = 2**63 - 1

_Decided: TypeAlias = tyro.conf.Suppress[tyro.conf.Fixed[int]]
_DecidedText: TypeAlias = tyro.conf.Suppress[tyro.conf.Fixed[str]]
_DecidedFlag: TypeAlias = tyro.conf.Suppress[tyro.conf.Fixed[bool]]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a loader works, apart from its images, views and batch size.

    A recipe's command line offers what a user may choose; the run itself sets seed, device, ranks, dtype and
    layout.

    Raises:
        UserError: a value that no loader can work with.
    """

    backend: BackendName = "auto"
    """What renders the views; see docs/backends.md. auto: stream for packs in a store, else cpu."""
    num_threads: int | None = None
    """Worker threads of each rank. By default, one per core that the process may use, divided among the
    ranks of the machine. Commands use 2 where the network runs on the CPU too."""
    bad_images: BadImages = "replace"
    """What to do with a damaged image. replace: count it, and use the next readable row; raise: stop."""
    verify: bool = False
    """Compare the CRC-32 of an image with the index whenever the image is read; an image that differs counts
    as damaged. Without this option, a flipped bit that still decodes may go unnoticed (but backend dali
    always compares a row at its first reading). Backend resident reads, and so compares, each image once."""
    prefetch: int = 2
    """Batches that are prepared ahead of the one in use."""
    timeout_s: float = 120.0
    """Time limit for a batch, in seconds; beyond it, the loader stops with an error."""
    window: int = 16
    """Backend stream: shards shuffled together; more shards mix better and need a larger cache."""
    store: StoreOptions = field(default_factory=StoreOptions)
    """How packs in a store are read."""
    seed: _Decided = 0
    """Seed of order and views, in [0, 2^63)."""
    device: _DecidedText = "cpu"
    """Where batches are delivered, such as "cpu" or "cuda:0"; a `torch.device` is turned into its name."""
    rank: _Decided = 0
    """Rank of this process, in [0, num_ranks). A loader divides its batches among the ranks itself, so never
    give it to accelerate."""
    num_ranks: _Decided = 1
    """Number of processes."""
    dtype: tyro.conf.Suppress[tyro.conf.Fixed[DTypeName]] = "float32"
    """Dtype of the views: float32, float16 or bfloat16, normalised as the policy says, or uint8."""
    channels_last: _DecidedFlag = False
    """Deliver views in `torch.channels_last`."""

    def __post_init__(self) -> None:
        """Refuse values that no loader can work with."""
        object.__setattr__(self, "device", str(self.device))
        check_one_of("backend", self.backend, get_args(BackendName))
        if self.num_threads is not None:
            check_whole("num_threads", self.num_threads, 1, remedy="leave it out to use every core")
        check_one_of("bad_images", self.bad_images, get_args(BadImages))
        check_flag("verify", self.verify)
        check_whole("prefetch", self.prefetch, 0)
        check_seconds("timeout_s", self.timeout_s)
        check_whole("window", self.window, 1, remedy="give the number of shards to shuffle together")
        check_whole("seed", self.seed, 0, MAX_SEED)
        check_whole("num_ranks", self.num_ranks, 1, remedy="pass the number of processes")
        check_whole("rank", self.rank, 0, self.num_ranks - 1, "pass the process's own rank")
        check_one_of("dtype", self.dtype, get_args(DTypeName))
        check_flag("channels_last", self.channels_last)


def missing_backend(package: str, reason: object) -> MissingBackendError:
    """Return the error for a package of `PACKAGES` that cannot be imported."""
    name, (_, remedy) = next(one for one in PACKAGES.items() if one[1][0] == package)
    return MissingBackendError(
        f"backend {name}: {package} cannot be imported ({reason}); install it with {remedy}"
    )


def check_backend(name: str, shard_format: str | None) -> None:
    """Refuse a backend whose package is missing or that cannot read a pack's format, before any loading.

    Args:
        shard_format: format of the pack's shards; None where it is not known yet.

    Raises:
        UserError: the package is not installed, or the pack has a format that the backend cannot read.
    """
    package, _ = PACKAGES.get(name, ("", ""))
    try:
        if package and find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}")
    except ModuleNotFoundError as error:  # `find_spec` raises it where a parent package is missing
        raise missing_backend(package, error) from None
    if name == "ffcv" and shard_format not in ("ffcv", None):
        raise UserError(
            f"backend ffcv: expected a pack of format ffcv, found {shard_format}; pack with --format ffcv, "
            "or use backend='cpu'"
        )


def usual_backend(url: str | None) -> tuple[BackendName, str]:
    """Return the backend that "auto" takes, and why.

    Args:
        url: URL of a pack in a store; None for a pack on this machine.
    """
    if url is not None:
        return "stream", f"{url} is in a store"
    return "cpu", "the fused kernels read every pack and every policy, and are the fastest"
