"""Tables are printed whole if they fit, else as lists of cells."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from loaders.common.tables import print_table


@pytest.mark.parametrize("title", [None, "a pack"])
@pytest.mark.parametrize("width", [30, 52, 60, 80])
def test_no_word_is_cut_at_any_width(width: int, title: str | None) -> None:
    table = Table("split", "images", "labelled", "quarantined", "source", title=title)
    table.add_row("train", "96", "96", "0", "photos (seed 0)")
    table.add_row("[b]test[/b]", "24", "", "0", "a-folder/of-long-names/without-a-blank"[: width - 34])
    out = io.StringIO()
    print_table(Console(file=out, width=width), table)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines if "│" in line)  # a terminal wraps lines of a list
    said = out.getvalue().split()
    assert "…" not in out.getvalue()
    for word in ("quarantined", "labelled", "[b]test[/b]", *(["pack"] if title else [])):
        assert any(word in one for one in said), f"{word} is cut, or a name was taken for markup"


def test_a_narrow_terminal_lists_the_cells_that_there_are() -> None:
    table = Table("stage", "", "images per second")
    table.add_row("decoding", "x", "")
    table.add_row("views", "", "7")
    table.add_row("", "y", "")
    out = io.StringIO()
    print_table(Console(file=out, width=12), table)
    assert out.getvalue() == "stage: decoding\n  x\nstage: views\n  images per second: 7\n  y\n"
