"""A head for tasks on pixels, which maps the last feature map of a backbone to logits at each place."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loaders.common.errors import UserError


def last_map(backbone: nn.Module, x: Tensor) -> Tensor:
    """Return the map [B, C, H', W'] that a backbone averages to its representation.

    Args:
        backbone: network with a method `forward_features`, as timm's networks have.
        x: views [B, 3, H, W].
    """
    return cast(Callable[[Tensor], Tensor], backbone.forward_features)(x)


class MapHead(nn.Module):
    """Enlarges a map to `side` by nearest-neighbour doubling and 3x3 convolutions; a 1x1 one gives logits."""

    def __init__(self, backbone: nn.Module, resolution: int, side: int, width: int, num_logits: int) -> None:
        """Measure the backbone's map and build the layers; call `seed_everything` first.

        Parameters of the backbone that its map does not depend on, such as those behind the pooling, are
        frozen, since no gradient would reach them.

        Raises:
            UserError: the backbone, such as a ViT, gives no square maps [B, C, H', W'].
        """
        super().__init__()
        channels, own = _measure(backbone, resolution)
        self.side = side
        layers: list[nn.Module] = []
        while own < side:
            own = min(2 * own, side)
            layers += [
                nn.Upsample(size=own),
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, num_logits, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, C, H', W'] to logits [B, num_logits, side, side]; those of a larger map are averaged."""
        logits: Tensor = self.layers(maps)
        return logits if logits.shape[-1] == self.side else F.adaptive_avg_pool2d(logits, self.side)


def _measure(backbone: nn.Module, resolution: int) -> tuple[int, int]:
    """Return channels and side of the map, and freeze the parameters that it does not depend on."""
    if not hasattr(backbone, "forward_features"):
        raise UserError(
            f"backbone: expected one with maps, found {type(backbone).__name__}; take tiny_resnet or a ResNet"
        )
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    training = backbone.training
    with torch.enable_grad():
        maps = last_map(backbone.eval(), torch.zeros(1, 3, resolution, resolution))
        if maps.ndim != 4 or maps.shape[2] != maps.shape[3]:
            raise UserError(
                f"backbone: expected one with maps [B, C, H, W], found {list(maps.shape)} of "
                f"{type(backbone).__name__}; take tiny_resnet or a ResNet"
            )
        reached = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
    backbone.train(training)
    for parameter, gradient in zip(parameters, reached, strict=True):
        parameter.requires_grad_(gradient is not None)
    return maps.shape[1], maps.shape[2]
