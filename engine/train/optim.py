"""LARS with the exclusions of the self-supervised papers, and the split of parameters that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd


def split_by_dimension(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split trainable parameters into weights and vectors (biases and normalisation scales).

    Returns:
        (parameters with 2 or more dimensions, parameters with at most 1 dimension).
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def lars_groups(network: nn.Module, **of_vectors: float) -> list[dict[str, Any]]:
    """Return the groups of a network for `LARS`, which neither decays nor rescales vectors.

    `of_vectors` has further settings of the group of vectors, such as `lr`.
    """
    weights, vectors = split_by_dimension(network)
    return [{"params": weights}, {"params": vectors, "weight_decay": 0.0, "adapt": False, **of_vectors}]


class LARS(Optimizer):
    """SGD with momentum, where the update of each tensor is rescaled in proportion to the tensor's norm.

    For each tensor p with gradient g: u = g + weight_decay * p; if the group has `adapt`, u is scaled by
    trust * |p| / |u| (by 1 if either norm is 0); m = momentum * m + u; p -= lr * m. Vectors (at most 1
    dimension) belong in a group with `adapt=False` and `weight_decay=0`.

    Source: You et al. 2017, "Large Batch Training of Convolutional Networks", algorithm 1, with momentum
    after the scaling and the exclusions of Zbontar et al. 2021, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
        foreach: bool | None = None,
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: parameters or groups; a group may set any of the other arguments for itself.
            lr: learning rate.
            momentum: factor of the running update.
            weight_decay: share of the weight that is added to the gradient before the norms are taken.
            trust: LARS's eta, the share of the weight's norm by which one unit of lr moves the weight.
            adapt: False leaves out the rescaling.
            foreach: update many tensors in one kernel launch; None decides as torch's own optimizers do.
        """
        if lr < 0.0 or weight_decay < 0.0 or trust <= 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(
                "LARS: expected lr >= 0, weight_decay >= 0, trust > 0 and momentum in [0, 1), got "
                f"lr={lr}, weight_decay={weight_decay}, trust={trust}, momentum={momentum}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": adapt,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters once, without waiting for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        updates: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        weight_decay = group["weight_decay"]
        if group["adapt"]:
            if weight_decay != 0.0:
                updates = [u.add(p, alpha=weight_decay) for u, p in zip(updates, parameters, strict=True)]
                weight_decay = 0.0
            ratios = _trust_ratios(parameters, updates, group["trust"])
            updates = [u * ratio for u, ratio in zip(updates, ratios, strict=True)]
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        sgd(
            parameters,
            updates,
            [self.state[p]["momentum"] for p in parameters],
            foreach=group["foreach"],
            weight_decay=weight_decay,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def _trust_ratios(parameters: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    """Return trust * |p| / |u| per tensor, 1 where a norm is 0."""
    weight_norms = torch.stack([torch.linalg.vector_norm(p) for p in parameters])
    update_norms = torch.stack([torch.linalg.vector_norm(u) for u in updates])
    usable = (weight_norms > 0) & (update_norms > 0)
    ratios = torch.where(usable, trust * weight_norms / update_norms, torch.ones_like(weight_norms))
    return list(ratios.unbind())
