"""Progressive resizing: training begins with small views, which cost less, and ends with full-size views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from engine.nets.backbones import check_resolution
from engine.train.options import OptimizerOptions
from engine.train.recipe import Recipe
from loaders.batch import Batch, PairedBatch

_MULTIPLE = 4  # pixels by which sides grow, so that a network that halves them twice loses no pixel


class Growth:
    """Shrinks the views of a batch to the side for the current step.

    The side is a pure function of the step, so a resumed run needs no state. The loader makes full-size views
    as always; only the finished views are shrunk.

    Source: Howard 2018, the DAWNBench entry of fast.ai ("Training Imagenet in 3 hours for $25"); Tan and Le
        2021, "EfficientNetV2" (arXiv 2104.00298), section 4, which calls it progressive learning.
    """

    def __init__(self, options: OptimizerOptions, total_steps: int, recipe: Recipe) -> None:
        """Check that the recipe's backbone takes the smallest views.

        Raises:
            UserError: the backbone cannot take them.
        """
        self._first, self._steps = options.start_resolution, options.grown_at * total_steps
        if self._first is None:
            return
        check_resolution(recipe.backbone, recipe.backbone_name, self._first)

    def side(self, full: int, step: int) -> int:
        """Return the side at a step, in pixels, of views whose full side is `full` pixels."""
        if self._first is None or self._first >= full or step >= self._steps:
            return full
        # One stage for each side below the full one, all of the same length.
        stages = -(-(full - self._first) // _MULTIPLE)
        stage = int(stages * step / self._steps)
        return min(full, self._first + _MULTIPLE * stage)

    def __call__(self, batch: Any, step: int) -> Any:
        """Return the batch with views [B, 3, side, side], unchanged if that is their full size."""
        if self._first is None or step >= self._steps:
            return batch
        if isinstance(batch, PairedBatch):
            return PairedBatch(self._shrink(batch.labeled, step), self._shrink(batch.unlabeled, step))
        return self._shrink(batch, step)

    def _shrink(self, batch: Batch, step: int) -> Batch:
        return replace(batch, views=tuple(self._resize(view, step) for view in batch.views))

    def _resize(self, view: Tensor, step: int) -> Tensor:
        side = self.side(view.shape[-1], step)
        if side == view.shape[-1]:
            return view
        # In float32, since torch has no antialiased resizing of 16-bit tensors on CPUs.
        shrunk = F.interpolate(view.float(), size=(side, side), mode="bilinear", antialias=True)
        return shrunk.to(view.dtype)
