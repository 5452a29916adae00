"""Replaces a recipe's schedule, and its optimizer by SGD, LARS, AdamW or Muon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.optim import Muon, param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.choices import OptimizerName
from engine.train.optim import LARS
from engine.train.options import OptimizerOptions
from engine.train.recipe import Recipe
from engine.train.schedule import Schedule, one_cycle, warmed, warmup_cosine
from loaders.common.errors import UserError

_MOMENTUM = 0.9  # momentum of sgd and lars, if the paper's optimizer has no such option
_MUON_MOMENTUM = 0.95  # Jordan 2024
_FUSABLE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_KINDS: dict[type[Optimizer], OptimizerName] = {
    torch.optim.SGD: "sgd",
    LARS: "lars",
    torch.optim.AdamW: "adamw",
}


def choose_optimizer(recipe: Recipe, options: OptimizerOptions) -> Optimizer:
    """Return the paper's optimizer, or the one that the options name instead.

    Each group keeps its weight decay (except vectors under LARS, which have none) and the ratio of its
    learning rate to that of the first group. Vectors under a paper's LARS have a special rate that suits LARS
    alone, so another optimizer gives them the rate of the first group.

    Raises:
        UserError: the recipe works only with its own optimizer, the new optimizer lacks a learning rate, or
            the backbone does not suit `layer_decay` or Muon.
    """
    paper = recipe.make_optimizer()
    kind = _KINDS.get(type(paper))
    is_own = options.optimizer in ("paper", kind)
    if not is_own and recipe.own_optimizer:
        raise UserError(
            f"optimizer: expected paper, since recipe {recipe.name!r} works only with its paper's optimizer, "
            f"found {options.optimizer}; leave it out"
        )
    if not is_own and options.optimizer_lr is None:
        raise UserError(
            f"optimizer: expected --optimizer-lr with {options.optimizer}, since the recipe's rate is for "
            "another optimizer, found none; give one"
        )
    if options.optimizer_lr is not None:
        _set_rates(paper, options.optimizer_lr, is_own)
    given = options.optimizer_momentum
    if given is not None and recipe.own_optimizer:
        raise UserError(
            f"optimizer_momentum: expected none, since recipe {recipe.name!r} works only with its paper's "
            f"optimizer, found {given}; leave it out"
        )
    if is_own and options.layer_decay is None:
        for group in paper.param_groups if given is not None else ():
            group["momentum"] = given
        return paper
    groups = [
        {"params": g["params"], "lr": g["lr"], "weight_decay": g["weight_decay"]} for g in paper.param_groups
    ]
    momentum = float(paper.param_groups[0].get("momentum", _MOMENTUM)) if given is None else given
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=momentum)
    if options.optimizer == "lars":
        return LARS([part for group in groups for part in _by_dimension(group)], groups[0]["lr"], momentum)
    if options.optimizer == "muon":
        momentum = _MUON_MOMENTUM if given is None else given
        muon: Optimizer = Muon(
            list(_by_matrix(groups, recipe)), groups[0]["lr"], momentum=momentum, nesterov=True
        )
        return muon
    if options.layer_decay is not None:
        groups = list(_by_layer(groups, recipe, options.layer_decay))
    return torch.optim.AdamW(groups)


def fused_on(device: torch.device, optimizer: Optimizer, scaled: bool = False) -> Optimizer:
    """Return an optimizer in its fused form (few kernel launches per step) if it can be used; else as it is.

    Args:
        device: device of the parameters when the optimizer takes its first step.
        optimizer: the optimizer, which has taken no step yet.
        scaled: whether a gradient scaler may skip steps. SGD then stays unfused: if its first step is
            skipped, torch's fused form reads uninitialised memory as momentum.
    """
    if device.type != "cuda" or not isinstance(optimizer, _FUSABLE):
        return optimizer
    if scaled and isinstance(optimizer, torch.optim.SGD):
        return optimizer
    groups = [{**group, "fused": True} for group in optimizer.param_groups]
    return type(optimizer)(groups, fused=True)


def choose_schedule(
    recipe: Recipe, options: OptimizerOptions, steps_per_epoch: int, total_steps: int
) -> Schedule:
    """Return the paper's schedule with the warm-up of the options, or the schedule that the options name.

    Weight decay needs no schedule: SGD, LARS, AdamW and Muon multiply it by the learning rate of the step.

    Raises:
        UserError: the options have a warm-up although the schedule is one_cycle, which has its own.
    """
    warmup_steps = round(options.warmup_epochs * steps_per_epoch)
    # Called even if the result is not used: some recipes record the run's length there, for other ramps.
    paper = recipe.make_schedule(steps_per_epoch, total_steps)
    if options.schedule == "one_cycle":
        if warmup_steps:
            raise UserError(
                "warmup_epochs: expected 0 with --schedule one_cycle, which has its own warm-up, found "
                f"{options.warmup_epochs}; leave it out"
            )
        return one_cycle(total_steps)
    if options.schedule == "cosine":
        return warmup_cosine(total_steps, warmup_steps)
    return paper if recipe.warms_up else warmed(paper, warmup_steps)


def _set_rates(optimizer: Optimizer, lr: float, is_own: bool) -> None:
    first = float(optimizer.param_groups[0]["lr"])
    for group in optimizer.param_groups:
        is_vectors = group.get("adapt") is False and not is_own
        share = 1.0 if first == 0.0 or is_vectors else float(group["lr"]) / first
        group["lr"] = lr * share


def _by_dimension(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Split a group for LARS, which neither decays nor rescales vectors."""
    weights = [p for p in group["params"] if p.ndim > 1]
    vectors = [p for p in group["params"] if p.ndim <= 1]
    if weights:
        yield {**group, "params": weights}
    if vectors:
        yield {**group, "params": vectors, "weight_decay": 0.0, "adapt": False}


def _matrices_of(backbone: nn.Module) -> set[Tensor]:
    """Return the weights of linear layers and ungrouped convolutions, which map all channels to all."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        module.weight
        for module in backbone.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, convolutions) and module.groups == 1)
    }


def _by_matrix(groups: list[dict[str, Any]], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Split groups for Muon, which orthogonalises the updates of the backbone's matrices.

    Raises:
        UserError: the backbone is trained but has no such matrix.
    """
    matrices, backbone = _matrices_of(recipe.backbone), set(recipe.backbone.parameters())
    moved = {p for group in groups for p in group["params"] if p in backbone and p.ndim > 1}
    if moved and not moved & matrices:
        raise UserError(
            "optimizer: expected a backbone with plain weights of linear layers or convolutions for muon, "
            f"found {recipe.backbone_name}; use adamw"
        )
    for group in groups:
        for orthogonal in (True, False):
            if parameters := [p for p in group["params"] if (p in matrices) is orthogonal]:
                yield {**group, "params": parameters, "use_fallback": not orthogonal}


def _by_layer(groups: list[dict[str, Any]], recipe: Recipe, decay: float) -> Iterator[dict[str, Any]]:
    """Split groups by the backbone layer of the parameters, with a learning rate for each layer."""
    scales = _layer_scales(recipe.backbone, recipe.backbone_name, decay)
    for group in groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        for scale, parameters in sorted(by_scale.items()):
            yield {**group, "params": parameters, "lr": group["lr"] * scale}


def _layer_scales(backbone: nn.Module, name: str, decay: float) -> dict[nn.Parameter, float]:
    """Return the learning-rate factor of each parameter: 1 in the last layer, `decay` in the one before.

    Raises:
        UserError: the backbone does not name its layers.
    """
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"layer_decay: expected a backbone of timm, which names its layers, found {name}; leave it out"
        )
    groups = param_groups_layer_decay(backbone, layer_decay=decay)
    return {parameter: float(group["lr_scale"]) for group in groups for parameter in group["params"]}
