"""Temporal ensembling on the digits: the contents and the effect of its table, and short runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from engine.train.checkpoint import list_checkpoints
from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes.temporal_ensembling import Config, TemporalEnsembling, run
from tests.recipes.clusters import accuracy_on_clusters
from tests.recipes.labelled import FEW, check_exact_runs

ROWS = np.array([40, 7, 19, 23])


@pytest.fixture
def config(little_pack: Pack, tmp_path: Path) -> Config:
    more = {"unlabeled_splits": ("train",), "ramp_epochs": 0.0, "ramp_down_epochs": 1.0, "lr": 0.003}
    return Config(pack=little_pack.path, out=tmp_path / "run", **(FEW | more))


def pair(x: torch.Tensor, rows: list[int]) -> PairedBatch:
    """Return a batch of two labelled images, and of unlabelled ones with the given rows of the pack."""
    index, labels = torch.tensor(rows), torch.tensor([0, 1])
    many = Batch((x[2:],), None, index, index >= 0)
    return PairedBatch(Batch((x[:2],), labels, labels, labels >= 0), many)


def test_each_image_keeps_the_average_of_its_own_predictions(config: Config) -> None:
    """This holds for any position in the batch; the table changes only after the step is taken."""
    seed_everything(0)
    recipe = TemporalEnsembling(replace(config, momentum=0.5), "abc", ROWS).eval()
    recipe.make_schedule(1, 10)
    x = torch.randn(4, 3, 16, 16)
    recipe.training_step(pair(x, [23, 7]), 0)
    assert not recipe.visits.any(), "a step that is left out leaves no trace"
    output = recipe.training_step(pair(x, [23, 7]), 1)
    assert float(output.metrics["consistency"]) == 0.0, "there is nothing to agree with yet"
    recipe.after_step(1)
    with torch.no_grad():
        z = recipe.classifier(x[2:]).softmax(1)
    assert recipe.rows.tolist() == [7, 19, 23, 40]
    assert recipe.visits.tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(recipe.ensemble[[2, 0]], 0.5 * z)
    other = torch.cat([x[:2], torch.randn(2, 3, 16, 16)])
    output = recipe.training_step(pair(other, [7, 40]), 2)
    with torch.no_grad():
        again = recipe.classifier(other[2:]).softmax(1)
    expected = float((again[0] - z[1]).square().mean()) / 2
    assert float(output.metrics["consistency"]) == pytest.approx(expected, rel=1e-4)
    weight = config.consistency_weight * float(output.metrics["consistency"])
    assert float(output.loss.detach()) == pytest.approx(
        float(output.metrics["supervised"]) + weight, rel=1e-5
    )


def test_the_optimizer_is_adam_and_each_part_has_its_rate(config: Config) -> None:
    recipe = TemporalEnsembling(replace(config, lr_head=0.5), "abc", ROWS)
    optimizer = recipe.make_optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    assert [group["lr"] for group in optimizer.param_groups] == [config.lr, config.lr, 0.5, 0.5]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(recipe.classifier.parameters())
    )


def test_runs_repeat_and_resume_exactly_with_their_table(config: Config, tmp_path: Path) -> None:
    steps = 6  # two epochs, since the table takes effect in the second
    check_exact_runs(config, run, tmp_path, steps=steps)
    tables = [
        safetensors.torch.load_file(list_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")
        for folder in (config.out, tmp_path / "half")
    ]
    assert torch.equal(tables[0]["ensemble"], tables[1]["ensemble"])
    visits = tables[0]["visits"]
    assert torch.equal(visits, tables[1]["visits"])
    assert len(visits) == 240
    assert int(visits.sum()) == steps * config.mu * config.batch_size
    found = [record["consistency"] for record in read_metrics(config.out / "metrics.jsonl")]
    assert found[0] == 0.0
    assert found[-1] > 0.0


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match=r"expected momentum and beta1 in \[0, 1\), found 1.0 and 0.9"):
        replace(config, momentum=1.0)
    with pytest.raises(UserError, match="ramp_down_epochs: expected a finite number"):
        replace(config, ramp_down_epochs=-1.0)


def test_the_averages_teach_what_the_labels_do_not(config: Config) -> None:
    """Views keep the coordinate that separates the clusters and redraw all others, so agreement is easy."""

    def redrawn(x: torch.Tensor) -> torch.Tensor:
        view = torch.randn_like(x)
        view[:, 0] = x[:, 0]
        return view

    def accuracy(weight: float) -> float:
        changed = replace(config, consistency_weight=weight)
        return accuracy_on_clusters(
            lambda: TemporalEnsembling(changed, "ab", np.arange(400)),
            lambda x: (x,),
            lambda x: (redrawn(x),),
            seed=0,
        )

    alone, together = accuracy(0.0), accuracy(10.0)
    assert alone < 0.95
    assert together > 0.96, (alone, together)
