r"""Export a trained network as a file or folder of timm, torchvision, Hugging Face, ONNX or torch.export.

Example:
    python tools/export.py --run runs/finetuned --form onnx --pack packs/mine --out mine.onnx
    python tools/export.py --run runs/barlow --backbone-only --form timm --out backbone.safetensors

An export contains the view of images, the classes and the licence of the pre-trained weights, if there were
any; docs/pretrained.md shows how to load each form. In every form but safetensors, an export's outputs are
compared with the network's before the export is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.nets.names import check_start
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file
from loaders.common.program import check_command_line, command_line

Form = Literal["timm", "hf", "torchvision", "onnx", "torch_export", "safetensors"]
_NUM_COMPARED = 16
_SUFFIX = {
    "timm": ".safetensors",
    "torchvision": ".pth",
    "onnx": ".onnx",
    "torch_export": ".pt2",
    "safetensors": ".safetensors",
}  # other commands and libraries recognise the forms by these suffixes
_OF_WEIGHTS = {*_SUFFIX.values(), ".pt", ".bin", ".ckpt"}  # any other suffix is part of the name, as in v1.2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a classifier, or a backbone alone, in a form that other libraries load."""

    run: Path
    """Run folder, or any other start: timm:NAME, hf:REPO, a folder or file of weights. Without
    --backbone-only, it must have a classifier."""
    out: Path
    """File to write, which must not exist; its suffix is .safetensors, .pth, .onnx or .pt2, according to the
    form. For hf, a folder."""
    form: Form
    """timm, hf, torchvision, onnx, torch_export; or safetensors, this project's own form."""
    backbone_only: bool = False
    """Leave out the classifier, so that the outputs are features."""
    backbone: str | None = None
    """Name of the network, for a weights file that does not state it."""
    resolution: int | None = None
    """Side of the views in pixels; by default that of the network."""
    pack: Path | None = None
    """Pack with the images on which the export is compared; by default it is compared on noise."""
    split: str = ""
    """Split of these images; the first one by default."""

    def __post_init__(self) -> None:
        """Refuse an --out that is taken or cannot be written, or whose suffix does not fit the form."""
        suffix = _SUFFIX.get(self.form, "")
        if suffix and self.out.suffix != suffix:
            name = self.out.stem if self.out.suffix in _OF_WEIGHTS else self.out.name or "network"
            raise UserError(
                f"out: expected a name that ends in {suffix} for --form {self.form}, found {self.out}; give "
                f"{self.out.parent / (name + suffix)}"
            )
        check_file(self.out) if self.form != "hf" else check_file(self.out / "config.json")
        if self.out.exists() and (self.form != "hf" or any(self.out.iterdir())):
            raise UserError(f"out: expected nothing at {self.out}, found something; give another --out")

    def check_places(self) -> None:
        """Refuse a missing network or classifier, before anything is loaded."""
        remedy = "train with labels first, or export its features by --backbone-only"
        check_start(self.run, "run", self.backbone, not self.backbone_only, remedy)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import Tensor, nn

from engine.nets.classifier import Classifier, find_classifier
from engine.nets.exported import WRITERS
from engine.nets.starts import find_start
from engine.train.distributed import refuse_ranks
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.next_step import say_next
from loaders.views.evaluation import EvaluationView


class Headless(Classifier):
    """A backbone in the place of a classifier; it outputs features."""

    def __init__(self, start_network: nn.Module, name: str, view: EvaluationView, **origin: object) -> None:
        """Build the network without a classifier layer."""
        super().__init__(start_network, name, view, ("features",), **origin)  # type: ignore[arg-type]
        self.head, self.classes = nn.Identity(), ()  # type: ignore[assignment]


def load(config: Config) -> Classifier:
    """Load the network to export, in evaluation mode, on the CPU."""
    if config.backbone_only:
        start = find_start(config.run, config.backbone).at(config.resolution)
        return Headless(start.load(), start.backbone, start.view, origin=start.origin).eval()
    network = find_classifier(config.run, None, backbone=config.backbone)
    return network.at(config.resolution or network.resolution)


def views_to_compare(config: Config, view: EvaluationView) -> Tensor:
    """Return a few views [B, 3, H, W] of the pack's images, or noise if no pack is given."""
    if config.pack is None:
        side = view.resolution
        return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    pack = open_pack(config.pack)
    split = pack.split(config.split or pack.splits[0])
    size = min(_NUM_COMPARED, len(split))
    options = LoaderOptions(num_threads=1)
    with build_loader(split, (view.policy(),), size, options=options, mode="eval") as loader:
        return next(iter(loader.epoch(0))).views[0].clone()


def export(config: Config) -> Path:
    """Write the export and return its path."""
    refuse_ranks("export")
    network = load(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[config.form](network, views_to_compare(config, network.view), config.out)
    return config.out


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    print(f"export: {config.form} -> {export(config)}")
    if not config.backbone_only:
        say_next("tools/predict.py", "--network", config.out, "--images", "FOLDER", "--out", "predictions")
    elif config.form in ("timm", "hf", "safetensors"):  # the forms that `--init` can start from
        pack = config.pack or "PACK"
        say_next("recipes/transfer.py", "--pack", pack, "--init", config.out, "--out", "runs/transfer")


if __name__ == "__main__":
    run_command(main)
