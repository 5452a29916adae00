"""A run that stopped on one process continues on two with the same batches, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.train.metrics import read_metrics
from tests.forked import run_forked
from tests.loaders.packs.inputs import class_tree, pack, write_tree


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("ranks")
    write_tree(work / "in", class_tree(2, 13))
    pack(work / "pack", f"train={work / 'in'}")
    done = run_forked(Path(__file__).parent / "changing_ranks.py", work / "pack", work)
    assert done.returncode == 0, done.stderr
    return work


def rows_of(work: Path, name: str, step: int) -> list[int]:
    found = sorted(work.glob(f"{name}-rows-{step}-*.json"))
    return sorted(row for path in found for row in json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["more", "fewer", "nodes"])
def test_other_ranks_take_or_go_on_with_the_same_batches(parts: Path, name: str) -> None:
    """Also on two nodes with two ranks each, which write one log."""
    assert len({tuple(rows_of(parts, "whole", step)) for step in range(6)}) == 6
    for step in range(6):
        rows = rows_of(parts, name, step)
        assert len(rows) == 8
        assert rows == rows_of(parts, "whole", step)
    expected, found = (read_metrics(parts / run / "metrics.jsonl") for run in ("whole", name))
    assert [r["step"] for r in found] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(expected, found, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3)


@pytest.mark.parametrize("name", ["more", "fewer"])
def test_ranks_share_views_of_buckets_over_one_graph_and_nothing_warns(parts: Path, name: str) -> None:
    """The weights are channels_last, including those of 1 x 1 kernels, whose strides are ambiguous."""
    for rank in range(2):
        options = json.loads((parts / f"{name}-ddp-{rank}.json").read_text())
        assert (options["static_graph"], options["gradient_as_bucket_view"]) == (True, True)
