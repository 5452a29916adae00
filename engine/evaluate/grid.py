"""A grid search over learning rates: the settings to try, their results, and heat maps of the results.

Source: Zhou, Wan, Li 2021, section 4.3 and table 5: the fifteen pairs of six rates in which the backbone's
rate is below the classifier's, and the pair that the report chose, the largest rate for both; each with and
without weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from engine.evaluate.few_labels import FewLabelResult, mean_and_spread
from engine.report.figures import draw_picture, save_picture
from engine.report.page import Picture
from engine.report.theme import Palette
from loaders.common.errors import UserError
from loaders.common.files import csv_text, to_json, write_atomic

RATES = (0.001, 0.003, 0.005, 0.01, 0.03, 0.05)
"""Learning rates of table 5 of Zhou, Wan, Li 2021."""
WEIGHT_DECAYS = (0.0, 1.5e-6)
"""Zhou, Wan, Li 2021 print "1.5", which at a rate of 0.05 would shrink weights by 7.5 % a step; 1.5e-6 is
usual for Barlow Twins."""


@dataclass(frozen=True, order=True)
class Setting:
    """The hyperparameters of one cell of the grid."""

    weight_decay: float
    lr_backbone: float
    lr_classifier: float

    @property
    def folder(self) -> str:
        """Name of the folder that holds the runs with this setting."""
        return f"lr-{self.lr_backbone:g}-{self.lr_classifier:g}-decay-{self.weight_decay:g}"


@dataclass(frozen=True)
class Cell:
    """The result of one cell of the grid.

    Attributes:
        mean: mean validation accuracy over seeds, in [0, 1].
        spread: sample standard deviation of the validation accuracy over seeds; 0 for one seed.
        test_mean: mean test accuracy over seeds; it must not decide which setting is best.
        num_seeds: number of runs, one per seed.
    """

    setting: Setting
    mean: float
    spread: float
    test_mean: float
    num_seeds: int


def settings(rates: Sequence[float], weight_decays: Sequence[float]) -> list[Setting]:
    """Return all settings of the grid: each weight decay with each pair of rates.

    The pairs are those with the backbone's rate below the classifier's, and the largest rate for both.

    Raises:
        UserError: no rate, no weight decay, or a negative or repeated value.
    """
    for name, values in (("grid_rates", rates), ("grid_weight_decays", weight_decays)):
        if not values or min(values) < 0 or len(set(values)) < len(values):
            raise UserError(f"{name}: expected one or more different numbers of at least 0, found {values}")
    most = max(rates)
    pairs = [(low, high) for low in rates for high in rates if low < high] + [(most, most)]
    return [Setting(decay, *pair) for decay in weight_decays for pair in sorted(pairs)]


def sum_up(setting: Setting, results: Sequence[FewLabelResult]) -> Cell:
    """Average the runs of a setting; each run must have a validation accuracy."""
    values = [r.validation_top1 for r in results if r.validation_top1 is not None]
    assert len(values) == len(results)
    mean, spread = mean_and_spread(values)
    return Cell(setting, mean, spread, mean_and_spread([r.top1 for r in results])[0], len(results))


def sum_up_all(wanted: Sequence[Setting], results: Sequence[FewLabelResult]) -> list[Cell]:
    """Average the runs of every setting; `results` is ordered by setting, with equally many runs of each."""
    runs = len(results) // len(wanted)
    return [sum_up(one, results[n * runs : (n + 1) * runs]) for n, one in enumerate(wanted)]


def print_grid(out: Path, cells: Sequence[Cell]) -> None:
    """Print the table that `write_grid` wrote into `out`, the best setting, and the path of the heat maps."""
    best = best_of(cells)
    print((out / "grid.csv").read_text(), end="")
    print(f"best on validation: {best.setting.folder}, {best.mean:.1%} (test: {best.test_mean:.1%})")
    print(f"heat map: {out / 'grid.png'}")


def best_of(cells: Sequence[Cell]) -> Cell:
    """Return the cell with the highest validation accuracy; of equal cells, one with the larger rates."""
    return max(cells, key=lambda cell: (cell.mean, cell.setting.lr_backbone, cell.setting.lr_classifier))


def write_grid(out: Path, cells: Sequence[Cell], config: Mapping[str, Any]) -> None:
    """Write grid.json, grid.csv (laid out like table 5 of Zhou, Wan, Li 2021) and heat maps in grid.png."""
    rows = [{**asdict(cell.setting), **_measured(cell)} for cell in cells]
    chosen = asdict(best_of(cells).setting)
    write_atomic(out / "grid.json", to_json({"config": dict(config), "cells": rows, "best": chosen}))
    write_atomic(out / "grid.csv", _as_csv(cells).encode())
    save_picture(out / "grid.png", draw_grid(cells))


def draw_grid(cells: Sequence[Cell]) -> Picture:
    """Draw one heat map per weight decay, with a row per backbone rate and a column per classifier rate."""
    decays = sorted({cell.setting.weight_decay for cell in cells})
    rows = sorted({cell.setting.lr_backbone for cell in cells}, reverse=True)
    columns = sorted({cell.setting.lr_classifier for cell in cells})
    found = {cell.setting: 100 * cell.mean for cell in cells}

    def draw(figure: Any, palette: Palette) -> None:
        for place, decay in enumerate(decays):
            axes = figure.add_subplot(1, len(decays), place + 1)
            values = [
                [found.get(Setting(decay, row, column), math.nan) for column in columns] for row in rows
            ]
            _draw_map(axes, values, (min(found.values()), max(found.values())), palette)
            axes.set_title(f"weight decay {decay:g}", loc="left", fontsize=8, color=palette.ink)
            axes.set_yticks(range(len(rows)), [f"{row:g}" if place == 0 else "" for row in rows])
            axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
            axes.set_xlabel("rate of the classifier", fontsize=8, color=palette.muted)
            if place == 0:
                axes.set_ylabel("rate of the backbone", fontsize=8, color=palette.muted)
        figure.suptitle("validation accuracy, %", x=0.01, ha="left", fontsize=9, color=palette.ink)

    return draw_picture(draw, (8.6, 0.95 + 0.36 * len(rows)), "validation accuracy over two rates", "")


def _draw_map(
    axes: Any, values: Sequence[Sequence[float]], span: tuple[float, float], palette: Palette
) -> None:
    """Draw values as colours and numbers, NaN as empty; frame cells with `span[1]`, the best of all maps."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    low, high = span
    width = max(high - low, 1e-9)
    colors = LinearSegmentedColormap.from_list("accent", [palette.card, palette.accent])
    axes.imshow(values, cmap=colors, vmin=low - 0.15 * width, vmax=high, aspect="auto")
    for row, column in product(range(len(values)), range(len(values[0]))):
        value = values[row][column]
        ink = palette.card if (value - low) / width > 0.55 else palette.ink
        style = {"fontsize": 8, "color": ink, "weight": "bold" if value == high else "normal"}
        if not math.isnan(value):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", **style)
        if value == high:
            corner = (column - 0.5, row - 0.5)
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor=palette.second, linewidth=2.0)
            frame.set_clip_on(False)  # in a cell at the edge of the map, half of the line lies outside
            axes.add_patch(frame)
    axes.tick_params(colors=palette.muted, labelsize=8, length=0)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)


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
