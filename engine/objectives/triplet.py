"""Triplet loss: two views of one image are nearer to each other than views of different images.

Source: Wang, Gupta 2015, "Unsupervised Learning of Visual Representations using Videos", equations 1 and 2;
their pairs are two frames of a track, those here are two views of an image.

Shapes: B rows of this rank, D latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.choices import TripletDistance
from engine.train.distributed import all_gather, rank, world_size


@dataclass(frozen=True)
class TripletTerms:
    """The loss and the share of triplets in order, scalars averaged over the rank's rows.

    Attributes:
        loss: max(0, distance to the positive - distance to the negative + margin).
        ordered: share of anchors nearer to their positive than to their negative, without gradient.
    """

    loss: Tensor
    ordered: Tensor


def triplet_loss(
    anchor_BD: Tensor, positive_BD: Tensor, margin: float = 0.5, distance: TripletDistance = "cosine"
) -> TripletTerms:
    """Compute the hinge loss of triplets: an anchor, its positive, and as negative the next image's positive.

    The next image is that of the next row in the joined batch of all ranks; the first row follows the last.

    Args:
        anchor_BD: [B, D], any scale, float32 or wider; no row is zero.
        positive_BD: [B, D], other views of the same images.
        margin: 0.5 in the paper.
        distance: "cosine" is 1 - cosine similarity, as in the paper; "euclidean" depends on the scale of the
            embeddings.

    Raises:
        ValueError: shapes differ or are not [B, D], or there are fewer than two images over all ranks.
    """
    if anchor_BD.ndim != 2 or anchor_BD.shape != positive_BD.shape:
        raise ValueError(
            f"triplets: expected two [B, D], got {list(anchor_BD.shape)} and {list(positive_BD.shape)}"
        )
    num_rows = len(anchor_BD) * world_size()
    if num_rows < 2:
        raise ValueError("triplets: expected at least 2 images, got 1; raise the batch size")
    joined = all_gather(positive_BD)
    negative_BD = joined.roll(-1, 0).chunk(world_size())[rank()]
    to_positive, to_negative = (
        1.0 - F.cosine_similarity(anchor_BD, other, dim=1)
        if distance == "cosine"
        else F.pairwise_distance(anchor_BD, other)
        for other in (positive_BD, negative_BD)
    )
    ordered = (to_positive < to_negative).float().mean().detach()
    return TripletTerms(torch.relu(to_positive - to_negative + margin).mean(), ordered)
