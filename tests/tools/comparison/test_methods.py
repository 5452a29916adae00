"""Settings of the comparison: each recipe accepts its command."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro

from tools.comparison.methods import PRETRAININGS, TRAININGS, Command, Labels, pretraining_command

COMMON = ("--pack", Path("packs/x"), "--num-threads", 1, "--trackers", "--no-progress")


def parsed(made: Command) -> Any:
    module = made.script.removesuffix(".py").replace("/", ".")
    return tyro.cli(import_module(module).Config, args=made.arguments)


@pytest.mark.parametrize("name", PRETRAININGS)
def test_pretraining_commands_are_accepted(name: str) -> None:
    made = pretraining_command(PRETRAININGS[name], COMMON, Path("runs/x"), 60, steps_per_epoch=100)
    config = parsed(made)
    assert (config.steps, config.split, config.backbone) == (60, "train", "tiny_resnet")
    if "--warmup-epochs" in made.arguments:
        assert config.warmup_epochs == pytest.approx(0.06)  # a tenth of the run


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("per_class", [4, 25, 400])
def test_training_commands_are_accepted_and_use_so_many_labels(name: str, per_class: int) -> None:
    commands = TRAININGS[name].commands(COMMON, Labels(per_class, 3, 10), Path("runs/x"), 60)
    configs = [parsed(made) for made in commands]
    bought = sum(c.clusters * c.per_cluster for c in configs if hasattr(c, "clusters"))
    assert 10 * configs[0].labels_per_class + bought == 10 * per_class
    trained = [c for c in configs if hasattr(c, "steps")]
    assert {c.steps for c in trained} == {60}
    assert {c.label_seed for c in configs} == {3}
    assert trained[-1].out == Path("runs/x") / TRAININGS[name].run
