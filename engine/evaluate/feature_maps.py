"""The feature map at the end of each stage of a network, and its sparseness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.evaluate.predict import evaluation_mode
from loaders.common.errors import UserError

MOST_STAGES = 4  # a ResNet has four stages behind its stem


@dataclass(frozen=True)
class StageMaps:
    """The maps of N images at the end of one stage.

    Attributes:
        stage: name of the module in the network, such as "layer4".
        maps: float32 [N, C, H, W], on the CPU.
    """

    stage: str
    maps: Tensor

    @property
    def sparseness(self) -> float:
        """Hoyer's sparseness of the activations of an image, averaged over the images.

        For the n activations x of an image, it is (sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1): 0 if all are
        equally large, 1 if at most one is not zero. The measure needs no exact zeros, so it suits any
        activation function.

        Source: Hoyer 2004, "Non-negative Matrix Factorization with Sparseness Constraints", section 3.1.
        """
        flat = self.maps.flatten(1).double()
        root = flat.shape[1] ** 0.5
        ratio = flat.abs().sum(1) / flat.norm(dim=1).clamp_min(1e-30)
        return float(((root - ratio.clamp(1.0, root)) / max(root - 1.0, 1e-30)).mean())


@torch.inference_mode()
def stage_maps(network: nn.Module, views: Tensor) -> list[StageMaps]:
    """Return the map at the end of each of the last `MOST_STAGES` stages, in the order of the network.

    If all maps have the same size, as those of a ViT's blocks, evenly spaced stages are taken instead.

    Args:
        network: built by `build_backbone`; afterwards each module has its former mode.
        views: float32 [N, 3, H, W], normalised, on the network's device.

    Raises:
        UserError: the network does not name its stages.
    """
    with evaluation_mode(network):
        found = _own_stages(network, views) or _timm_stages(network, views)
    if not found:
        raise UserError(
            f"feature maps: expected a network that names its stages, found {type(network).__name__}; take "
            "one of this project's, or a convolutional one of timm's"
        )
    sides = {stage.maps.shape[-1] for stage in found}
    if len(sides) > 1:
        return found[-MOST_STAGES:]
    places = np.unique(np.linspace(0, len(found), MOST_STAGES + 1)[1:].round().astype(int) - 1)
    return [found[place] for place in places]


def _own_stages(network: nn.Module, views: Tensor) -> list[StageMaps]:
    """Return the outputs of the modules in `stage_modules`, which networks of this project have."""
    found: list[StageMaps] = []
    hooks = []

    def keep(name: str) -> Any:
        return lambda module, given, out: found.append(StageMaps(name, out.float().cpu()))

    for name in getattr(network, "stage_modules", ()):
        hooks.append(network.get_submodule(name).register_forward_hook(keep(name)))
    try:
        if hooks:
            network(views)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _timm_stages(network: Any, views: Tensor) -> list[StageMaps]:
    """Return the maps of a timm network by timm's `forward_intermediates`; none if the network lacks it."""
    if not hasattr(network, "forward_intermediates"):
        return []
    maps = network.forward_intermediates(views, intermediates_only=True)
    names = [info["module"] for info in network.feature_info]
    return [StageMaps(name, m.float().cpu()) for name, m in zip(names, maps, strict=True)]
