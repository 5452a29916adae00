"""Backbones by name, from this project or timm; projectors; and loading a backbone from disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import split_model_name_tag
from torch import Tensor, nn

from engine.nets.alexnet import build_alexnet
from engine.nets.compact import CompactCnn
from engine.nets.description import read_description
from engine.nets.gan_networks import Discriminator
from engine.nets.names import (
    ALEXNET,
    COMPACT_CNN,
    OURS,
    TINY_RESNET,
    WIDE_RESNET,
    discriminator_width,
    unknown,
)
from engine.nets.wide_resnet import WideResNet
from loaders.common.errors import UserError, brief
from loaders.common.notice import tell


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    The last BatchNorm starts at zero, so that only the shortcut counts at first.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build the block.

        Args:
            stride: stride of the first convolution; if above 1, the shortcut averages stride x stride pixels.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            # Nothing is padded, but below opset 19, ONNX counts the part of a window beyond the edge as
            # padding: count_include_pad=False leaves that part out of the average.
            average = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(
                average if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride], rounded up."""
        y = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))


class TinyResNet(nn.Module):
    """A ResNet for 32-pixel images on a CPU: 4 blocks, 1.2 million parameters, 256 features.

    The stem already halves the resolution: on two cores, a stage at full resolution would cost as much as all
    the others together.
    """

    num_features = 256
    reduction = 16  # side of the views / side of the last map
    stage_modules = tuple(f"stages.{i}" for i in range(4))  # their outputs are the maps of the stages

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

    def forward_features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to the last map [B, 256, H / 16, W / 16], rounded up."""
        maps: Tensor = self.stages(self.stem(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to representations [B, 256]; H and W should be at least 16."""
        return self.forward_features(x).mean(dim=(2, 3))


def build_backbone(name: str, resolution: int, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a backbone that maps [B, 3, H, W] to representations [B, num_features].

    The last BatchNorm of each block starts at zero in timm's ResNets by default, and in `tiny_resnet` too.

    Args:
        name: `tiny_resnet`, `compact_cnn`, `wrn_28_2`, `alexnet_bn`, `gan_discriminator_96` (or another
            width), or any name that `timm.list_models()` prints.
        resolution: side of the square views in pixels; sizes the position tables of networks that have them.
        weights: weights of this network, possibly for views of another resolution: timm then interpolates
            position tables, if it can do so for this network. Random weights by default.

    Returns:
        The network in channels_last, in training mode, with the attribute `num_features`.

    Raises:
        UserError: the name is unknown (the message lists similar names), the network or its weights cannot
            take the resolution, or the network gives no vector per image.
    """
    if weights is None and architecture(name) != name:
        tell(f"backbone {name}: random weights; its pre-trained ones are --init timm:{name}")
    with _refusal(name, resolution):
        network = _create(name, resolution)
        if weights is not None:
            network = _with_weights(network, name, resolution, weights)
        network = network.to(memory_format=torch.channels_last).eval()
        keep_gradients_finite(network)
        num_features = _count_features(network, name, resolution)
    if network.num_features != num_features:  # timm's number ignores layers behind some networks' pooling
        network.num_features = num_features  # type: ignore[assignment]
    return network.train()


def keep_gradients_finite(network: nn.Module) -> None:
    """Let a network pad maps that are narrower than a convolution's stride, under autocast on a CPU.

    For such maps in bfloat16, oneDNN's gradients read uninitialised memory and can be NaN. Zeros up to the
    stride change no output, since the convolution pads with zeros there anyway.
    """

    def widen(convolution: Any, inputs: tuple[Tensor]) -> Tensor | None:
        (x,) = inputs
        lacking = convolution.stride[1] - x.shape[-1]
        if lacking <= 0 or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return None
        return nn.functional.pad(x, (0, lacking))

    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.stride[1] == 1:
            continue
        width = module.kernel_size[1]
        if width > 1 and width % 2 and module.padding[1] == width // 2:
            module.register_forward_pre_hook(widen)


def resized(network: nn.Module, name: str, resolution: int) -> nn.Module:
    """Return a backbone for views of another resolution, in evaluation mode, on the same device.

    Args:
        network: built by `build_backbone`; returned as it is if no part of it depends on the resolution.
        name: name of a network, as `build_backbone` takes it.
        resolution: side of the views in pixels.

    Raises:
        UserError: the network cannot take the resolution.
    """
    if "img_size" in _size_options(name, resolution):
        weights = network.state_dict()
        device = next(iter(weights.values())).device
        on_cpu = {key: tensor.cpu() for key, tensor in weights.items()}
        return build_backbone(name, resolution, on_cpu).to(device).eval()
    with _refusal(name, resolution):
        _count_features(network.eval(), name, resolution)
    return network


def of_whole_images(network: nn.Module, name: str, resolution: int) -> nn.Module:
    """Return a backbone for whole images with the weights of a backbone for tiles, to measure these weights.

    The backbone for tiles does not change, and neither does the random generator.

    Args:
        network: built by `build_backbone` for tiles; returned as it is if no part of it depends on the
            resolution.
        name: name of a network, as `build_backbone` takes it.
        resolution: side of the whole images in pixels.

    Raises:
        UserError: the network cannot take the resolution.
    """
    if "img_size" not in _size_options(name, resolution):
        return network
    with torch.random.fork_rng(devices=[]):  # a new network draws random weights before it gets its own
        return resized(network, name, resolution)


def check_resolution(network: nn.Module, name: str, resolution: int) -> None:
    """Refuse a resolution that a network cannot take as it is.

    Args:
        network: built by `build_backbone`, on any device; keeps its mode.
        name: name of a network, as `build_backbone` takes it.
        resolution: side of the views in pixels.

    Raises:
        UserError: the network cannot take the resolution.
    """
    training = network.training
    with _refusal(name, resolution):
        _count_features(network.eval(), name, resolution)
    network.train(training)


@contextmanager
def _refusal(name: str, resolution: int) -> Iterator[None]:
    """Turn a network's exception about the size of views into a one-line error."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"backbone: expected a resolution that {name} and its weights take, found {resolution} "
            f"({brief(error, 200)}); change the resolution"
        ) from error


@torch.no_grad()
def _count_features(network: nn.Module, name: str, resolution: int) -> int:
    """Run a network, already in evaluation mode, on one view; return the size of its representation."""
    device = next(network.parameters()).device
    h = network(torch.zeros(1, 3, resolution, resolution, device=device))
    if h.ndim != 2:
        raise UserError(
            f"backbone: expected a network that gives a vector per image, found {name}, which gives "
            f"{list(h.shape)}; take another"
        )
    return int(h.shape[1])


def _create(name: str, resolution: int, **options: Any) -> nn.Module:
    """Build a network, by default with random weights; `options` go to `timm.create_model`."""
    if name == TINY_RESNET:
        return TinyResNet()
    if name == COMPACT_CNN:
        return CompactCnn()
    if name == WIDE_RESNET:
        return WideResNet()
    if name == ALEXNET:
        return build_alexnet(resolution)
    width = discriminator_width(name)
    if width is not None:
        return Discriminator(width)
    check_name(name)
    network: nn.Module = timm.create_model(name, num_classes=0, **_size_options(name, resolution), **options)
    return network


def architecture(name: str) -> str:
    """Return the name of a network without timm's tag, which names its weights."""
    return str(split_model_name_tag(name)[0])


def check_name(name: str) -> None:
    """Refuse the name of an unknown network.

    Raises:
        UserError: no network has the name; the message lists similar names.
    """
    if name in OURS or discriminator_width(name) is not None or timm.is_model(name):
        return
    raise unknown(name, timm.list_models())


def _size_options(name: str, resolution: int) -> dict[str, Any]:
    """Return the option for the resolution, if the network has parts for one, such as position tables."""
    pretrained_cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return {"img_size": resolution} if pretrained_cfg and pretrained_cfg.fixed_input_size else {}


def _with_weights(network: nn.Module, name: str, resolution: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with the weights; it is built anew if they are for another resolution."""
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if all(shapes.get(key, tensor.shape) == tensor.shape for key, tensor in weights.items()):
        network.load_state_dict(weights)
        return network
    # timm resizes position tables while it loads weights, by the rules of each family. num_classes=0 says
    # that the weights have no classifier to drop.
    given = {"state_dict": dict(weights), "num_classes": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns about the way timm indexes
        return _create(name, resolution, pretrained=True, pretrained_cfg_overlay=given)


class Projector(nn.Sequential):
    """Linear layers without biases; BatchNorm and ReLU follow all but the last.

    Source: Zbontar et al. 2021 (Barlow Twins), section 2.2.
    """

    def __init__(self, num_features: int, sizes: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            num_features: size of the representation h.
            sizes: output size of each layer; the last is that of the embedding.
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


def load_backbone(path: Path, resolution: int | None = None) -> nn.Module:
    """Rebuild the backbone that a finished run left in `backbone.safetensors`, or in a classifier's file.

    Args:
        path: the file, or the run folder that holds `backbone.safetensors`.
        resolution: side of the views in pixels; by default the one it was trained with.

    Returns:
        The network with its weights, on the CPU, in evaluation mode, in channels_last.

    Raises:
        UserError: the file does not exist or holds no backbone of this project, or the network cannot take
            the resolution.
    """
    file = path / "backbone.safetensors" if path.is_dir() else path
    described = read_description(file)
    weights = safetensors.torch.load_file(file)
    if described.num_classes:
        prefix = "backbone."
        weights = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
    return build_backbone(described.backbone, resolution or described.view.resolution, weights).eval()
