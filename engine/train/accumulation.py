"""Gradient accumulation: the gradient of a whole batch, computed from parts that fit into memory.

Unless `Recipe.parts` is "none", it names one of two ways:

"rows": if the loss is a mean over rows, the mean of the parts' gradients is the gradient of the batch.

"embeddings": if the loss depends on all rows at once (Barlow Twins, VICReg, SimCLR), a first pass embeds the
parts without a graph. The loss of all embeddings gives the gradient of each embedding. A second pass embeds
the parts again, with a graph, and sends these gradients back through it. By the chain rule the result is the
gradient of the batch, at the cost of one more forward pass (the gradient cache of Gao et al. 2021, arXiv
2101.06983).

BatchNorm normalises each part by the part's own statistics, as it would in smaller batches. The running
statistics follow each part in one pass only: the second if there are two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.train.distributed import world_size
from engine.train.draws import drawing_part
from engine.train.recipe import Recipe, StepOutput
from engine.train.rng import rng_state, set_rng_state
from loaders.batch import Batch, Loader, PairedBatch
from loaders.common.errors import UserError


class Shell(nn.Module):
    """A recipe as a module whose `forward` computes a step's loss, as DistributedDataParallel (DDP) needs.

    `forward` returns a tuple and no `StepOutput`: with a static graph, DDP reduces the gradients of the first
    step only if it finds the loss in the output, and it does not look into classes of ours.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(
        self, batch: Any, step: int, gradients: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the metrics of a step.

        If the `gradients` of the embeddings are given, return in place of the loss a scalar whose backward
        pass sends these gradients through the network, and no metrics.
        """
        if gradients is None:
            output = self.recipe.training_step(batch, step)
            return output.loss, output.metrics
        pairs = zip(self.recipe.embed(batch), gradients, strict=True)
        return torch.stack([(z * gradient).sum() for z, gradient in pairs]).sum(), {}


class Accumulator:
    """Runs the forward and backward passes of a step, on the whole batch or part by part."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        accelerator: Accelerator,
        loader: Loader[Any],
        micro: int | None,
    ) -> None:
        """Work out the number of parts.

        Args:
            model: `Shell(recipe)`, prepared by the Accelerator.
            micro: number of images (labelled ones in paired batches) in a part on each process; None for one
                part.

        Raises:
            UserError: `micro` does not divide a process's share of the batch, or the recipe's loss cannot be
                computed from parts.
        """
        self._recipe, self._model, self._accelerator = recipe, model, accelerator
        per_rank = loader.batch_size // world_size()
        self.num_parts = 1 if micro is None else per_rank // micro
        if micro is not None and (self.num_parts < 1 or per_rank % micro):
            raise UserError(
                f"micro_batch: expected a divisor of the {per_rank} images of a step on each process, found "
                f"{micro}; change it or --batch-size"
            )
        if self.num_parts > 1 and recipe.parts == "none":
            raise UserError(
                f"micro_batch: expected none, since the loss of recipe {recipe.name!r} needs the whole "
                f"batch, found {micro}; leave it out"
            )

    def __call__(self, batch: Any, step: int) -> StepOutput:
        """Add the gradients of a batch to the parameters' `grad`; return loss and metrics for logging."""
        if self.num_parts == 1:
            output = StepOutput(*self._model(batch, step))
            self._accelerator.backward(output.loss)
            return output
        parts = cut(batch, self.num_parts)
        if self._recipe.parts == "embeddings":
            return self._by_embeddings(parts, step)
        outputs = []
        for number, part in enumerate(parts):
            with self._joining(number), drawing_part(number, self.num_parts):
                output = StepOutput(*self._model(part, step))
                loss = output.loss / self.num_parts
                self._accelerator.backward(loss)
            outputs.append(StepOutput(loss.detach(), output.metrics))
        names = outputs[0].metrics
        metrics = {name: torch.stack([o.metrics[name].double() for o in outputs]).mean() for name in names}
        return StepOutput(torch.stack([o.loss for o in outputs]).sum(), metrics)

    def _by_embeddings(self, parts: list[Any], step: int) -> StepOutput:
        device = self._accelerator.device
        drawn = rng_state(device)
        with torch.no_grad(), kept_buffers(self._recipe), self._accelerator.autocast():
            embedded = [self._recipe.embed(part) for part in parts]
        views = [torch.cat(column).requires_grad_() for column in zip(*embedded, strict=True)]
        with self._accelerator.autocast():
            output = self._recipe.embedding_loss(views, step)
        gradients = torch.autograd.grad(output.loss, views)
        set_rng_state(drawn, device)  # so that dropout is the same in the second pass
        cuts = zip(*(gradient.chunk(self.num_parts) for gradient in gradients), strict=True)
        for number, (part, back) in enumerate(zip(parts, cuts, strict=True)):
            with self._joining(number):
                self._accelerator.backward(self._model(part, step, back)[0])
        return replace(output, loss=output.loss.detach())

    def _joining(self, number: int) -> Any:
        """Return a context in which DDP reduces gradients over the ranks only for the last part."""
        return nullcontext() if number == self.num_parts - 1 else self._accelerator.no_sync(self._model)


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers, such as running statistics, at the end of the block."""
    kept = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, before in zip(module.buffers(), kept, strict=True):
        buffer.copy_(before)


def cut(batch: Batch | PairedBatch, num_parts: int) -> list[Any]:
    """Cut a batch, or both halves of a paired batch, into parts of equal size."""
    if isinstance(batch, PairedBatch):
        pairs = zip(cut(batch.labeled, num_parts), cut(batch.unlabeled, num_parts), strict=True)
        return [PairedBatch(labeled, unlabeled) for labeled, unlabeled in pairs]
    size = len(batch.index) // num_parts
    rows = [slice(size * number, size * (number + 1)) for number in range(num_parts)]
    return [
        Batch(
            tuple(view[part] for view in batch.views),
            None if batch.labels is None else batch.labels[part],
            batch.index[part],
            batch.valid[part],
        )
        for part in rows
    ]
