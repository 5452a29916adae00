"""The page of guarantees names tests that exist, and its table of faults matches the records."""

import re
from pathlib import Path

from tools.fault_table import BEGIN, END, as_table, read_rows

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")


def named_tests() -> list[tuple[str, str]]:
    """Return the files and functions named on the page; a bare `::name` belongs to the file before it."""
    found, file = [], ""
    for name in re.findall(r"`((?:[\w/]+\.py)?(?:::\w+)?)`", PAGE):
        path, _, function = name.partition("::")
        if not name or (path.startswith("tools/") and "/test_" not in path):
            continue
        file = path or file
        found.append((file, function))
    return found


def test_every_test_that_holds_a_promise_exists() -> None:
    named = named_tests()
    assert len(named) > 30
    for file, function in named:
        path = ROOT / ("tests/" + file).replace("tests/tests/", "tests/")
        assert path.is_file(), f"{file} is named in docs/guarantees.md"
        names = re.findall(r"^ *def (\w+)", path.read_text(), re.MULTILINE)
        assert not function or function in names, f"{file}::{function} is named in docs/guarantees.md"


def test_the_page_has_the_table_of_the_recorded_faults() -> None:
    table = as_table(read_rows(ROOT / "docs" / "records" / "faults.jsonl"))
    assert f"{BEGIN}\n{table}\n{END}" in PAGE
