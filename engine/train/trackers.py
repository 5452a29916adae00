"""Other places where a run is logged: the packages they need, and the views shown there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError

# accelerate's name of a tracker -> the module that it needs, and how to install it.
_NEEDS = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow"),
    "comet_ml": ("comet_ml", "pip install comet_ml"),
    "aim": ("aim", "pip install aim"),
    "clearml": ("clearml", "pip install clearml"),
    "dvclive": ("dvclive", "pip install dvclive"),
    "swanlab": ("swanlab", "pip install swanlab"),
    "trackio": ("trackio", "pip install trackio"),
}
_SHOWN = 16  # images of the first batch


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker that is not installed; accelerate would leave it out silently.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    for name in names:
        module, command = _NEEDS.get(name, ("", ""))
        if module and find_spec(module) is None:
            raise UserError(
                f"trackers: expected one that is installed, found {name}; {command}, or leave it out"
            )


def prepare_trackers(names: Iterable[str], out: Path | None) -> None:
    """Let W&B write into the run folder, and offline if this user has no key: a run must not prompt."""
    if "wandb" not in names:
        return
    if out is not None:
        os.environ.setdefault("WANDB_DIR", str(out / "trackers"))
        Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
    if "WANDB_API_KEY" not in os.environ and not _has_login():
        os.environ.setdefault("WANDB_MODE", "offline")


def _has_login() -> bool:
    """Tell whether `wandb login` has stored a key."""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in path.read_text("utf-8", errors="replace")
    except OSError:
        return False


def log_views(accelerator: Any, batch: Any, step: int) -> None:
    """Show the first views of a batch on every tracker that shows images.

    Args:
        accelerator: of the run.
        batch: of this rank; of a pair, the unlabelled part.
        step: steps done.
    """
    from engine.report.sheets import to_pixels
    from loaders.views.evaluation import EvaluationView

    shown = getattr(batch, "unlabeled", batch)
    usual = EvaluationView.usual(shown.views[0].shape[-1])
    images = {
        f"views/{chr(ord('a') + number)}": to_pixels(view[:_SHOWN], usual.mean, usual.std)
        .permute(0, 2, 3, 1)
        .numpy()
        for number, view in enumerate(shown.views)
    }
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images(images, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images(images, step=step)
