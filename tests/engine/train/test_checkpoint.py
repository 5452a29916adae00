"""Checkpoints that are kept, and those that are deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.train.checkpoint import CheckpointMeta, list_checkpoints, newest_valid, save_checkpoint
from tests.engine.synthetic import SmallRecipe


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_of_later_steps_never_take_the_place_of_the_one_just_saved(
    tmp_path: Path, keep: int
) -> None:
    recipe = SmallRecipe()
    optimizer = recipe.make_optimizer()

    def save(step: int) -> None:
        meta = CheckpointMeta(recipe="small", config={}, step=step, epoch=0, data={}, num_ranks=1)
        save_checkpoint(tmp_path, meta, recipe, optimizer, {}, keep)

    save(20)
    (tmp_path / "step-00000030").mkdir()  # damaged: the run continues from 20 and stops at 23
    save(23)
    found, damaged = newest_valid(tmp_path)
    assert found == tmp_path / "step-00000023"
    assert damaged == []
    assert len(list_checkpoints(tmp_path)) == keep
