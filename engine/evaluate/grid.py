"""A search over learning rates: the pairs to try, their results, and a picture of these.

Source: Zhou, Wan, Li 2021, section 4.3 and table 5: fifteen pairs of six rates, with the backbone's rate
below the classifier's, with and without weight decay, and the pair that the report chose, the largest rate
for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.evaluate.few_labels import FewLabelResult, mean_and_spread
from engine.report.figures import save_picture
from engine.report.heatmap import Panel, draw_heatmap
from loaders.common.errors import UserError
from loaders.common.files import csv_text, to_json, write_atomic

RATES = (0.001, 0.003, 0.005, 0.01, 0.03, 0.05)
"""Rates of the report's table 5."""
WEIGHT_DECAYS = (0.0, 1.5e-6)
"""The report prints "1.5", which would shrink weights by 7.5 % a step; Barlow Twins' usual one is 1.5e-6."""


@dataclass(frozen=True, order=True)
class Setting:
    """One cell of the grid: the setting to try."""

    weight_decay: float
    lr_backbone: float
    lr_classifier: float

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return f"lr-{self.lr_backbone:g}-{self.lr_classifier:g}-decay-{self.weight_decay:g}"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: its result.

    Attributes:
        setting: the setting.
        mean: validation accuracy in [0, 1] over seeds.
        spread: sample standard deviation over seeds; 0 for one.
        test_mean: mean test accuracy over seeds; choose no setting by it.
        num_seeds: runs.
    """

    setting: Setting
    mean: float
    spread: float
    test_mean: float
    num_seeds: int


def settings(rates: Sequence[float], weight_decays: Sequence[float]) -> list[Setting]:
    """Return the pairs with the backbone's rate below the classifier's, and the largest rate for both.

    Raises:
        UserError: no rates, no weight decay, or a repeated value.
    """
    for name, values in (("grid_rates", rates), ("grid_weight_decays", weight_decays)):
        if not values or min(values) < 0 or len(set(values)) < len(values):
            raise UserError(f"{name}: expected one or more different numbers of at least 0, found {values}")
    most = max(rates)
    pairs = [(low, high) for low in rates for high in rates if low < high] + [(most, most)]
    return [Setting(decay, *pair) for decay in weight_decays for pair in sorted(pairs)]


def sum_up(setting: Setting, results: Sequence[FewLabelResult]) -> Cell:
    """Average the runs of a setting; all of them measured validation images."""
    values = [r.validation_top1 for r in results if r.validation_top1 is not None]
    assert len(values) == len(results)
    mean, spread = mean_and_spread(values)
    return Cell(setting, mean, spread, mean_and_spread([r.top1 for r in results])[0], len(results))


def sum_up_all(wanted: Sequence[Setting], results: Sequence[FewLabelResult]) -> list[Cell]:
    """Average the runs of every setting; they come setting by setting, the same number of each."""
    runs = len(results) // len(wanted)
    return [sum_up(one, results[n * runs : (n + 1) * runs]) for n, one in enumerate(wanted)]


def print_grid(out: Path, cells: Sequence[Cell]) -> None:
    """Print the table of `write_grid` in `out`, and the setting that was chosen."""
    best = best_of(cells)
    print((out / "grid.csv").read_text(), end="")
    print(f"best on validation: {best.setting.folder}, {best.mean:.1%} (test: {best.test_mean:.1%})")
    print(f"heat map: {out / 'grid.png'}")


def best_of(cells: Sequence[Cell]) -> Cell:
    """Return the cell with the highest validation accuracy; among equals the one with the larger rates."""
    return max(cells, key=lambda cell: (cell.mean, cell.setting.lr_backbone, cell.setting.lr_classifier))


def write_grid(out: Path, cells: Sequence[Cell], config: Mapping[str, Any]) -> None:
    """Write grid.json, grid.csv (the layout of the report's table) and the heat maps grid.png."""
    rows = [{**asdict(cell.setting), **_measured(cell)} for cell in cells]
    chosen = asdict(best_of(cells).setting)
    write_atomic(out / "grid.json", to_json({"config": dict(config), "cells": rows, "best": chosen}))
    write_atomic(out / "grid.csv", _as_csv(cells).encode())
    save_picture(out / "grid.png", draw_grid(cells))


def draw_grid(cells: Sequence[Cell]) -> Any:
    """Draw one heat map per weight decay, backbone rates down and classifier rates across."""
    decays = sorted({cell.setting.weight_decay for cell in cells})
    rows = sorted({cell.setting.lr_backbone for cell in cells}, reverse=True)
    columns = sorted({cell.setting.lr_classifier for cell in cells})
    panels = []
    for decay in decays:
        found = {
            (c.setting.lr_backbone, c.setting.lr_classifier): 100 * c.mean
            for c in cells
            if c.setting.weight_decay == decay
        }
        values = [[found.get((row, column)) for column in columns] for row in rows]
        panels.append(Panel(f"weight decay {decay:g}", values))
    names = ([f"{row:g}" for row in rows], [f"{column:g}" for column in columns])
    return draw_heatmap(
        panels, *names, "rate of the backbone", "rate of the classifier", "validation accuracy, %"
    )


def _measured(cell: Cell) -> dict[str, float]:
    values = asdict(cell)
    del values["setting"]
    return values


def _as_csv(cells: Sequence[Cell]) -> str:
    decays = sorted({cell.setting.weight_decay for cell in cells})
    found = {cell.setting: cell for cell in cells}
    columns = ("lr_backbone", "lr_classifier", *(f"top1_percent_decay_{d:g}" for d in decays))
    rates = sorted({(c.setting.lr_backbone, c.setting.lr_classifier) for c in cells}, reverse=True)
    rows = [
        (f"{low:g}", f"{high:g}", *(f"{100 * found[Setting(d, low, high)].mean:.2f}" for d in decays))
        for low, high in rates
    ]
    return csv_text(columns, rows)
