"""Time seven objectives, forward and backward, against plain loops that compute the same.

Example:
    python tools/bench_objectives.py --json objectives.jsonl

A plain version computes one row of a batch or a matrix at a time. Before the timing, both versions must give
the same values and gradients, within rounding. They take turns; the table has medians over the rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig


@dataclass(frozen=True)
class Config(RecordConfig):
    """Benchmark of objectives."""

    batch_size: Count = 256
    """Images, and so embeddings of each view, B."""
    embedding: Count = 512
    """Features of an embedding, D."""
    classes: Count = 100
    """Classes of FixMatch."""
    runs: Count = 5
    """Rounds; each version is timed once in every round."""
    num_threads: Count = 2
    """Threads of torch."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from engine.objectives.barlow import barlow_twins_loss
from engine.objectives.fixmatch import fixmatch_loss
from engine.objectives.jigsaw import shuffle_tiles
from engine.objectives.rotnet import rotate_four
from engine.objectives.simclr import simclr_loss
from engine.objectives.triplet import triplet_loss
from engine.objectives.vicreg import vicreg_loss
from loaders.common.tables import print_table
from tools.bench.process import machine
from tools.bench.records import append_record

Kernel = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One objective in two versions, ours and the plain one, with inputs for both.

    Attributes:
        ours: maps the inputs to a loss or to images.
        plain: computes the same in a loop.
        inputs: tensors; gradients are computed for the floating-point ones.
    """

    name: str
    ours: Kernel
    plain: Kernel
    inputs: tuple[Tensor, ...]


def barlow(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return equation 1 of Barlow Twins for standardised embeddings, one row of the matrix C at a time."""
    loss = torch.zeros(())
    for i in range(z_a.shape[1]):
        c = (z_a[:, i : i + 1] * z_b).mean(0)
        target = F.one_hot(torch.tensor(i), len(c))
        weight = torch.where(target == 1, 1.0, 0.0051)
        loss = loss + (weight * (c - target).square()).sum()
    return loss


def simclr(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the loss of equation 1 of SimCLR, one view at a time."""
    z, count = F.normalize(torch.cat([z_a, z_b]), dim=1), len(z_a)
    losses = []
    for i in range(len(z)):
        similarity = z @ z[i] / 0.1
        others = torch.arange(len(z)) != i
        losses.append(torch.logsumexp(similarity[others], 0) - similarity[(i + count) % len(z)])
    return torch.stack(losses).mean()


def vicreg(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the loss of algorithm 1 of VICReg, one row of the covariance matrix at a time."""
    loss = 25.0 * F.mse_loss(z_a, z_b)
    for z in (z_a, z_b):
        centred, size = z - z.mean(0), z.shape[1]
        for i in range(size):
            row = (centred[:, i : i + 1] * centred).sum(0) / (len(z) - 1)
            others = torch.arange(size) != i
            loss = loss + 25.0 * torch.relu(1.0 - (row[i] + 1e-4).sqrt()) / size
            loss = loss + row[others].square().sum() / size
    return loss


def triplet(anchor: Tensor, positive: Tensor) -> Tensor:
    """Return the hinge loss of triplets, one image at a time."""
    losses = []
    for i in range(len(anchor)):
        near = F.cosine_similarity(anchor[i], positive[i], dim=0)
        far = F.cosine_similarity(anchor[i], positive[(i + 1) % len(anchor)], dim=0)
        losses.append(torch.relu(far - near + 0.5))
    return torch.stack(losses).mean()


def fixmatch(labeled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
    """Return the sum of the losses of equations 3 and 4 of FixMatch, one unlabelled image at a time."""
    loss = F.cross_entropy(labeled, labels)
    for guess, logits in zip(weak.detach().softmax(1), strong, strict=True):
        if float(guess.max()) >= 0.5:
            loss = loss + F.cross_entropy(logits, guess.argmax()) / len(weak)
    return loss


def rotations(x: Tensor) -> Tensor:
    """Return images in four rotations, one image at a time."""
    return torch.stack([torch.rot90(image, turns, (1, 2)) for turns in range(4) for image in x])


def tiles(x: Tensor, permutations: Tensor, choice: Tensor) -> Tensor:
    """Return images with shuffled tiles, one image at a time."""
    return torch.stack([image[permutations[c]] for image, c in zip(x, choice, strict=True)])


def cases(config: Config) -> list[Case]:
    """Return the objectives to time, with random inputs."""
    torch.manual_seed(0)
    rows, size, classes = config.batch_size, config.embedding, config.classes
    z_a = torch.randn(rows, size)
    z_b = z_a + torch.randn(rows, size)
    labels, logits = torch.randint(classes, (rows,)), [4 * torch.randn(rows, classes) for _ in range(3)]
    images, cells = torch.randn(rows, 3, 32, 32), torch.randn(rows, 9, 3, 10, 10)
    orders = torch.stack([torch.randperm(9) for _ in range(100)])
    choice = torch.randint(100, (rows,))
    return [
        Case("Barlow Twins", lambda a, b: barlow_twins_loss(a, b).loss, barlow, (z_a, z_b)),
        Case("SimCLR", lambda a, b: simclr_loss(a, b).loss, simclr, (z_a, z_b)),
        Case("VICReg", lambda a, b: vicreg_loss(a, b).loss, vicreg, (z_a, z_b)),
        Case("triplet", lambda a, b: triplet_loss(a, b).loss, triplet, (z_a, z_b)),
        Case(
            *("FixMatch", lambda a, y, w, s: fixmatch_loss(a, y, w, s, 0.5).loss, fixmatch),
            (logits[0], labels, logits[1], logits[2]),
        ),
        Case("four rotations", rotate_four, rotations, (images,)),
        Case("shuffled tiles", shuffle_tiles, tiles, (cells, orders, choice)),
    ]


def step(kernel: Kernel, inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """Return a kernel's value, and the gradient of the sum of its squares for each floating-point input."""
    fresh = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    value = kernel(*fresh)
    value.square().sum().backward()  # type: ignore[no-untyped-call]
    return value.detach(), [t.grad for t in fresh if t.is_floating_point()]


def check(case: Case) -> None:
    """Raise RuntimeError unless both versions give the same values and gradients, within rounding."""
    (value, gradients), (expected, others) = step(case.ours, case.inputs), step(case.plain, case.inputs)
    pairs = [(value, expected), *zip(gradients, others, strict=True)]
    for found, plain in pairs:
        if found is None or plain is None:
            same = (found is None and plain is None) or not (plain if found is None else found).any()  # type: ignore[union-attr]
        else:
            same = torch.allclose(found, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
        if not same:
            raise RuntimeError(f"{case.name}: ours and the plain version differ")


def time_once(kernel: Kernel, inputs: tuple[Tensor, ...], at_least_s: float = 0.2) -> float:
    """Return the seconds per forward and backward pass, averaged over at least `at_least_s` seconds."""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < at_least_s:
        step(kernel, inputs)
        count += 1
    return (time.perf_counter() - start) / count


def run(config: Config) -> list[dict[str, Any]]:
    """Check and time every objective; return one record for each, also appended to --json."""
    torch.set_num_threads(config.num_threads)
    described = {"threads": config.num_threads, "torch": str(torch.__version__), **machine()}
    sizes = {"batch_size": config.batch_size, "embedding": config.embedding, "classes": config.classes}
    records = []
    for case in cases(config):
        check(case)
        ours, plain = [], []
        for _ in range(config.runs):
            ours.append(time_once(case.ours, case.inputs))
            plain.append(time_once(case.plain, case.inputs))
        record = {"objective": case.name, "ours_s": ours, "plain_s": plain, **sizes, **described}
        records.append(record)
        append_record(config.json, record)
    return records


def render(records: list[dict[str, Any]]) -> Table:
    """Return a table of the medians in milliseconds and their ratio."""
    table = Table("objective", "ours, ms", "plain, ms", "times faster", title="forward and backward, medians")
    for record in records:
        ours, plain = (1000 * statistics.median(record[name]) for name in ("ours_s", "plain_s"))
        table.add_row(record["objective"], f"{ours:.2f}", f"{plain:.1f}", f"{plain / ours:.0f}")
    return table


def main() -> None:
    """Parse the command line and run."""
    print_table(Console(), render(run(command_line(Config, __doc__))))


if __name__ == "__main__":
    run_command(main)
