"""The tables of docs/results.md as data: their rows, the commands of each row, and their budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Results = Literal["classifier", "ablation", "features", "peer"]
"""Source of a row's accuracies. classifier: recipes/evaluate.py on the last stage's run. ablation: the
ablation.json of recipes/pipeline.py. features: the few_labels.json of tools/few_labels.py, which covers all
numbers of labels and all seeds. peer: the peer.json that the wrapper of a peer writes."""

LINES = ("", ", one view in the test")
"""Ends of the titles of a row's lines: the accuracy with all views of the test, and that with one view."""


@dataclass(frozen=True)
class Stage:
    """One command of a row. In its options, `{name}` stands for the run folder of the row's stage `name`.

    Attributes:
        name: name of the stage's run folder.
        script: path of the script, relative to the project's root.
        options: options that do not depend on the length of the run.
        share: share of the row's budget; the shares of a row sum to at most 1.
        labels: whether the command gets options that choose the labels.
        lengths: options for the length of the training, each with its value per step that the budget allows;
            empty if the length is fixed.
    """

    name: str
    script: str
    options: tuple[object, ...] = ()
    share: float = 1.0
    labels: bool = True
    lengths: tuple[tuple[str, float], ...] = (("--steps", 1.0),)


@dataclass(frozen=True)
class Row:
    """A way of training that a table measures, in one or more lines.

    Attributes:
        name: name of the row on the command line, and part of its file names.
        title: title in the table.
        stages: commands, in the order in which they run.
        settings: alternative options for the last stage; short trials choose those that are trained in full.
        reads_unlabeled: whether the row learns from images without labels.
        baseline: whether the other rows are compared with this one.
        labels_per_class: columns of the table at which the row is measured; () for all.
        results: see `Results`.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    settings: tuple[tuple[object, ...], ...] = ((),)
    reads_unlabeled: bool = False
    baseline: bool = False
    labels_per_class: tuple[int, ...] = ()
    results: Results = "classifier"


@dataclass(frozen=True)
class ResultTable:
    """One table.

    Attributes:
        name: name on the command line.
        title: title of its page.
        rows: rows, which share the budget, the choice of labels and the number of settings tried.
        labels_per_class: columns; 0 stands for all labels.
        seeds: seeds of each column; a seed decides the labels, the first weights, the order and the views.
        budget_s: core seconds (user and system) for all training of a row with one seed and one number of
            labels, pre-training included. Tests and trials of settings do not count.
        trial_s: core seconds for the trial of one setting.
        chosen_at: labels per class in the trials; a quarter of them is held out for validation.
        calibration: steps of the two short runs from which the cost of a step is computed.
        testing: further options of recipes/evaluate.py.
        budget_of: name of a row of fixed length, or "" for none. Once that row is measured, its mean core
            seconds are the budget of the other rows; it is not limited itself.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    labels_per_class: tuple[int, ...]
    seeds: Mapping[int, tuple[int, ...]]
    budget_s: float
    trial_s: float = 0.0
    chosen_at: int = 0
    calibration: tuple[int, int] = (4, 16)
    testing: tuple[object, ...] = ()
    budget_of: str = ""

    def __post_init__(self) -> None:
        """Refuse rows that cannot be compared fairly, and columns without seeds."""
        tried = {len(row.settings) for row in self.rows}
        if len(tried) > 1:
            raise ValueError(
                f"{self.name}: expected equally many settings for every row, found {sorted(tried)}"
            )
        for row in self.rows:
            if sum(stage.share for stage in row.stages) > 1.0 + 1e-9:
                raise ValueError(f"{self.name}: the stages of {row.name} take more than the budget")
        if set(self.seeds) != set(self.labels_per_class):
            raise ValueError(f"{self.name}: expected seeds for every column, found {sorted(self.seeds)}")

    def columns_of(self, row: Row) -> tuple[int, ...]:
        """Return the numbers of labels per class at which a row is measured."""
        return row.labels_per_class or self.labels_per_class

    def digest_of(self, row: Row) -> str:
        """Return a hash of what decides a row's measurements; how a page shows them does not count."""
        own = (row.stages, row.settings, row.results, self.budget_s, self.budget_of, self.trial_s)
        decided = (*own, self.chosen_at, self.calibration, max(self.columns_of(row)), self.testing)
        return hashlib.sha256(repr(decided).encode()).hexdigest()[:8]
