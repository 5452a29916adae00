"""Prints tables on a terminal: as tables if they fit, else one line per cell, so that no word is cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(console: Console, table: Table) -> None:
    """Print a table with headings; its cells are plain text without markup, such as file names.

    If the console is too narrow for the longest words of all columns side by side, each row is printed as a
    list of column names and cells.
    """
    from rich.measure import Measurement

    wide = console.options.update(max_width=sys.maxsize)
    if Measurement.get(console, wide, table).minimum <= console.width:
        console.print(table, markup=False, highlight=False, soft_wrap=False)
        return
    lines = [str(table.title)] if table.title else []
    columns = [(str(column.header), list(column.cells)) for column in table.columns]
    for number in range(table.row_count):
        row = [(heading, str(cells[number])) for heading, cells in columns]
        cells_there = [(bool(place), cell) for place, cell in enumerate(row) if cell[1]]
        lines += [f"{'  ' * inside}{': '.join(filter(None, cell))}" for inside, cell in cells_there]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
