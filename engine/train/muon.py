"""Muon: momentum whose matrices are orthogonalised, beside AdamW for everything that is no matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

_QUINTIC = (3.4445, -4.775, 2.0315)  # of Newton-Schulz; Jordan 2024 chose them for a steep slope at zero
_STEPS = 5
_RMS = 0.2  # of an update, that of a usual step of AdamW; Liu et al. 2025, equation 4
_BETAS = (0.9, 0.95)  # of the part that AdamW moves
_EPS = 1e-8


class Muon(Optimizer):
    """Orthogonalised momentum for matrices, AdamW for the rest, at one learning rate.

    For each matrix p [A, B] (a convolution's [out, in, k, k] counts as [out, in k k]) with gradient g:
    m = momentum * m + g; u = orthogonal(g + momentum * m); p *= 1 - lr * weight_decay;
    p -= lr * 0.2 * sqrt(max(A, B)) * u. The last factor gives u the size of a step of AdamW.

    Source: Jordan 2024, "Muon: An optimizer for hidden layers in neural networks" (the iteration); Liu et
    al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982; size of the step, decay).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: parameters or groups; a group may set any of the other arguments for itself.
            lr: learning rate.
            momentum: factor of the running gradient of matrices.
            weight_decay: share of a weight that one unit of lr takes away.
            orthogonal: False has AdamW move a group; True asks for at least two dimensions.
        """
        if lr < 0.0 or weight_decay < 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(
                "Muon: expected lr >= 0, weight_decay >= 0 and momentum in [0, 1), got "
                f"lr={lr}, weight_decay={weight_decay}, momentum={momentum}"
            )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal}
        super().__init__(params, defaults)
        vectors = [
            p for group in self.param_groups if group["orthogonal"] for p in group["params"] if p.ndim < 2
        ]
        if vectors:
            raise ValueError(
                "Muon: expected at least two dimensions of what is orthogonalised, got "
                f"{list(vectors[0].shape)}; give it a group with orthogonal=False"
            )

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step, without waiting for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                for p in parameters:
                    self._move_matrix(p, group)
            elif parameters:
                self._move_others(parameters, group)
        return loss

    def _move_matrix(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        running = state["momentum"].mul_(group["momentum"]).add_(p.grad)
        update = orthogonal(p.grad.add(running, alpha=group["momentum"]).flatten(1)).reshape(p.shape)
        p.mul_(1.0 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * _RMS * math.sqrt(max(p.shape[0], p[0].numel())))

    def _move_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "first": torch.zeros_like(p),
                    "second": torch.zeros_like(p),
                    "step": torch.zeros(()),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["first"] for state in states],
            [state["second"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPS,
            maximize=False,
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix near the factor U V^T of a matrix U S V^T: singular values of 0.7 to 1.2.

    Args:
        matrix: float [A, B].

    Returns:
        the same shape and dtype; zeros for zeros. Singular values far below the largest come out smaller.

    Source: Jordan 2024, five steps of a quintic Newton-Schulz iteration; here in the dtype of the matrix.
    """
    a, b, c = _QUINTIC
    is_high = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_high else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_high else x
