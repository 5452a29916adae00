"""The accuracy after each stage in a chain of trainings: as files, as a picture and on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.report.figures import draw_steps, save_picture
from loaders.common.files import csv_text, to_json, write_atomic
from loaders.common.tables import print_table


@dataclass(frozen=True)
class Measured:
    """Test accuracy after one stage, in [0, 1]."""

    stage: str
    top1: float


def write_ablation(
    out: Path, measured: Sequence[Measured], titles: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Write ablation.json and ablation.csv of the stages so far into `out`.

    Args:
        out: folder of the files.
        measured: result of each stage, in the order of the chain.
        titles: title of each stage by its name.
        config: options of the whole chain, in JSON types.
    """
    if not measured:
        return
    rows = [asdict(row) for row in measured]
    write_atomic(out / "ablation.json", to_json({"config": config, "stages": rows}))
    cells = ((titles[row.stage], f"{100 * row.top1:.2f}") for row in measured)
    write_atomic(out / "ablation.csv", csv_text(("stage", "top1_percent"), cells).encode())


def draw_ablation(out: Path, measured: Sequence[Measured], titles: Mapping[str, str]) -> None:
    """Draw ablation.png of the stages so far; arguments as in `write_ablation`."""
    if not measured:
        return
    names, values = [titles[row.stage] for row in measured], [100 * row.top1 for row in measured]
    save_picture(out / "ablation.png", draw_steps(names, values, "test accuracy, %"))


def print_ablation(
    console: Console, measured: Sequence[Measured], titles: Mapping[str, str], apart: str
) -> None:
    """Print the accuracy after every stage and its change from the stage before.

    Args:
        console: where to print.
        measured: result of each stage, in the order of the chain.
        titles: title of each stage by its name.
        apart: name of a stage outside the chain, for which no change is shown.
    """
    table = Table("stage", "top-1, %", "change")
    chained = [row for row in measured if row.stage != apart]
    for row in measured:
        place = chained.index(row) if row in chained else 0
        change = f"{100 * (row.top1 - chained[place - 1].top1):+.2f}" if place > 0 else ""
        table.add_row(titles[row.stage], f"{100 * row.top1:.2f}", change)
    print_table(console, table)
