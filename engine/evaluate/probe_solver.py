"""Logistic regression on frozen features, in memory or on disk, with several penalties at once.

The weights for S penalties and C classes form one matrix [D, S x C], so that one product with a batch gives
all logits, and another all gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.evaluate.linear_probe import LinearProbe, fit_linear_probe
from engine.train.schedule import warmup_cosine
from loaders.common.notice import tell

PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalties (scikit-learn's C) to choose from."""
MAX_FLOPS = 3.0e13
"""Floating-point operations of a fit, about six minutes on two cores. They determine the number of passes
over the data, which is at least 8 and at most 60."""
MOST_NUMBERS = 2_000_000_000
"""scikit-learn's solver is used up to this product of images, features and classes."""
_CHUNK = 16_384
_BATCH = 2048


@dataclass(frozen=True)
class ChosenProbe:
    """The probe with the highest accuracy on held-out images.

    Attributes:
        probe: probe fitted with the chosen penalty.
        inverse_penalty: the chosen penalty, as scikit-learn's C.
        accuracies: accuracy on the held-out images for each penalty, in the order given.
        passes: number of passes over the features.
    """

    probe: LinearProbe
    inverse_penalty: float
    accuracies: tuple[float, ...]
    passes: int


@torch.no_grad()
def fit_probes(
    h: Tensor | _Rows,
    labels: Tensor,
    num_classes: int,
    held_h: Tensor,
    held_labels: Tensor,
    inverse_penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
    passes: int | None = None,
) -> ChosenProbe:
    """Fit one probe per penalty by Adam on standardised features, and choose the best on held-out images.

    Each probe minimises scikit-learn's objective: the summed cross-entropy times the inverse penalty, plus
    half the squared norm of the weights. The learning rate falls to zero along a cosine, so that the last
    passes average over many batches.

    Args:
        h: float [N, D], such as a memory-mapped float16.
        labels: int64 [N], in [0, num_classes).
        held_h: float [M, D], features of the held-out images.
        held_labels: int64 [M].
        inverse_penalties: S values, scikit-learn's C.
        seed: seed of the order of images.
        passes: passes over the features; by default as many as `MAX_FLOPS` allows, from 8 to 60.

    Source: Kingma and Ba 2015 (Adam); the cosine of Loshchilov and Hutter 2017.
    """
    size, width = h.shape[1], len(inverse_penalties) * num_classes
    if passes is None:
        passes = min(60, max(8, int(MAX_FLOPS / (4.0 * len(h) * size * width))))
    mean, std = mean_and_deviation(h)
    weight, bias = torch.zeros(size, width), torch.zeros(width)
    batch = min(_BATCH, max(64, len(h) // 16))
    steps = passes * math.ceil(len(h) / batch)
    decay = (1.0 / (torch.tensor(inverse_penalties) * len(h))).repeat_interleave(num_classes)
    schedule, peak = warmup_cosine(steps, 0), 0.5 / math.sqrt(size)
    optimizer = torch.optim.Adam([weight, bias])
    for step, rows in enumerate(_batches(len(h), batch, passes, seed)):
        x = (h[rows].float() - mean) / std
        logits = torch.addmm(bias, x, weight).view(len(x), -1, num_classes)
        error = logits.softmax(2)
        error[torch.arange(len(x)), :, labels[rows]] -= 1.0
        error = error.view(len(x), width) / len(x)
        weight.grad, bias.grad = torch.addmm(weight * decay, x.T, error), error.sum(0)
        optimizer.param_groups[0]["lr"] = peak * schedule(step)
        optimizer.step()
    probes = [
        _fold(weight[:, place : place + num_classes], bias[place : place + num_classes], mean, std, labels)
        for place in range(0, width, num_classes)
    ]
    found = tuple(_accuracy(probe, held_h, held_labels) for probe in probes)
    best = max(range(len(found)), key=lambda place: found[place])
    return ChosenProbe(probes[best], inverse_penalties[best], found, passes)


def fit_probe(h: Tensor, labels: Tensor, num_classes: int, inverse_penalty: float) -> LinearProbe:
    """Fit a probe by scikit-learn if that takes minutes at most, else by `fit_probes`.

    Args:
        h: float [N, D].
        labels: int64 [N], in [0, num_classes).
        inverse_penalty: scikit-learn's C. Beyond `MOST_NUMBERS` it is ignored, and the best of `PENALTIES` is
            chosen on a tenth of the images, which are held out.

    Raises:
        UserError: see `fit_linear_probe`, if that is used.
    """
    if h.numel() * num_classes <= MOST_NUMBERS:
        return fit_linear_probe(h, labels, num_classes, inverse_penalty)
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(0))
    held, used = (part.sort().values for part in torch.split(order, [len(h) // 10, len(h) - len(h) // 10]))
    found = fit_probes(_Rows(h, used), labels[used], num_classes, h[held], labels[held])
    shown = ", ".join(f"{c:g}: {a:.1%}" for c, a in zip(PENALTIES, found.accuracies, strict=True))
    tell(f"linear probe: {found.passes} passes, C chosen on {len(held):,} of the images ({shown})")
    return found.probe


class _Rows:
    """Some rows of a tensor on disk, as `fit_probes` needs them; only the rows that are indexed are read."""

    def __init__(self, h: Tensor, rows: Tensor) -> None:
        self._h, self._rows = h, rows
        self.shape = (len(rows), h.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        return self._h[self._rows[which]]


def mean_and_deviation(h: Tensor | _Rows) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature, float32 [D]; 1 replaces a deviation near 0."""
    total, squares = (
        torch.zeros(h.shape[1], dtype=torch.float64),
        torch.zeros(h.shape[1], dtype=torch.float64),
    )
    for first in range(0, len(h), _CHUNK):
        part = h[first : first + _CHUNK].double()
        total += part.sum(0)
        squares += part.square().sum(0)
    mean = total / len(h)
    std = (squares / len(h) - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))
    return mean.float(), std.float()


def _batches(num_rows: int, batch: int, passes: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        # Rows of a batch in increasing order, so that a disk reads in one direction.
        order = torch.randperm(num_rows, generator=generator)
        yield from (part.sort().values for part in torch.split(order, batch))


def _fold(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor, labels: Tensor) -> LinearProbe:
    folded = (weight / std.unsqueeze(1)).T.contiguous()
    shifted = bias - folded @ mean
    absent = torch.ones(len(bias), dtype=torch.bool)
    absent[torch.unique(labels)] = False
    shifted[absent] = -math.inf
    return LinearProbe(folded, shifted, True)


def _accuracy(probe: LinearProbe, h: Tensor, labels: Tensor) -> float:
    guesses = [probe.logits(part.float()).argmax(1) for part in torch.split(h, _CHUNK)]
    return float((torch.cat(guesses) == labels).double().sum()) / max(1, len(labels))
