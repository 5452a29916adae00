"""Mean Teacher on the digits: a consistency loss that must not vanish, the ramps, and short runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes.mean_teacher import Config, MeanTeacher, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.labelled import check_exact_runs


@pytest.fixture
def config(data: Data, little_pack: Pack, tmp_path: Path) -> Config:
    return replace(trainings.mean_teacher_config(data, tmp_path / "run"), pack=little_pack.path)


def pair(views: tuple[torch.Tensor, torch.Tensor]) -> PairedBatch:
    rows = torch.arange(6)
    labeled, unlabeled = (tuple(x[part] for x in views) for part in (slice(0, 2), slice(2, 6)))
    return PairedBatch(
        Batch(labeled, rows[:2] % 3, rows[:2], rows[:2] >= 0), Batch(unlabeled, None, rows[2:], rows[2:] >= 0)
    )


def test_consistency_is_not_zero_when_the_views_differ(config: Config) -> None:
    """Student and teacher start with the same weights, so only different views make their outputs differ."""
    seed_everything(0)
    x, y = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    recipe = MeanTeacher(config, "abc").train()
    differ = recipe.training_step(pair((x, y)), 0).metrics["consistency"]
    agree = recipe.training_step(pair((x, x.clone())), 0).metrics["consistency"]
    assert float(differ) > 1e-3
    assert float(agree) == pytest.approx(0.0, abs=1e-9)


def test_the_teacher_is_the_average_and_the_distance_the_one_asked_for(config: Config) -> None:
    x, distances = torch.randn(6, 3, 16, 16), {}
    for distance in ("mse", "kl"):
        seed_everything(0)
        recipe = MeanTeacher(replace(config, consistency=distance), "abc").train()
        with torch.no_grad():
            recipe.average.head.weight.neg_()
        metrics = recipe.training_step(pair((x, x.clone())), 0).metrics
        distances[distance] = float(metrics["consistency"])
    assert distances["mse"] > 1e-3, "the views are the same: the networks differ"
    assert distances["kl"] > 1.5 * distances["mse"], "Pinsker's inequality, for three classes"


def test_consistency_is_not_zero_in_a_run(config: Config) -> None:
    run(replace(config, max_steps=2))
    assert all(record["consistency"] > 1e-4 for record in read_metrics(config.out / "metrics.jsonl"))


def test_the_weight_ramps_up_and_the_gradient_is_the_students(config: Config) -> None:
    seed_everything(0)
    recipe = MeanTeacher(config, "abc").train()
    recipe.make_schedule(steps_per_epoch=10, total_steps=100)
    batch = pair((torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)))
    for step, weight in ((0, 30 * 0.006737947), (10, 30.0), (50, 30.0)):
        output = recipe.training_step(batch, step)
        expected = output.metrics["supervised"] + weight * output.metrics["consistency"]
        assert float(output.loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    output.loss.backward()
    assert recipe.classifier.head.weight.grad is not None
    assert all(p.grad is None for p in recipe.average.parameters())


def test_the_class_loss_is_a_share_of_all_images_and_all_parameters_decay(config: Config) -> None:
    """As in the published codes: with 2 labels among 6 images, the class loss is 2/6 of the mean."""
    seed_everything(0)
    recipe = MeanTeacher(config, "abc").train()
    x = torch.randn(6, 3, 16, 16)
    found = recipe.training_step(pair((x, x.clone())), 0).metrics["supervised"]
    expected = F.cross_entropy(recipe.classifier(x)[:2], torch.tensor([0, 1])) * 2 / 6
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)
    groups = MeanTeacher(replace(config, weight_decay=2e-4), "abc").make_optimizer().param_groups
    assert {group["weight_decay"] for group in groups} == {2e-4}
    assert sum(len(group["params"]) for group in groups) == len(list(recipe.classifier.parameters()))


def test_the_teacher_keeps_statistics_of_its_own_passes(config: Config) -> None:
    seed_everything(0)
    recipe = MeanTeacher(config, "abc").train()
    student, teacher = (network.backbone.conv1[1] for network in (recipe.classifier, recipe.average))
    x = torch.randn(6, 3, 16, 16)
    recipe.training_step(pair((x, 3.0 * x)), 0)
    own = teacher.running_var.clone()
    assert int(teacher.num_batches_tracked) == 1
    torch.testing.assert_close(own - 0.9, 9.0 * (student.running_var - 0.9), rtol=1e-3, atol=1e-4)
    recipe.after_step(0)
    assert torch.equal(teacher.running_var, own)
    assert torch.equal(teacher.weight, student.weight)


def test_the_teacher_remembers_longer_after_the_ramp(config: Config) -> None:
    recipe = MeanTeacher(config, "abc")
    recipe.make_schedule(steps_per_epoch=10, total_steps=100)
    for step, decay in ((9, 0.8), (10, 0.9)):
        before = recipe.average.head.bias.clone()
        with torch.no_grad():
            recipe.classifier.head.bias.copy_(before + 1.0)
        recipe.after_step(step)
        torch.testing.assert_close(recipe.average.head.bias, before + 1.0 - decay)


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="ema_decay: expected a share"):
        replace(config, ema_decay=1.5)


@pytest.mark.floor
def test_learns_the_digits(data: Data, tmp_path: Path) -> None:
    check("mean_teacher_digits", trainings.mean_teacher_digits(data, tmp_path / "run", 0))


@pytest.mark.floor
def test_the_teacher_teaches_what_the_labels_do_not(data: Data, tmp_path: Path) -> None:
    check("mean_teacher_clusters", trainings.mean_teacher_clusters(data, tmp_path / "run", 0))


def test_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path) -> None:
    check_exact_runs(replace(config, consistency="kl", consistency_weight=5.0), run, tmp_path, steps=6)
