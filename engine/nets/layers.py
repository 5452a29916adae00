"""The features of any layer of a backbone: where the network is cut, and how a map becomes a vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loaders.common.errors import UserError


@dataclass(frozen=True)
class Layer:
    """The layer whose output is taken as features.

    Attributes:
        name: name of a module in the backbone, such as `conv4` of `alexnet_bn`, `stages.2` of `tiny_resnet`,
            `layer3` of a timm ResNet or `blocks.8` of a ViT; "" for the representation of the backbone.
        side: a map is averaged to side x side before it is flattened; tokens are averaged.
    """

    name: str = ""
    side: int = 1


class _Reached(Exception):
    """Carries the output of the layer out of the network, so that the rest need not run."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


class LayerFeatures(nn.Module):
    """A module that runs a backbone up to a layer."""

    def __init__(self, backbone: nn.Module, layer: Layer) -> None:
        """Hold the backbone; its weights are shared, not copied."""
        super().__init__()
        self.backbone, self.layer = backbone, layer

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to features [B, F]."""
        return read_layer(self.backbone, x, self.layer)


def read_layer(backbone: nn.Module, x: Tensor, layer: Layer) -> Tensor:
    """Run a backbone up to a layer; the rest is not computed.

    Returns:
        Features [B, F]: a map [B, C, H', W'] is averaged to `side` x `side` and flattened, tokens [B, N, C]
        are averaged, and vectors [B, F] stay as they are.

    Raises:
        UserError: the layer does not exist or is not run, or its output has another shape or is smaller than
            `side`.
    """
    if not layer.name:
        h: Tensor = backbone(x)
        return h
    handle = _find(backbone, layer.name).register_forward_hook(_stop)
    try:
        backbone(x)
    except _Reached as reached:
        return _as_vectors(reached.output, layer, getattr(backbone, "output_fmt", "NCHW") == "NHWC")
    finally:
        handle.remove()
    raise UserError(f"layer: expected one that the network runs, found {layer.name!r}; name another")


def measure_layer(backbone: nn.Module, resolution: int, layer: Layer) -> tuple[int, list[nn.Parameter]]:
    """Return the number of features of a layer, and the trainable parameters that they do not depend on.

    Args:
        backbone: network on the CPU; afterwards each module has its former mode.
        resolution: side of the views in pixels.
        layer: where to stop.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    backbone.eval()
    try:
        with torch.enable_grad():
            features = read_layer(backbone, torch.zeros(2, 3, resolution, resolution), layer)
            through = parameters if features.requires_grad else []  # else no parameter precedes the layer
            reached = torch.autograd.grad(features.sum(), through, allow_unused=True) if through else ()
    finally:
        for module, training in modes:
            module.training = training
    before = {id(p) for p, gradient in zip(through, reached, strict=True) if gradient is not None}
    return features.shape[1], [p for p in parameters if id(p) not in before]


def _stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    raise _Reached(output)


def _find(backbone: nn.Module, name: str) -> nn.Module:
    modules = dict(backbone.named_modules())
    if name not in modules:
        shown = [known for known in modules if known and known.count(".") < 2]
        raise UserError(f"layer: expected one of {', '.join(shown)}, or one inside them, found {name!r}")
    found: nn.Module = modules[name]
    return found


def _as_vectors(output: Tensor, layer: Layer, channels_last: bool) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 4:
        # The variables are named as for a channels-last map. Maps are square, like views, so the place of the
        # two equal sides tells the layout.
        height, width, last = output.shape[1:]
        if height == width and (width != last or channels_last):
            output = output.permute(0, 3, 1, 2)
        own = min(output.shape[2:])
        if layer.side > own:
            wanted = f"expected a side up to {own}, its map's own, found {layer.side}; lower it"
            raise UserError(f"layer {layer.name}: {wanted}")
        return F.adaptive_avg_pool2d(output, layer.side).flatten(1)
    if isinstance(output, Tensor) and output.ndim == 3:
        return output.mean(1)
    if isinstance(output, Tensor) and output.ndim == 2:
        return output
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"layer {layer.name}: expected a map, tokens or vectors, found {found}; name another")
