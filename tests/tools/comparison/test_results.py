"""Records: a finished stage is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.common.errors import UserError
from tools.comparison.results import (
    Held,
    Measurements,
    alone_at,
    keep_question,
    read,
    read_lines,
    stage_of,
    write_lines,
)

RECORDS = Path(__file__).parents[3] / "docs" / "records"


def test_a_finished_stage_is_read_back(tmp_path: Path) -> None:
    done = []
    results = Measurements(tmp_path / "pack", tmp_path, 1, print)

    def work() -> dict[str, int]:
        done.append(1)
        return {"top1": len(done)}

    for _ in range(2):
        assert results.record_of("pretraining-barlow-seed-2", work) == {"top1": 1}
    assert results.record_of("pretraining-barlow-seed-1", work)["top1"] == 2
    assert results.records() == [{"top1": 2}, {"top1": 1}]


def test_what_another_command_has_begun_is_left_to_it(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "pack", tmp_path, 1, print)
    with alone_at(tmp_path / "records" / "cost-vae.json"):
        with pytest.raises(Held, match="cost-vae"):
            results.record_of("cost-vae", dict)
        assert results.record_of("cost-barlow", dict) == {}
    assert results.record_of("cost-vae", dict) == {}


def test_a_shown_command_has_no_path_of_this_machine(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "pack", tmp_path / "out", 1, print)
    words = ("--pack", str(tmp_path / "pack"), "--out", str(tmp_path / "out" / "runs"), "--test-split", "")
    shown = results.shown("recipes/vicreg.py", (*words, "--init", "/weights/lite0"))
    assert shown == "python recipes/vicreg.py --pack PACK --out OUT/runs --test-split '' --init lite0"


def test_stages_are_named_by_what_they_measure() -> None:
    tuned = {"kind": "fine_tuned", "method": "vae", "seed": 1, "labels_per_class": [1, 4], "results": []}
    assert stage_of(tuned) == "fine_tuned-vae-1-4-labels-seed-1"
    trained = {"kind": "trained", "method": "vae", "seed": 1, "labels_per_class": 14, "top1": 0.2}
    assert stage_of(trained) == "trained-vae-14-labels-seed-1"
    assert stage_of({"kind": "start_up", "cpu_s": 1.0}) == "start_up"


@pytest.mark.parametrize("family", ["selfsup", "semisup"])
def test_the_records_of_the_documentation_are_of_different_stages(family: str) -> None:
    records = list(read_lines(RECORDS / f"methods-{family}.jsonl"))
    assert len({stage_of(r) for r in records}) == len(records)
    assert 0 in {r["seed"] for r in records if "seed" in r}


def test_a_question_may_gain_what_older_folders_do_not_say(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    keep_question(old, {"pack": "a"})
    keep_question(new, {"pack": "a"}, {"start": "1"})
    for path in (old, new):
        keep_question(path, {"pack": "a"}, {"start": "1"})
        with pytest.raises(UserError, match=r"^start: expected '1', with which .*, found '2'; give another"):
            keep_question(path, {"pack": "a"}, {"start": "2"})


def test_lines_are_read_back(tmp_path: Path) -> None:
    records = [{"kind": "start_up", "x": 1.5}, {"kind": "cost", "method": "vae", "x": [1, 2]}]
    write_lines(tmp_path / "deep" / "all.jsonl", records)
    assert list(read_lines(tmp_path / "deep" / "all.jsonl")) == records


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1")
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        read(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is not a record"):
        read(tmp_path / "b.json")
    with pytest.raises(UserError, match="run the comparison first"):
        list(read_lines(tmp_path / "none.jsonl"))
    for line in (
        '{"method": "vae"}',
        '{"kind": "trained", "method": "vae", "seed": 0}',
        '{"kind": "else"}',
        "1",
    ):
        (tmp_path / "c.jsonl").write_text(line)
        with pytest.raises(UserError, match=r"c\.jsonl cannot be read"):
            list(read_lines(tmp_path / "c.jsonl"))
