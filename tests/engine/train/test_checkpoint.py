"""Checkpoints that are kept, those that are deleted, and the error for one that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.train.checkpoint import (
    CheckpointMeta,
    list_checkpoints,
    load_weights,
    newest_valid,
    save_checkpoint,
)
from loaders.common.errors import UserError
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


def test_a_scalar_that_the_network_lacks_is_named_with_its_shape(tmp_path: Path) -> None:
    save_file({"num_batches_tracked": torch.tensor(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor num_batches_tracked of shape none, found \[\]; "):
        load_weights(tmp_path, nn.ReLU())
