"""What the builders of loaders are told, checked here alone, whichever backend is to serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from loaders.checks import check_flag, check_one_of, check_seconds, check_whole
from loaders.cpu import DTypeName
from loaders.errors import UserError
from loaders.packs import Split
from loaders.views.policy import ViewPolicy

Mode = Literal["train", "eval"]
BadImages = Literal["replace", "raise"]

MAX_VIEWS = 256  # view numbers of one stream in the random numbers
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class LoaderOptions:
    """What both kinds of loader are told alike; see `build_loader`.

    Raises:
        UserError: a value that no loader can work with.
    """

    seed: int
    device: torch.device
    num_threads: int | None
    rank: int
    num_ranks: int
    dtype: DTypeName
    channels_last: bool
    bad_images: BadImages
    verify: bool
    prefetch: int
    timeout_s: float
    window: int

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, MAX_SEED)
        _check_reachable(self.device)
        if self.num_threads is not None:
            check_whole("num_threads", self.num_threads, 1, remedy="leave it out to use every core")
        check_whole("num_ranks", self.num_ranks, 1, remedy="pass the number of processes")
        check_whole("rank", self.rank, 0, self.num_ranks - 1, "pass the process's own rank")
        check_one_of("dtype", self.dtype, get_args(DTypeName))
        check_flag("channels_last", self.channels_last)
        check_one_of("bad_images", self.bad_images, get_args(BadImages))
        check_flag("verify", self.verify)
        check_whole("prefetch", self.prefetch, 0)
        check_seconds("timeout_s", self.timeout_s)
        check_whole("window", self.window, 1, remedy="give the number of shards to shuffle together")


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device that a name stands for.

    Raises:
        UserError: torch knows no such name.
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(
            f"device: expected a name such as 'cpu' or 'cuda:0', found {device!r}; correct it"
        ) from None


def check_split(what: str, split: object) -> None:
    """Refuse what is no split, such as the pack it is in.

    Raises:
        UserError: another type.
    """
    if not isinstance(split, Split):
        raise UserError(
            f"{what}: expected a split, found {type(split).__name__}; give open_pack(path).split(name)"
        )


def check_views(what: str, views: object) -> None:
    """Refuse what is no tuple of policies, or shares the draws of a view that is not there.

    Raises:
        UserError: another type, none or too many, or `shares_draws_of` beyond the first view.
    """
    if not isinstance(views, tuple) or not all(isinstance(view, ViewPolicy) for view in views):
        found = [type(view).__name__ for view in views] if isinstance(views, tuple) else type(views).__name__
        raise UserError(
            f"{what}: expected a tuple of view policies, found {found}; give presets of loaders.views, a "
            "single one as (policy,)"
        )
    if not 1 <= len(views) <= MAX_VIEWS:
        raise UserError(
            f"{what}: expected 1 to {MAX_VIEWS} view policies, found {len(views)}; give presets of "
            "loaders.views"
        )
    for number, view in enumerate(views):
        if view.shares_draws_of > number:
            raise UserError(
                f"{what}: expected {view.name!r} to share the draws of a view at most {number} places before "
                f"it, found {view.shares_draws_of}; put it behind that view"
            )


def _check_reachable(device: torch.device) -> None:
    """Refuse a device that this machine lacks, before the first batch is sent there."""
    if device.type == "cpu":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"device: expected one that this machine has, found {device} ({reason}); use device='cpu', or "
            "mend the driver ('nvidia-smi' shows what it sees)"
        ) from None
