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
    """Representations of N images, on the CPU.

    Attributes:
        h: outputs of a network, such as a backbone: float32 [N, D], or float16 from a feature store.
        labels: int64 [N], -1 where an image has no label.
        index: int64 [N], row of the pack of each image.
    """

    h: Tensor
    labels: Tensor
    index: Tensor

    def labelled(self) -> Features:
        """Return the features of the images that have a label."""
        kept = self.labels >= 0
        if bool(kept.all()):  # avoids a copy, since the array may be memory-mapped
            return self
        return Features(self.h[kept], self.labels[kept], self.index[kept])

    def taken(self, rows: NDArray[np.int64]) -> Features:
        """Return the features of those images whose `index` is in `rows` (int64 [K]), in unchanged order."""
        kept = torch.isin(self.index, torch.from_numpy(rows))
        return Features(self.h[kept], self.labels[kept], self.index[kept])


@torch.inference_mode()
def extract_features(
    backbone: nn.Module, loader: Loader[Batch], device: torch.device | str, out: Path
) -> Features:
    """Run a backbone in evaluation mode over every image of a loader that can be read.

    Args:
        backbone: maps [B, 3, H, W] to h [B, D], on `device`; afterwards each module has its former mode.
        loader: yields every image once per epoch; only the first view is used, and padding rows are dropped.
        out: folder in whose `bad_rows.jsonl` images that cannot be read are recorded.

    Returns:
        The representations in the order of the loader; all labels are -1 if the loader has none.
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
    """Return the share of images whose class has one of the `top_k` highest scores.

    Args:
        scores: float [N, C], logits, votes or probabilities; higher is more likely. If `top_k` is above 1,
            classes with the score -inf or NaN never count as guesses, nor do classes with the score 0 if all
            scores are 0 or more.
        labels: int64 [N], the class of each image, in [0, C).
        top_k: guesses per image.
    """
    guesses = scores.argmax(1, keepdim=True) if top_k == 1 else scores.topk(top_k, dim=1).indices
    found = guesses == labels[:, None]
    if top_k > 1:
        found &= scores.gather(1, guesses) > (0.0 if bool((scores >= 0).all()) else -torch.inf)
    return float(found.any(1).double().mean())
