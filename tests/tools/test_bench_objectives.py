"""The benchmark of objectives times an implementation only if it gives the same values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tools.bench_objectives import Config, cases, check, render, run

SMALL = Config(batch_size=6, embedding=5, classes=4, runs=1, num_threads=1)


@pytest.mark.parametrize("case", cases(SMALL), ids=lambda case: case.name)
def test_both_versions_are_the_same_and_another_is_found(case) -> None:
    check(case)
    with pytest.raises(RuntimeError, match="differ"):
        check(replace(case, ours=lambda *inputs: 1.01 * case.ours(*inputs)))


def test_one_record_per_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench_objectives.time_once", lambda kernel, inputs: 0.5)
    records = run(replace(SMALL, json=tmp_path / "out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["objective"] for line in lines] == [r["objective"] for r in records]
    assert len(lines) == 7
    assert render(records).row_count == 7
