"""What training can start from: a run of any recipe, a checkpoint, a weights file, or third-party weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from engine.nets.backbones import architecture, build_backbone, load_backbone
from engine.nets.checkpoints import describe_checkpoint, is_checkpoint, load_checkpoint
from engine.nets.classifier import FILE_NAMES, best_weights, load_classifier
from engine.nets.description import Origin, read_description
from engine.nets.foreign import is_foreign, read_foreign
from engine.nets.names import check_same, without_weights
from engine.nets.weight_files import SUFFIXES
from loaders.common.files import sha256_of
from loaders.views.evaluation import EvaluationView


@dataclass(frozen=True)
class Start:
    """A backbone to start from; every call of `load` builds a new one.

    Attributes:
        path: run folder, checkpoint folder (`step-XXXXXXXX`), .safetensors file, or anything that
            `engine.nets.foreign` reads.
        backbone: name, as `build_backbone` takes it.
        view: its evaluation view.
        origin: the third-party weights with which its training began; None if it began with random weights.
    """

    path: Path
    backbone: str
    view: EvaluationView
    origin: Origin | None = None

    @property
    def resolution(self) -> int:
        """Side of the views in pixels."""
        return self.view.resolution

    def view_at(self, resolution: int) -> EvaluationView:
        """Return the evaluation view of a run that begins with this start and has another resolution.

        If the start has the usual view of its own resolution, the run has the usual view of the new one.
        Other views, such as those of third-party weights, keep their mean, deviation, crop and filter.
        """
        usual = self.view == EvaluationView.usual(self.view.resolution)
        return EvaluationView.usual(resolution) if usual else self.view.at(resolution)

    def at(self, resolution: int | None) -> Start:
        """Return the same start for views of another resolution; None leaves it unchanged."""
        return self if resolution is None else replace(self, view=self.view_at(resolution))

    def load(self) -> nn.Module:
        """Build the backbone with its weights, on the CPU, in evaluation mode.

        For a run with labels, return the backbone of the averaged classifier, or else that of the classifier
        as trained.
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
    """Return the start at a path, or with a name that stands for third-party weights.

    Args:
        path: path of a run, a checkpoint or a weights file; or a name, see `engine.nets.foreign`.
        backbone: name of the network of third-party weights; needed for a file that does not state it.

    Raises:
        UserError: nothing is there, it cannot be read, or third-party weights are not for `backbone`.
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
    """Return hashes of the weights of a start, which show whether they were replaced; "" for a name.

    Raises:
        UserError: there is nothing to start from.
    """
    if path.is_file():
        files = [path]
    elif is_checkpoint(path):
        files = [path / "meta.json"]  # holds the hashes of the other files
    elif not is_foreign(path):
        files = [_file_of_run(path)]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    else:
        return ""
    return " ".join(sha256_of(file)[:16] for file in files)


def build_start(init: Path | None, backbone: str, resolution: int) -> nn.Module:
    """Build a backbone with random weights or those of a start, in training mode.

    Args:
        init: path or name of the start; None for random weights, for which call `seed_everything` first.
        backbone: name, as `build_backbone` takes it.
        resolution: side of the views in pixels.

    Raises:
        UserError: the start cannot be read or is of another network, or the network is unknown or cannot take
            the resolution.
    """
    if init is None:
        return build_backbone(backbone, resolution)
    start = find_start(init, backbone)
    check_same(start.backbone, backbone, init)
    return start.at(resolution).load().train()


def _file_of_run(run: Path) -> Path:
    names = (*FILE_NAMES.values(), "backbone.safetensors")
    found = next((run / name for name in names if (run / name).is_file()), None)
    if found is not None:
        return found
    raise without_weights(run)
