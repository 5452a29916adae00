"""The linear probe: multinomial logistic regression on frozen representations."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.common.errors import UserError

_ROWS_PER_PART = 16_384


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier; the standardisation of features is folded into its weights.

    Attributes:
        weight: float32 [C, D], for representations that are not standardised.
        bias: float32 [C].
        converged: False if scikit-learn's solver stopped at its iteration limit.
    """

    weight: Tensor
    bias: Tensor
    converged: bool

    def logits(self, h: Tensor) -> Tensor:
        """Return float32 [M, C] for representations [M, D]; float16 ones are converted part by part."""
        parts = [h] if h.dtype == torch.float32 else list(torch.split(h, _ROWS_PER_PART))
        return torch.cat([part.float() @ self.weight.T + self.bias for part in parts])


def fit_linear_probe(
    h: Tensor, labels: Tensor, num_classes: int, inverse_penalty: float = 1.0, max_iterations: int = 1000
) -> LinearProbe:
    """Fit logistic regression with L-BFGS on standardised representations; deterministic.

    Args:
        h: float32 or float16 [N, D], on the CPU.
        labels: int64 [N], in [0, num_classes); classes without an image are never predicted.
        inverse_penalty: scikit-learn's C, the weight of the summed cross-entropy against half the squared
            norm of the weights.

    Raises:
        UserError: fewer than two classes among the labels.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    h = h.float()
    present = torch.unique(labels)
    if len(present) < 2:
        raise UserError(
            f"linear probe: expected images of at least 2 classes, found {len(present)}; label another class"
        )
    mean = h.mean(0)
    # A constant feature is zero once its mean is subtracted; dividing by one keeps it zero.
    std = h.std(0, correction=0)
    std = torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))
    solver = LogisticRegression(C=inverse_penalty, max_iter=max_iterations, tol=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(((h - mean) / std).numpy(), labels.numpy())
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    coefficients = torch.as_tensor(solver.coef_, dtype=torch.float32)
    intercepts = torch.as_tensor(solver.intercept_, dtype=torch.float32)
    if len(present) == 2:
        # For two classes, scikit-learn gives only the log-odds of the second. Two logits, minus and plus half
        # of these log-odds, give the same probabilities.
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    weight = torch.zeros(num_classes, h.shape[1])
    bias = torch.full((num_classes,), float("-inf"))
    weight[present] = coefficients / std
    bias[present] = intercepts - weight[present] @ mean
    return LinearProbe(weight, bias, converged)
