"""Cross-entropy on targets that the images themselves provide."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PretextTerms:
    """The loss and the share of right answers, each a scalar, means over the rank's rows.

    Attributes:
        loss: cross-entropy.
        top1: share of rows whose target has the highest logit; no gradient.
    """

    loss: Tensor
    top1: Tensor


def pretext_loss(logits_BC: Tensor, target: Tensor) -> PretextTerms:
    """Compute the cross-entropy, a mean over the rank's rows.

    Args:
        logits_BC: [B, C], any float dtype; computed in float32 or wider.
        target: int64 [B], in [0, C).

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits_BC.ndim != 2 or target.shape != logits_BC.shape[:1]:
        raise ValueError(
            f"pretext: expected logits [B, C] and targets [B], got {list(logits_BC.shape)} and "
            f"{list(target.shape)}"
        )
    wide = logits_BC if logits_BC.element_size() >= 4 else logits_BC.float()
    top1 = (wide.detach().argmax(1) == target).float().mean()
    return PretextTerms(F.cross_entropy(wide, target), top1)
