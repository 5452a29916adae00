"""FixMatch: the confident guess on a weak view is the label of the strong view.

Source: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"
(arXiv 2001.07685), equations 3 and 4 and algorithm 1. Alignment: Berthelot et al. 2020, "ReMixMatch"
(arXiv 1911.09785), section 3.1. Adaptive threshold: Wang et al. 2023, "FreeMatch" (arXiv 2205.07246),
equations 5 to 8.

Shapes: B labelled and M = mu * B unlabelled rows of this rank, C classes. Every term is a mean over the
rank's rows, so that DistributedDataParallel's average is the mean over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.objectives.cross_entropy import label_loss
from engine.objectives.precision import at_least_float32
from engine.train.distributed import all_reduce_sum, world_size


@dataclass(frozen=True)
class FixMatchTerms:
    """The loss and its parts, scalars.

    Attributes:
        loss: supervised + weight * unsupervised.
        supervised: mean cross-entropy of the labelled rows.
        unsupervised: summed cross-entropy of the confident unlabelled rows, divided by the number of all
            unlabelled rows.
        mask_rate: share of the unlabelled rows that are confident, detached.
    """

    loss: Tensor
    supervised: Tensor
    unsupervised: Tensor
    mask_rate: Tensor


class RecentGuesses(nn.Module):
    """Moving averages of class probabilities over all ranks, for alignment and the adaptive threshold.

    Attributes:
        confidence: average of the largest probability of a row, a scalar.
        classes: average probability of each class, [C].
    """

    confidence: Tensor
    classes: Tensor

    def __init__(self, num_classes: int) -> None:
        """Start with equal probabilities of all classes."""
        super().__init__()
        self.register_buffer("confidence", torch.tensor(1 / num_classes))
        self.register_buffer("classes", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def update(self, logits: Tensor, decay: float) -> None:
        """Update the averages with the logits of a step; every rank must call this.

        Args:
            logits: [M, C], of this rank.
            decay: weight of the old averages, in [0, 1]; 0 replaces them.
        """
        q = at_least_float32(logits).softmax(1)
        mean = all_reduce_sum(torch.cat([q.max(1).values.mean().unsqueeze(0), q.mean(0)])) / world_size()
        self.confidence.lerp_(mean[0], 1 - decay)
        self.classes.lerp_(mean[1:], 1 - decay)

    def aligned(self, logits: Tensor) -> Tensor:
        """Return logits [M, C] of probabilities divided by `classes`, so that no class is preferred."""
        return at_least_float32(logits) - self.classes.clamp_min(1e-6).log()

    def threshold(self, logits: Tensor, by_class: bool) -> Tensor:
        """Return the adaptive threshold: the average confidence, a scalar.

        Args:
            logits: [M, C]; the largest of a row decides its class.
            by_class: return a threshold for each row, [M], which is lower for classes that are predicted less
                often.
        """
        if not by_class:
            return self.confidence
        return self.confidence * (self.classes / self.classes.max())[logits.argmax(1)]


def confident_guesses(logits: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable class of each row, int64 [M], and whether its probability is enough, bool [M].

    Args:
        logits: [M, C]; no gradient flows back.
        threshold: tau, least probability of a confident guess; one for all rows, or one per row, [M].
    """
    confidence, guess = at_least_float32(logits.detach()).softmax(1).max(1)
    return guess, confidence >= threshold


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of the rows in the mask, divided by the number of all rows.

    Because the sum is divided by all rows, not by those in the mask, the term gains weight as the network
    becomes confident.

    Args:
        logits: [M, C].
        targets: int64 [M].
        mask: bool [M].
    """
    return (F.cross_entropy(at_least_float32(logits), targets, reduction="none") * mask).mean()


def fixmatch_loss(
    logits_labeled: Tensor,
    labels: Tensor,
    logits_weak: Tensor,
    logits_strong: Tensor,
    threshold: float | Tensor = 0.95,
    unlabeled_weight: float = 1.0,
    class_weights: Tensor | None = None,
) -> FixMatchTerms:
    """Compute FixMatch's loss.

    Args:
        logits_labeled: [B, C], of the labelled rows' weak views.
        labels: int64 [B], or shares of the classes, see `label_loss`.
        logits_weak: [M, C], of the unlabelled rows' weak views; no gradient flows back.
        logits_strong: [M, C], of the same rows' strong views.
        threshold: tau, one for all rows or one per row, [M]; 0.95 in the paper (0.7 on ImageNet).
        unlabeled_weight: lambda_u; 1 in the paper (10 on ImageNet).
        class_weights: weight of each class in the supervised loss, see `label_loss`; the paper has none.

    Raises:
        ValueError: weak and strong logits differ in shape.
    """
    if logits_weak.shape != logits_strong.shape:
        raise ValueError(
            f"FixMatch: expected weak and strong logits of one shape, got {list(logits_weak.shape)} and "
            f"{list(logits_strong.shape)}"
        )
    supervised = label_loss(logits_labeled, labels, class_weights)
    guess, mask = confident_guesses(logits_weak, threshold)
    unsupervised = masked_cross_entropy(logits_strong, guess, mask)
    mask_rate = mask.to(torch.float32).mean()
    return FixMatchTerms(supervised + unlabeled_weight * unsupervised, supervised, unsupervised, mask_rate)
