"""What a table of docs/results.md is made of: rows, their commands and their budget, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Results = Literal["classifier", "ablation", "features", "peer"]
"""Where the accuracies of a row come from: recipes/evaluate.py on its last classifier; the ablation.json of
recipes/pipeline.py; the few_labels.json of tools/few_labels.py, all numbers of labels and seeds at once; or
what a peer printed."""


@dataclass(frozen=True)
class Stage:
    """One command of a row; in its options `{name}` stands for the folder of the row's stage of that name.

    Attributes:
        name: name of its folder.
        script: below the project's root.
        options: that do not depend on the length of the run.
        share: share of the row's budget; those of a row sum to at most 1.
        labels: whether it is told labels per class and their seed.
        lengths: options that say how long it trains, each with its multiple of the steps that the budget
            buys; none where the length is fixed.
    """

    name: str
    script: str
    options: tuple[object, ...] = ()
    share: float = 1.0
    labels: bool = True
    lengths: tuple[tuple[str, float], ...] = (("--steps", 1.0),)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: name of its folder and its records.
        title: title in the table.
        stages: one after the other.
        settings: options of the last stage that are tried on validation labels; the best is trained in full.
        reads_unlabeled: whether it learns from images without labels.
        baseline: whether the other rows are compared with it.
        labels_per_class: those of the table that it is measured at; () for all of them.
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
        rows: all with the same budget, label tables and number of settings tried.
        labels_per_class: columns; 0 stands for all labels.
        seeds: seeds of each column, for labels, weights, order and views.
        budget_s: core seconds, user and system, of everything that a row trains with one seed and one number
            of labels, pre-training included. Tests and trials of settings are outside of it.
        trial_s: likewise, of the trial of one setting.
        chosen_at: labels per class of the trials, a quarter of which they are measured on.
        calibration: lengths of the two runs that the cost of a step is taken from.
        testing: options of recipes/evaluate.py.
        budget_of: row, of a fixed length, whose mean core seconds are the budget of the others once it is
            measured; it has no budget itself.
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
        """Hold the rows to what makes them comparable."""
        tried = {len(row.settings) for row in self.rows}
        if len(tried) > 1:
            raise ValueError(f"{self.name}: expected as many settings of every row, got {sorted(tried)}")
        for row in self.rows:
            if sum(stage.share for stage in row.stages) > 1.0 + 1e-9:
                raise ValueError(f"{self.name}: the stages of {row.name} take more than the budget")
        if set(self.seeds) != set(self.labels_per_class):
            raise ValueError(f"{self.name}: expected seeds of every column, got {sorted(self.seeds)}")

    def columns_of(self, row: Row) -> tuple[int, ...]:
        """Return the numbers of labels per class that a row is measured at."""
        return row.labels_per_class or self.labels_per_class
