"""The quality of features during pre-training: kNN and a linear probe every few epochs.

The backbone runs in evaluation mode and without gradients, and the random generators of training are left
alone, so a run with a probe ends with exactly the same weights as a run without. A measurement takes one
forward pass over both splits, shared by the ranks, and the fit of the probe on rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.evaluate.collapse import effective_rank, feature_std
from engine.evaluate.knn import knn_scores
from engine.evaluate.linear_probe import fit_linear_probe
from engine.evaluate.representations import extract_features, topk_accuracy
from engine.train.distributed import gather_on_main, on_main, rank
from engine.train.metrics import MetricsWriter, read_metrics
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError
from loaders.packs import Pack, Split
from loaders.packs.labels.leaks import shared_rows
from loaders.packs.labels.subsample import validation_part

PROBE_NAME = "probe.jsonl"
_NEIGHBOURS = 20
_MAX_ITERATIONS = 100
_HELD_OUT = 0.2


@dataclass(frozen=True)
class OnlineProbe:
    """When to measure features, and on which images.

    Attributes:
        train: this rank's share of the labelled images for neighbours and for the fit of the probe, in order.
        test: this rank's share of the labelled images to measure on.
        every_epochs: epochs between measurements.
    """

    train: Loader[Batch]
    test: Loader[Batch]
    every_epochs: int

    def measure(self, backbone: nn.Module, device: torch.device, out: Path) -> dict[str, float]:
        """Measure the frozen features; every rank must call this, and all get the same result.

        Args:
            backbone: maps views to representations, on `device`; afterwards each module has its former mode.
            out: run folder, in whose `bad_rows.jsonl` images that cannot be read are recorded.

        Returns:
            `knn_top1`, `linear_top1`, `feature_std` and `effective_rank` (see `engine.evaluate.collapse`) of
            the test images, `num_features` and `seconds`.

        Raises:
            UserError: a split has no labels, or the images to learn from are of one class.
        """
        start = time.perf_counter()
        bank, query = (self._labelled(loader, backbone, device, out) for loader in (self.train, self.test))
        accuracies = on_main(lambda: _accuracies(bank, query))
        return {**accuracies, "seconds": time.perf_counter() - start}

    def _labelled(
        self, loader: Loader[Batch], backbone: nn.Module, device: torch.device, out: Path
    ) -> tuple[Tensor, Tensor]:
        features = gather_on_main(extract_features(backbone, loader, device, out))
        parts = [part.labelled() for part in features]
        if not parts:  # on all ranks but 0, which only send their share
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        return torch.cat([p.h for p in parts]), torch.cat([p.labels for p in parts])


def _accuracies(bank: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor]) -> dict[str, float]:
    (bank_h, bank_labels), (query_h, query_labels) = bank, query
    if not len(bank_labels) or not len(query_labels):
        raise UserError("online probe: expected two labelled splits, found one without labels")
    num_classes = int(torch.cat([bank_labels, query_labels]).max()) + 1
    votes = knn_scores(bank_h, bank_labels, query_h, num_classes, min(_NEIGHBOURS, len(bank_h)))
    probe = fit_linear_probe(bank_h, bank_labels, num_classes, max_iterations=_MAX_ITERATIONS)
    return {
        "knn_top1": topk_accuracy(votes, query_labels),
        "linear_top1": topk_accuracy(probe.logits(query_h), query_labels),
        "feature_std": feature_std(query_h),
        "effective_rank": effective_rank(query_h),
        "num_features": query_h.shape[1],
    }


def probe_images(pack: Pack, splits: Sequence[str]) -> tuple[Split, Split]:
    """Return the images to learn from and those to measure on.

    Args:
        splits: names of both splits; or of one, of which about a fifth of each class is held out to measure
            on. That fifth is the same in every run, and copies of its images are left out of the rest.

    Raises:
        UserError: a split does not exist or has no labels, or the first one has too few classes or too few
            different images to learn from.
    """
    for name in splits:
        pack.manifest.require_labels(pack.split(name).name, "probe_splits")
    split = pack.split(splits[0])
    known = split.labels()
    if len(np.unique(known[known >= 0])) < 2:
        raise UserError(
            f"probe_splits: expected two classes or more in {split.name!r}, found one; name another split"
        )
    if len(splits) == 2:
        return split, pack.split(splits[1])
    part = validation_part(known, _HELD_OUT, seed=0)
    measured, rest = split.take(np.flatnonzero(part)), np.flatnonzero((known >= 0) & ~part)
    own, copies = shared_rows(pack, split.rows(rest), measured)
    if (own | copies).all():
        raise UserError(
            f"probe_splits: expected images in {split.name!r} that differ from the fifth held out, found "
            "only copies; name two splits"
        )
    return split.take(rest[~(own | copies)]), measured


class ProbeRecorder:
    """Measures features at the end of every few epochs and of the run; appends results to `probe.jsonl`."""

    def __init__(
        self, probe: OnlineProbe, out: Path, start_step: int, steps_per_epoch: int, total_steps: int
    ) -> None:
        """Open the file on rank 0.

        Args:
            probe: what to measure and how often.
            out: run folder.
            start_step: steps done so far; lines of later steps are dropped, since those steps are repeated.
            steps_per_epoch: steps of an epoch of the run.
            total_steps: steps of the run; there is a measurement after the last.
        """
        self._probe, self._out = probe, out
        self._every_steps = steps_per_epoch * probe.every_epochs
        self._total_steps = total_steps
        self._writer = MetricsWriter(out / PROBE_NAME, start_step) if rank() == 0 else None

    def after_step(self, step: int, backbone: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure if a measurement is due; every rank must call this.

        Returns:
            The step and the result of `measure`; empty if no measurement is due.
        """
        if step % self._every_steps and step != self._total_steps:
            return {}
        record = {"step": step, **self._probe.measure(backbone, device, self._out)}
        if self._writer is not None:
            self._writer.write(record)
        return record

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def read_probe(out: Path) -> list[dict[str, Any]]:
    """Read the measurements of a run, in order; an empty list if the run had no probe."""
    return read_metrics(out / PROBE_NAME)
