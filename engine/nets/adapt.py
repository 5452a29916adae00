"""Fitting the tensors of a checkpoint to a network: names, sizes, and a count of what matched.

timm itself handles most layouts: every family whose published checkpoints have other names has a
`checkpoint_filter_fn`, which renames tensors (DINOv2 with and without registers, MAE and DINO in
timm.models.vision_transformer, DINOv3 in timm.models.eva) and resamples position tables and patch embeddings.
This module adds two layouts: torchvision's VisionTransformer, and lightly's ResNet as a numbered
nn.Sequential.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from engine.nets.weight_files import without_prefixes
from loaders.common.errors import UserError

LEAST_SHARE = 0.9
"""Least share of a network's tensors that its file must have. A file of a shallower network of the same
family has fewer of them; published files of the network itself lack only a few, such as a pooling norm."""

# timm's names for torchvision.models.vision_transformer (VisionTransformer, EncoderBlock, MLPBlock).
TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.(?:head|0)\.", "head."),
)
# timm's names for the ResNets of lightly's examples: nn.Sequential(*list(resnet.children())[:-1]), which has
# the children conv1, bn1, relu, maxpool, layer1 to layer4 and avgpool of torchvision's ResNet.
_SEQUENTIAL_RESNET = tuple(
    (rf"^{number}\.", f"{name}.")
    for number, name in ((0, "conv1"), (1, "bn1"), (4, "layer1"), (5, "layer2"), (6, "layer3"), (7, "layer4"))
)


@dataclass(frozen=True)
class Fit:
    """How a checkpoint fits a network.

    Attributes:
        weights: tensors of the checkpoint that fit the network in name and shape, by the network's names.
        head: weight [C, D] and bias [C] of the checkpoint's linear classifier; None if it has none.
        missing: names that the network has and the checkpoint lacks.
        unused: names that the checkpoint has and the network lacks.
        wrong: names of tensors whose shapes differ, each with both shapes.
        total: number of tensors of the network, without counters of BatchNorm.
    """

    weights: dict[str, Tensor]
    head: tuple[Tensor, Tensor] | None
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: tuple[str, ...]
    total: int

    @property
    def matched(self) -> int:
        """The number of the network's tensors, out of `total`, that the checkpoint has in the right shape."""
        return self.total - len(self.missing) - len(self.wrong)

    def describe(self, source: str, name: str) -> str:
        """Return one line that says what matched and what did not."""
        line = f"weights: {self.matched} of {self.total} tensors of {name} from {source}"
        line += f"; left as they were: {_some(self.missing)}" if self.missing else ""
        return line + (f"; not used: {_some(self.unused)}" if self.unused else "")

    def check(self, source: str, name: str, network: nn.Module) -> None:
        """Refuse the weights of another network, and broken weights.

        Raises:
            UserError: shapes differ, tensors are too few or not finite, or a module of the network has more
                tensors in the checkpoint, as in a deeper network. Modules that the network lacks, such as a
                projector, are no error.
        """
        own = {child for child, module in network.named_children() if any(True for _ in module.parameters())}
        strange = [key for key in self.unused if key.split(".")[0] in own]
        problem = ""
        if self.matched < LEAST_SHARE * self.total and not self.wrong:
            problem = f"{self.matched} of {self.total} tensors; missing: {_some(self.missing)}"
        elif self.wrong:
            problem = f"other shapes: {_some(self.wrong)}"
        elif strange:
            problem = f"parts that it lacks: {_some(tuple(strange))}"
        if problem:
            raise UserError(
                f"weights: expected those of {name} in {source}, found {problem}; name the network of these "
                "weights by --backbone"
            )
        broken = [key for key, value in self.weights.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise UserError(
                f"weights: expected finite numbers in {source}, found NaN or infinity in "
                f"{_some(tuple(broken))}; take an earlier checkpoint"
            )


def fit_tensors(tensors: Mapping[str, Tensor], network: nn.Module) -> Fit:
    """Find the tensors of a network in a checkpoint, under the prefix and layout that match the most.

    Args:
        tensors: name and tensor of each weight, from `read_weights`.
        network: without a classifier; from `timm.create_model(..., num_classes=0)` or one of this project's.
    """
    best: Fit | None = None
    for candidate in without_prefixes(tensors):
        for given in _layouts(candidate):
            fit = _fit(given, network)
            if fit is not None and (best is None or fit.matched > best.matched):
                best = fit
    assert best is not None  # the unchanged checkpoint is always a candidate
    return best


def _layouts(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors under their own names and, if another project's layout is found, timm's names."""
    found = [tensors]
    for layout, mark in ((TORCHVISION_VIT, "conv_proj.weight"), (_SEQUENTIAL_RESNET, "4.0.conv1.weight")):
        if mark in tensors:
            found.append({renamed(name, layout): value for name, value in tensors.items()})
    return found


def renamed(name: str, layout: tuple[tuple[str, str], ...]) -> str:
    """Translate a tensor's name from another project's layout to timm's."""
    for pattern, replacement in layout:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _fit(tensors: dict[str, Tensor], network: nn.Module) -> Fit | None:
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    filter_fn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    given = dict(tensors)
    if filter_fn is not None:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore", UserWarning)  # torch warns about the way timm indexes
                given = dict(filter_fn(given, network))
        except (LookupError, RuntimeError, ValueError, AttributeError, TypeError, AssertionError):
            given = dict(tensors)  # the file is of another family, as the comparison of shapes will show
    head = _pop_head(given, config.get("classifier"))
    own = network.state_dict()
    _fit_input(given, own, config.get("first_conv"))
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    wrong = [key for key in counted if key in given and given[key].shape != own[key].shape]
    shown = tuple(f"{key} {list(given[key].shape)} for {list(own[key].shape)}" for key in wrong)
    return Fit(
        {key: given[key] for key in own if key in given and given[key].shape == own[key].shape},
        head,
        tuple(key for key in counted if key not in given),
        tuple(key for key in given if key not in own),
        shown,
        len(counted),
    )


def _pop_head(tensors: dict[str, Tensor], names: object) -> tuple[Tensor, Tensor] | None:
    """Remove the classifiers from the tensors; return the first linear one (or 1x1 convolution), if any."""
    found = None
    for name in (names,) if isinstance(names, str) else (names if isinstance(names, (tuple, list)) else ()):
        weight, bias = tensors.pop(f"{name}.weight", None), tensors.pop(f"{name}.bias", None)
        if weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1):
            weight = weight[:, :, 0, 0]
        if found is None and weight is not None and weight.ndim == 2:
            found = (weight, torch.zeros(len(weight)) if bias is None else bias)
    return found


def _fit_input(tensors: dict[str, Tensor], own: Mapping[str, Tensor], names: object) -> None:
    """Adapt the first convolution of weights that were trained on images with one or four channels."""
    for name in (names,) if isinstance(names, str) else (names if isinstance(names, (tuple, list)) else ()):
        key = f"{name}.weight"
        if key not in tensors or key not in own or tensors[key].ndim != 4:
            continue
        channels, wanted = tensors[key].shape[1], own[key].shape[1]
        if channels != wanted and channels in (1, 4):
            tensors[key] = adapt_input_conv(wanted, tensors[key], base_chans=channels)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
