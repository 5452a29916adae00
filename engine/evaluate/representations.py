"""Representations of a frozen backbone, and the accuracy of predictions from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.evaluate.predict import evaluation_mode
from engine.train.bad_rows import read_in_order
from loaders.batch import Batch, Loader


@dataclass(frozen=True)
class Features:
    """Representations of N images, on the CPU, in the order in which the loader gave them.

    Attributes:
        h: float32 [N, D], or float16 on disk, backbone outputs, not normalised.
        labels: int64 [N], -1 where an image has no label.
        index: int64 [N], row of each image in the pack.
    """

    h: Tensor
    labels: Tensor
    index: Tensor

    def labelled(self) -> Features:
        """Keep the images that have a label."""
        kept = self.labels >= 0
        if bool(kept.all()):  # no copy: the array may be on the disk
            return self
        return Features(self.h[kept], self.labels[kept], self.index[kept])

    def taken(self, rows: NDArray[np.int64]) -> Features:
        """Keep the images of these rows of the pack, int64 [K]; unreadable images are absent."""
        kept = torch.isin(self.index, torch.from_numpy(rows))
        return Features(self.h[kept], self.labels[kept], self.index[kept])


@torch.inference_mode()
def extract_features(
    backbone: nn.Module, loader: Loader[Batch], device: torch.device | str, out: Path
) -> Features:
    """Run a backbone in evaluation mode over every valid image of a loader.

    Args:
        backbone: maps [B, 3, H, W] to h [B, D]; on `device`; the mode of each of its modules is restored.
        loader: yields every image once per epoch; the first view is used, padding rows are dropped.
        device: where the batches lie.
        out: folder whose `bad_rows.jsonl` names the images that could not be read.

    Returns:
        The representations; all labels are -1 if the loader was built without labels.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluation_mode(backbone):
        for batch in read_in_order(loader, out, device):
            h = backbone(batch.views[0].to(device))
            labels = torch.full_like(batch.index, -1) if batch.labels is None else batch.labels
            valid = batch.valid
            parts.append((h[valid.to(h.device)].float().cpu(), labels[valid].cpu(), batch.index[valid].cpu()))
    h, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(h, labels, index)


def topk_accuracy(scores: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """Share of images whose label is among the `top_k` highest scores.

    Args:
        scores: float [N, C], higher is more likely; logits, votes or probabilities. Among several guesses is
            no class whose logit is not finite, or that has no vote, where no score is below 0.
        labels: int64 [N], in [0, C).
        top_k: how many guesses an image has.

    Returns:
        A share in [0, 1].
    """
    guesses = scores.argmax(1, keepdim=True) if top_k == 1 else scores.topk(top_k, dim=1).indices
    found = guesses == labels[:, None]
    if top_k > 1:
        found &= scores.gather(1, guesses) > (0.0 if bool((scores >= 0).all()) else -torch.inf)
    return float(found.any(1).double().mean())
