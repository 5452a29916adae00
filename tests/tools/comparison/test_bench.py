"""Measurements from elsewhere count as done if they belong to the same comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loaders.common.errors import UserError
from tools.comparison.bench import Bench
from tools.comparison.cpu_budget import Cost

COST = {"kind": "cost", "method": "barlow", "base": 1.5, "per_step": 0.25, "per_epoch": 0.0}
COST |= {"steps_per_epoch": 100}
TRAINED = {"kind": "pretraining", "method": "barlow", "seed": 0, "budget_s": 60.0, "steps": 7}
START_UP = {"kind": "start_up", "cpu_s": 0.5}


def bench(out: Path) -> Bench:
    sizes = {"num_threads": 1, "num_train": 12800, "num_classes": 10}
    return Bench(pack=out, out=out, budget_s=60.0, lengths=(1, 2), say=print, **sizes)


def test_measured_elsewhere_is_not_measured_again(tmp_path: Path) -> None:
    comparison = bench(tmp_path)
    comparison.adopt([START_UP, COST, TRAINED], {"barlow": 128})
    # Neither may measure again: that would call None, which fails.
    assert comparison.start_up() == 0.5
    cost = comparison.cost("barlow", None, 1)  # type: ignore[arg-type]
    assert cost == Cost(1.5, 0.25, 0.0, 100)
    assert comparison.once(TRAINED, None) == TRAINED  # type: ignore[arg-type]
    assert comparison.once({**TRAINED, "seed": 1}, lambda: {"steps": 8})["steps"] == 8
    comparison.adopt([{**TRAINED, "steps": 9}], {"barlow": 128})
    assert {r["steps"] for r in comparison.records() if r["kind"] == "pretraining"} == {7, 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**TRAINED, "budget_s": 30.0}, "expected a budget of 60 s, found 30 s in pretraining-barlow-seed-0"),
        (
            {**COST, "steps_per_epoch": 99},
            "expected 100 steps in an epoch of this pack, found 99 in cost-barlow",
        ),
        ({**COST, "method": "fixmatch"}, "cost-fixmatch is of the other family"),
    ],
)
def test_records_of_another_comparison_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    comparison = bench(tmp_path)
    with pytest.raises(UserError, match=message):
        comparison.adopt([START_UP, change], {"barlow": 128})
    assert comparison.records() == []  # no record was taken over
