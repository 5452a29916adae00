"""Write the table of faults into docs/guarantees.md from the records of the fault tests.

Example:
    SLUICE_FAULT_RECORDS=docs/records/faults.jsonl python -m pytest tests/faults -m "not short"
    python tools/fault_table.py docs/records/faults.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import run_command
from loaders.common.program import Positional, check_command_line, command_line

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Write the table of faults from the records of the fault tests."""

    records: Positional[Path]
    """File that the fault tests wrote, which the environment variable SLUICE_FAULT_RECORDS named."""
    page: Path = _ROOT / "docs" / "guarantees.md"
    """Page whose table is replaced; it has a mark before and after the table."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_FIELDS = {"fault": str, "tries": int, "survived": int, "note": str}


@dataclass
class Row:
    """One fault: tries and survived tries, summed over its records, and the note of the first record."""

    tries: int
    survived: int
    note: str


def read_rows(path: Path) -> dict[str, Row]:
    """Sum the records of each fault.

    Raises:
        UserError: there is no such file, it is empty, or a line is not a record.
    """
    rows: dict[str, Row] = {}
    try:
        lines = [parse_json(line) for line in path.read_text("utf-8").splitlines()]
        for line in lines:
            if any(not isinstance(line[name], kind) for name, kind in _FIELDS.items()):
                raise ValueError(f"not a record: {line}")
            row = rows.setdefault(line["fault"], Row(0, 0, line["note"]))
            row.tries += line["tries"]
            row.survived += line["survived"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected records of the fault tests ({error}); run tests/faults") from None
    if not rows:
        raise UserError(f"{path}: expected records of the fault tests, found none; run tests/faults")
    return rows


def as_table(rows: dict[str, Row]) -> str:
    """Return the table in Markdown; faults are sorted by name, since tests may end in any order."""
    lines = ["| fault | tries | survived | lost | surviving means |", "|---|--:|--:|--:|---|"]
    for fault, row in sorted(rows.items(), key=lambda each: each[0].lower()):
        lost = row.tries - row.survived
        lines.append(f"| {fault} | {row.tries:,} | {row.survived:,} | {lost:,} | {row.note} |")
    total = sum(row.tries for row in rows.values())
    survived = sum(row.survived for row in rows.values())
    lines.append(f"| **all** | **{total:,}** | **{survived:,}** | **{total - survived:,}** | |")
    return "\n".join(lines)


def put_table(page: Path, table: str) -> None:
    """Replace the table in a page.

    Raises:
        UserError: the page lacks the marks.
    """
    text = page.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{page}: expected the marks {BEGIN} and {END}; restore them")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomic(page, f"{before}{BEGIN}\n{table}\n{END}{after}".encode())


def main() -> None:
    """Replace the table in the page."""
    config = command_line(Config, __doc__)
    table = as_table(read_rows(config.records))
    put_table(config.page, table)
    print(table)


if __name__ == "__main__":
    run_command(main)
