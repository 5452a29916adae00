"""Maps of the last layer of each stage of a network, and how sparse they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.evaluate.predict import evaluation_mode
from loaders.common.errors import UserError

MOST_STAGES = 4  # those behind the stem of a residual network


@dataclass(frozen=True)
class StageMaps:
    """What one stage makes of N images.

    Attributes:
        stage: name of the module in the network, such as "layer4".
        maps: float32 [N, C, H, W], on the CPU.
    """

    stage: str
    maps: Tensor

    @property
    def sparseness(self) -> float:
        """Hoyer's measure of the activations of an image, mean over the images.

        0 where all are equally large, 1 where a single one is not zero: for the n activations x of an image
        (sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1). It needs no exact zeros: any activation function will do.
        Source: Hoyer 2004, "Non-negative Matrix Factorization with Sparseness Constraints", section 3.1.
        """
        flat = self.maps.flatten(1).double()
        root = flat.shape[1] ** 0.5
        ratio = flat.abs().sum(1) / flat.norm(dim=1).clamp_min(1e-30)
        return float(((root - ratio.clamp(1.0, root)) / max(root - 1.0, 1e-30)).mean())


@torch.inference_mode()
def stage_maps(network: nn.Module, views: Tensor, most: int = MOST_STAGES) -> list[StageMaps]:
    """Return the last map of each of the last `most` stages, from the first to the last.

    Of a network whose maps are all of one size, such as a ViT's, these are blocks, evenly spaced.

    Args:
        network: what `build_backbone` built; the mode of each of its modules is restored.
        views: float32 [N, 3, H, W], normalised, on the network's device.
        most: stages at most.

    Raises:
        UserError: a network that does not tell its stages.
    """
    with evaluation_mode(network):
        found = _own_stages(network, views) or _timm_stages(network, views)
    if not found:
        raise UserError(
            f"feature maps: expected a network that tells its stages, found {type(network).__name__}; take "
            "one of this project's, or a convolutional one of timm's"
        )
    sides = {stage.maps.shape[-1] for stage in found}
    if len(sides) > 1:
        return found[-most:]
    places = np.unique(np.linspace(0, len(found), most + 1)[1:].round().astype(int) - 1)
    return [found[place] for place in places]


def _own_stages(network: nn.Module, views: Tensor) -> list[StageMaps]:
    """Look at the modules that a network of ours names."""
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
    """Ask a network of timm's, by the method that it documents."""
    if not hasattr(network, "forward_intermediates"):
        return []
    maps = network.forward_intermediates(views, intermediates_only=True)
    names = [info["module"] for info in network.feature_info]
    return [StageMaps(name, m.float().cpu()) for name, m in zip(names, maps, strict=True)]
