"""Starts of a network: a run of any recipe, its checkpoint or file, or weights of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from engine.nets.backbones import architecture, build_backbone, check_start, load_backbone
from engine.nets.checkpoints import describe_checkpoint, is_checkpoint, load_checkpoint
from engine.nets.classifier import FILE_NAMES, best_weights, load_classifier
from engine.nets.description import Origin, read_description
from engine.nets.foreign import is_foreign, read_foreign
from engine.nets.weight_files import SUFFIXES
from loaders.common.errors import UserError
from loaders.common.files import sha256_of
from loaders.views.evaluation import EvaluationView


@dataclass(frozen=True)
class Start:
    """A backbone to start from; every call of `load` builds a new one.

    Attributes:
        path: run folder, checkpoint folder (`step-XXXXXXXX`), .safetensors file, or anything that
            `engine.nets.foreign` reads.
        backbone: name, as `build_backbone` takes it.
        view: view with which it was measured.
        origin: origin of the weights with which its training began; None if they were random.
    """

    path: Path
    backbone: str
    view: EvaluationView
    origin: Origin | None = None

    @property
    def resolution(self) -> int:
        """Side of the views, in pixels; by default that of its training."""
        return self.view.resolution

    def view_at(self, resolution: int) -> EvaluationView:
        """Return the view with which a run that starts here is measured, at the run's own resolution.

        Weights of others keep the mean, deviation, crop and filter of their training. A network that was
        trained here with the usual view of one resolution takes the usual view of the new one.
        """
        usual = self.view == EvaluationView.usual(self.view.resolution)
        return EvaluationView.usual(resolution) if usual else self.view.at(resolution)

    def at(self, resolution: int | None) -> Start:
        """Return the same start for views of a resolution; itself for None."""
        return self if resolution is None else replace(self, view=self.view_at(resolution))

    def load(self) -> nn.Module:
        """Build the backbone with its weights, on the CPU, in evaluation mode.

        A run with labels gives the backbone of its classifier, or of the averaged one if it has one.
        """
        if is_foreign(self.path):
            return read_foreign(self.path, self.backbone).build(self.resolution).eval()
        if is_checkpoint(self.path):
            return load_checkpoint(self.path, self.resolution)
        weights = best_weights(self.path) if self.path.is_dir() else None
        if weights is None:
            return load_backbone(self.path, self.resolution)
        return load_classifier(self.path, weights, self.resolution).backbone

    def build(self) -> nn.Module:
        """Build the same network with random weights; call `seed_everything` first."""
        return build_backbone(architecture(self.backbone), self.resolution)


def find_start(path: Path, backbone: str | None = None) -> Start:
    """Return the start for which a run, a checkpoint, a file or a name stands.

    Args:
        path: path of the start, or the name.
        backbone: name of the network, if the user gives one; needed for a file that does not say it.

    Raises:
        UserError: there is nothing to start from, or it cannot be fetched.
    """
    if is_foreign(path):
        foreign = read_foreign(path, backbone)
        return Start(path, foreign.backbone, foreign.view, foreign.origin)
    if is_checkpoint(path):
        described = describe_checkpoint(path)
    else:
        described = read_description(path if path.is_file() else _file_of_run(path))
    return Start(path, described.backbone, described.view, described.origin)


def weights_digest(path: Path) -> str:
    """Return what tells the weights of a start from others in its place; empty where a name stands for them.

    Raises:
        UserError: there is nothing to start from.
    """
    if path.is_file():
        files = [path]
    elif is_checkpoint(path):
        files = [path / "meta.json"]  # with the digests of the others
    elif not is_foreign(path):
        files = [_file_of_run(path)]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    else:
        return ""
    return " ".join(sha256_of(file)[:16] for file in files)


def build_start(init: Path | None, backbone: str, resolution: int) -> nn.Module:
    """Build a backbone in training mode: from random weights, or from a start, which must be of that network.

    Args:
        init: path or name of the start; None for random weights, for which call `seed_everything` first.
        backbone: name, as `build_backbone` takes it.
        resolution: side of the views in pixels.

    Raises:
        UserError: another network, or a start that there is not.
    """
    if init is None:
        return build_backbone(backbone, resolution)
    start = find_start(init, backbone)
    check_start(start.backbone, backbone, init)
    return start.at(resolution).load().train()


def _file_of_run(run: Path) -> Path:
    names = (*FILE_NAMES.values(), "backbone.safetensors")
    found = next((run / name for name in names if (run / name).is_file()), None)
    if found is not None:
        return found
    if list(run.glob("checkpoints/step-*")):
        raise UserError(
            f"start: the run at {run} is not finished; finish it, or give one of its checkpoints "
            f"({run}/checkpoints/step-XXXXXXXX)"
        )
    raise UserError(f"start: expected a run at {run}, found no weights; train one first")
