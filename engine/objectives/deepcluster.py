"""DeepCluster: predict the cluster of an image; every cluster counts the same.

Source: Caron, Bojanowski, Joulin, Douze 2018, "Deep Clustering for Unsupervised Learning of Visual
Features", equation 1 and section 3.3: sampling images uniformly over clusters is equivalent to weighting the
loss by the inverse of the cluster's size. With weights, the loader's order is independent of the clusters.

Shapes: B rows of this rank, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.objectives.cross_entropy import PretextTerms, label_loss


def cluster_weights(assignment: Tensor, num_clusters: int) -> Tensor:
    """Return the weight of each cluster: number of images / (number of non-empty clusters * its size).

    Args:
        assignment: int64 [N], the cluster of every image of the split, in [0, num_clusters).
        num_clusters: K.

    Returns:
        float32 [K], 0 for an empty cluster; the mean over all images is 1.
    """
    sizes = torch.bincount(assignment, minlength=num_clusters).float()
    filled = sizes > 0
    return torch.where(filled, len(assignment) / (filled.sum() * sizes.clamp_min(1.0)), 0.0)


def deepcluster_loss(logits_BK: Tensor, assignment: Tensor, weights: Tensor) -> PretextTerms:
    """Compute the weighted cross-entropy, averaged over the rank's rows.

    The weights are not normalised within a batch, so that the mean over ranks is the mean over the joined
    batch, and its expectation is the mean over clusters.

    Args:
        logits_BK: [B, K], any float dtype; computed in float32 or wider.
        assignment: int64 [B], in [0, K).
        weights: [K], from `cluster_weights` of the whole split.

    Returns:
        The loss, and the share of images whose cluster is predicted correctly.

    Raises:
        ValueError: shapes do not match.
    """
    if logits_BK.ndim != 2 or len(assignment) != len(logits_BK) or weights.shape != logits_BK.shape[1:]:
        raise ValueError(
            f"DeepCluster: expected logits [B, K], assignment [B] and weights [K], got "
            f"{list(logits_BK.shape)}, {list(assignment.shape)} and {list(weights.shape)}"
        )
    top1 = (logits_BK.detach().argmax(1) == assignment).float().mean()
    return PretextTerms(label_loss(logits_BK, assignment, weights), top1)
