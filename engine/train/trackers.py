"""Trackers such as TensorBoard and W&B: the packages they need, and the views and weights they show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError, brief
from loaders.common.notice import tell

# accelerate's names of trackers, which are also the names of their modules and packages
_NEEDS = (
    *("tensorboard", "wandb", "mlflow", "comet_ml", "aim"),
    *("clearml", "dvclive", "swanlab", "trackio"),
)
_SHOWN = 16  # images of the first batch to show
_NUM_HISTOGRAMS = 20  # largest number of histograms of each weight in a run
_LARGEST = 1e19  # bound of values to show: tensorboard raises if all lie beyond its last bin, at 1e20
_MOST_VALUES = 1 << 16  # values per histogram; evenly spaced ones of a larger tensor


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker that accelerate does not know, or that it would leave out since it is not installed.

    Raises:
        UserError: a tracker is unknown or not installed.
    """
    for name in names:
        if name not in (*_NEEDS, "all"):
            raise UserError(
                f"trackers: expected one or more of {', '.join(sorted(_NEEDS))}, found {name}; change it"
            )
        if name != "all" and find_spec(name) is None:
            raise UserError(
                f"trackers: expected an installed one, found {name}; pip install {name}, or leave it out"
            )


def prepare_trackers(names: Iterable[str]) -> None:
    """For a user without API key, set W&B (in `names` as "wandb" or "all") offline, so that it asks for none.

    A WANDB_MODE that is set stays.
    """
    if {"wandb", "all"} & set(names) and "WANDB_API_KEY" not in os.environ and not _has_login():
        os.environ.setdefault("WANDB_MODE", "offline")


def begin_trackers(accelerator: Any, name: str, out: Path) -> None:
    """Start a run on every tracker; by default W&B writes into the run folder, and offline if unreachable.

    Trackers of an earlier training in this process are ended first, or they would log the values of this
    training too.

    Args:
        accelerator: the run's Accelerator.
        name: name of the project under which trackers file the run.
        out: run folder, which this process has claimed.
    """
    _end_trackers(accelerator)
    accelerator.project_configuration.logging_dir = str(out / "trackers")  # one for each phase
    if "wandb" not in map(str, accelerator.log_with):
        accelerator.init_trackers(name)
        return
    os.environ.setdefault("WANDB_SILENT", "true")  # else W&B prints thirty lines
    folder = Path(os.environ.get("WANDB_DIR", out / "trackers"))
    folder.mkdir(parents=True, exist_ok=True)
    options = {"wandb": {"dir": str(folder), "name": out.name}}
    try:
        accelerator.init_trackers(name, init_kwargs=options)
    except Exception as error:
        if not type(error).__module__.startswith("wandb") or os.environ.get("WANDB_MODE") == "offline":
            raise
        tell(f"trackers: W&B cannot be reached ({brief(error)}); the run goes on offline")
        os.environ["WANDB_MODE"] = options["wandb"]["mode"] = "offline"  # W&B read the environment earlier
        _end_trackers(accelerator)
        accelerator.init_trackers(name, init_kwargs=options)
    if os.environ.get("WANDB_MODE") == "offline":
        tell(f"trackers: W&B keeps the run in {folder / 'wandb'}; `wandb sync` sends it")


def _end_trackers(accelerator: Any) -> None:
    for tracker in accelerator.trackers:
        with suppress(AttributeError):  # a tracker that has not started
            tracker.finish()
    accelerator.trackers.clear()


def _has_login() -> bool:
    """Return whether `wandb login` has stored a key."""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in path.read_text("utf-8", errors="replace")
    except OSError:
        return False


def log_views(accelerator: Any, batch: Any, step: int, view: Mapping[str, Any] | None = None) -> None:
    """Show the views of a batch's first images on TensorBoard and W&B, if these are among the trackers.

    Args:
        accelerator: the run's Accelerator.
        batch: batch of this rank; of a paired batch, the unlabelled images are shown.
        step: steps done.
        view: fields of the run's `EvaluationView`, whose `mean` and `std` also normalised these views.
    """
    from engine.report.sheets import to_pixels
    from loaders.views.policy import IMAGENET

    shown = getattr(batch, "unlabeled", batch)
    if shown.views[0].ndim != 4:  # stored features, not images
        return
    mean, std = (view["mean"], view["std"]) if view else (IMAGENET.mean, IMAGENET.std)
    images = {
        f"views/{chr(ord('a') + number)}": to_pixels(pixels[:_SHOWN], mean, std).permute(0, 2, 3, 1).numpy()
        for number, pixels in enumerate(shown.views)
    }
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images(images, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images(images, step=step)


def log_weights(accelerator: Any, recipe: Any, step: int, total_steps: int) -> None:
    """Show histograms of all weights on TensorBoard and W&B, up to twenty times in a run."""
    shows = [tracker for tracker in accelerator.trackers if tracker.name in ("tensorboard", "wandb")]
    every = -(-total_steps // _NUM_HISTOGRAMS)
    if not shows or not accelerator.is_main_process or (step % every and step != total_steps):
        return
    values = {}
    for name, parameter in recipe.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: -(-flat.numel() // _MOST_VALUES) or 1].float().cpu()
        shown = some[some.abs() < _LARGEST]  # drops NaN and infinity too
        if len(shown):
            values[f"weights/{name}"] = shown.numpy()
    for tracker in shows:
        if tracker.name == "tensorboard":
            for name, some in values.items():
                tracker.tracker.add_histogram(name, some, step)
        else:
            import wandb

            tracker.log({name: wandb.Histogram(some) for name, some in values.items()}, step=step)
