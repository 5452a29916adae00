"""Networks: backbones by timm name or our tiny one, projectors, and backbone weights on disk."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.alexnet import build_alexnet
from engine.gan_networks import Discriminator, discriminator_width
from engine.wide_resnet import WIDE_RESNET, WideResNet
from loaders.errors import UserError
from loaders.json_text import parse_json

TINY_RESNET = "tiny_resnet"
ALEXNET = "alexnet_bn"
METADATA_KEY = "sluice"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the last BatchNorm starts at zero, so the block at identity."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            stride: of the first convolution; the shortcut averages before its 1x1 convolution.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride]."""
        y = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))


class TinyResNet(nn.Module):
    """A ResNet for 32-pixel images on a CPU: 4 blocks, 1.2 million parameters, h of 256.

    The stem halves the resolution at once: on two cores the full-resolution stage would cost as much as
    all the others together.
    """

    num_features = 256

    def __init__(self) -> None:
        """Build the network with He initialisation."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(
            ResidualBlock(32, 32, 1),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 128, 2),
            ResidualBlock(128, self.num_features, 2),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to representations [B, 256]; H and W of at least 16 make sense."""
        h: Tensor = self.stages(self.stem(x)).mean(dim=(2, 3))
        return h


def build_backbone(name: str, resolution: int) -> nn.Module:
    """Build a backbone that maps [B, 3, H, W] to representations [B, num_features].

    timm's ResNets start the last BatchNorm of each block at zero by default, and so does ours.

    Args:
        name: `tiny_resnet`, `wrn_28_2`, `alexnet_bn`, `gan_discriminator_96` (or another width), or
            any name that `timm.list_models()` prints.
        resolution: side of the square views in pixels; sizes the position table of networks that have one.

    Returns:
        The network in channels_last, randomly initialised, with the attribute `num_features`.

    Raises:
        UserError: an unknown name; the message lists the closest known ones.
    """
    if name == TINY_RESNET:
        return TinyResNet().to(memory_format=torch.channels_last)
    if name == WIDE_RESNET:
        return WideResNet().to(memory_format=torch.channels_last)
    if name == ALEXNET:
        return build_alexnet(resolution)
    width = discriminator_width(name)
    if width is not None:
        return Discriminator(width).to(memory_format=torch.channels_last)
    if not timm.is_model(name):
        ours = [TINY_RESNET, WIDE_RESNET, ALEXNET]
        close = difflib.get_close_matches(name, [*ours, *timm.list_models()], n=4, cutoff=0.5)
        remedy = f"close matches: {', '.join(close)}" if close else "timm.list_models() prints all names"
        raise UserError(f"backbone: expected {', '.join(ours)} or a timm name, found {name!r}; {remedy}")
    pretrained_cfg = timm.get_pretrained_cfg(name)
    fixed_size = bool(pretrained_cfg and pretrained_cfg.fixed_input_size)
    options: dict[str, Any] = {"img_size": resolution} if fixed_size else {}
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return network.to(memory_format=torch.channels_last)


class Projector(nn.Sequential):
    """Linear layers without biases, BatchNorm and ReLU after all but the last.

    Source: Zbontar et al. 2021 (Barlow Twins), section 2.2.
    """

    def __init__(self, num_features: int, sizes: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            num_features: size of the representation h.
            sizes: output size of each layer, the last being the embedding's.
        """
        if not sizes or min(sizes) < 1:
            raise UserError(f"projector: expected one or more positive sizes, found {list(sizes)}")
        layers: list[nn.Module] = []
        for size_in, size_out in zip((num_features, *sizes), sizes[:-1], strict=False):
            layers += [
                nn.Linear(size_in, size_out, bias=False),
                nn.BatchNorm1d(size_out),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Linear((num_features, *sizes)[-2], sizes[-1], bias=False))
        super().__init__(*layers)


def load_backbone(path: Path) -> nn.Module:
    """Rebuild the backbone that a finished run left in `backbone.safetensors`.

    Args:
        path: the file, or the run folder that holds it.

    Returns:
        The network with its weights, on the CPU, in evaluation mode, in channels_last.

    Raises:
        UserError: no such file, or a file that is not a backbone of this project.
    """
    file = path / "backbone.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"backbone weights: expected a file at {file}, found none; finish a pre-training run first"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            described = (opened.metadata() or {}).get(METADATA_KEY, "{}")
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"backbone weights: {file} is not a readable safetensors file ({error})") from error
    metadata = _parse_metadata(file, described)
    if "backbone" not in metadata or "resolution" not in metadata:
        raise UserError(
            f"backbone weights: {file} does not name its backbone; expected a file that a run wrote"
        )
    network = build_backbone(metadata["backbone"], int(metadata["resolution"]))
    network.load_state_dict(weights)
    return network.eval()


def read_metadata(file: Path) -> dict[str, str]:
    """Read what a weights file of this project says about its network; empty for another's file.

    Raises:
        UserError: no such file, or not a safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            described = (opened.metadata() or {}).get(METADATA_KEY, "{}")
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"weights: {file} cannot be read ({error}); finish a run first") from error
    return _parse_metadata(file, described)


def _parse_metadata(file: Path, described: str) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in parse_json(described).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"weights: {file} describes its network in no JSON object ({error}); expected a file that a run "
            "wrote"
        ) from None
