"""The table of faults is generated from records, and nothing else on the page changes."""

import json

import pytest

from loaders.common.errors import UserError
from tests.faults.records import record
from tools.fault_table import BEGIN, END, as_table, put_table, read_rows


def test_records_become_rows(tmp_path, monkeypatch):
    path = tmp_path / "faults.jsonl"
    monkeypatch.setenv("SLUICE_FAULT_RECORDS", str(path))
    record("a kill of nothing", 1, 1, "resumed")
    record("a flipped bit", 3, 3, "caught")
    record("a flipped bit", 4, 4, "caught")
    with pytest.raises(AssertionError, match="a kill: 1 of 2 lost"):
        record("a kill", 2, 1, "resumed")
    rows = read_rows(path)
    assert [(row.tries, row.survived) for row in rows.values()] == [(1, 1), (7, 7), (2, 1)]
    lines = as_table(rows).splitlines()
    assert lines[2] == "| a flipped bit | 7 | 7 | 0 | caught |"
    assert lines[-1] == "| **all** | **10** | **9** | **1** | |"


@pytest.mark.parametrize("content", ["", "{}", "words", json.dumps({"fault": "x", "tries": "3"})])
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "faults.jsonl").write_text(content)
    with pytest.raises(UserError, match="records of the fault tests"):
        read_rows(tmp_path / "faults.jsonl")
    with pytest.raises(UserError, match="records of the fault tests"):
        read_rows(tmp_path / "none.jsonl")


def test_only_what_stands_between_the_marks_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_table(page, "| new |")
    assert page.read_text() == f"before\n{BEGIN}\n| new |\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match="expected the marks"):
        put_table(page, "| new |")
