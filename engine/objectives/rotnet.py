"""RotNet: predict by how many quarter turns an image was rotated.

Source: Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image
Rotations", equations 1 to 3.

Shapes: B rows of this rank, C channels, H = W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.objectives.cross_entropy import PretextTerms, pretext_loss

NUM_ROTATIONS = 4


def rotate_four(x_BCHW: Tensor) -> Tensor:
    """Turn every image counter-clockwise by 0, 90, 180 and 270 degrees.

    Args:
        x_BCHW: [B, C, H, W] with H = W.

    Returns:
        [4 * B, C, H, W] in the memory format of the input; the first B rows are not turned, the next B by
        90 degrees, and so on.

    Raises:
        ValueError: the shape is not [B, C, H, H].
    """
    if x_BCHW.ndim != 4 or x_BCHW.shape[2] != x_BCHW.shape[3]:
        raise ValueError(f"RotNet: expected square images [B, C, H, H], got {list(x_BCHW.shape)}")
    channels_last = x_BCHW.is_contiguous(memory_format=torch.channels_last)
    turned = torch.cat([torch.rot90(x_BCHW, turns, (2, 3)) for turns in range(NUM_ROTATIONS)])
    return turned.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def rotnet_loss(logits: Tensor) -> PretextTerms:
    """Compute the cross-entropy of the rotations, averaged over the rank's rows.

    Args:
        logits: [4 * B, 4], for the rows of `rotate_four`; any float dtype, computed in float32 or wider.

    Returns:
        The loss, and the share of rotations predicted correctly.

    Raises:
        ValueError: logits have another shape.
    """
    if logits.ndim != 2 or logits.shape[1] != NUM_ROTATIONS or len(logits) % NUM_ROTATIONS:
        raise ValueError(f"RotNet: expected logits [4 * B, 4], got {list(logits.shape)}")
    turns = torch.arange(NUM_ROTATIONS, device=logits.device).repeat_interleave(len(logits) // NUM_ROTATIONS)
    return pretext_loss(logits, turns)
