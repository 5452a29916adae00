"""Records: a stage that is done is not done again."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.errors import UserError
from tools.comparison.records import once, read, read_lines, write_lines


def test_a_finished_stage_is_read_back(tmp_path: Path) -> None:
    done = []

    def work() -> dict[str, int]:
        done.append(1)
        return {"top1": len(done)}

    path = tmp_path / "records" / "stage.json"
    assert once(path, work) == once(path, work) == {"top1": 1}


def test_lines_are_read_back(tmp_path: Path) -> None:
    records = [{"kind": "a", "x": 1.5}, {"kind": "b", "x": [1, 2]}]
    write_lines(tmp_path / "deep" / "all.jsonl", records)
    assert list(read_lines(tmp_path / "deep" / "all.jsonl")) == records


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1")
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        read(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is no record"):
        read(tmp_path / "b.json")
    with pytest.raises(UserError, match="run the comparison first"):
        list(read_lines(tmp_path / "none.jsonl"))
