"""Tables on a terminal: as they are where they fit, else one line per cell, so that no word is cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(console: Console, table: Table) -> None:
    """Print a table; its cells are plain text, such as names from outside.

    Args:
        console: to print on. Where it is narrower than the longest words of the columns side by side, every
            row is a list: the name of the column, and the cell.
        table: the table, with headings.
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
