"""A run warns of settings and results that raise no error but from which nothing is learned."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.evaluate.predict import Accuracy
from engine.train import progress
from engine.train.advice import at_chance, before, no_better_than_start, stride_of, without_movement
from engine.train.progress import CountProgress, RowsProgress, TrainingProgress, duration
from engine.train.tuning_config import FineTuning


def said(
    config: dict,
    backbone: object = None,
    classes: tuple[str, ...] | None = None,
    steps_per_epoch: int | None = None,
) -> list[str]:
    settings = {"warmup_epochs": 0.0, "epochs": 10, "backbone": "net", "resolution": 96}
    recipe = SimpleNamespace(backbone=backbone, classifier=SimpleNamespace(classes=classes))
    return list(before(SimpleNamespace(**{**settings, **config}), recipe, steps_per_epoch))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (said({"warmup_epochs": 10.0}), "warmup_epochs: expected fewer than the 10 epochs"),
        (
            said({"warmup_epochs": 2.0, "steps": 8}, steps_per_epoch=4),
            "than the 2 epochs of the run, found 2",
        ),
        (said({}, classes=("cat",)), "classes: expected two or more, found 1 (cat)"),
    ],
)
def test_before_a_run(found: list[str], expected: str) -> None:
    assert len(found) == 1
    assert expected in found[0]


def test_usual_settings_are_not_commented() -> None:
    assert said({"warmup_epochs": 9.0}, classes=("cat", "dog")) == []


def test_a_resolution_below_the_stride() -> None:
    from engine.nets.backbones import build_backbone

    backbone = build_backbone("resnet18", 64)
    assert stride_of(backbone) == 32
    assert stride_of(torch.nn.Linear(2, 2)) is None
    assert "expected at least 32 pixels, the stride of net, found 7" in said({"resolution": 7}, backbone)[0]
    assert said({"resolution": 32}, backbone) == []


@pytest.mark.parametrize("name", ["tiny_resnet", "compact_cnn", "wrn_28_2", "resnet18"])
def test_the_stride_is_what_the_last_map_shows(name: str) -> None:
    from engine.nets.backbones import build_backbone

    backbone: Any = build_backbone(name, 64).eval()
    if name == "compact_cnn":  # its stem removes one pixel
        maps = backbone.blocks(backbone.stem(torch.zeros(1, 3, 65, 65)))
    else:
        maps = backbone.forward_features(torch.zeros(1, 3, 64, 64))
    assert stride_of(backbone) == 64 // maps.shape[-1]


def test_labels_at_chance() -> None:
    ten = tuple("abcdefghij")
    for share, said in ((0.12, "12.0%"), (0.03, "3.0%")):
        line = at_chance(Accuracy(share, 100), ten) or ""
        assert f"{said} of 100 test images is no better than guessing among 10 classes (10.0%)" in line
    assert at_chance(Accuracy(0.2, 400), ten) is None
    assert at_chance(Accuracy(1.0, 5), ("one",)) is None
    assert at_chance(None, ten) is None


def test_a_loss_that_does_not_move() -> None:
    still = [{"step": i, "loss": 2.3 + 0.001 * (i % 2)} for i in range(20)]
    assert "2.3" in (without_movement(still) or "")
    assert without_movement([{"loss": 2.3 - 0.01 * i} for i in range(20)]) is None
    assert without_movement(still[:5]) is None


def test_a_training_that_never_exceeds_its_probe() -> None:
    def records(*top1: float, first: int = 0) -> list[dict[str, float]]:
        measured = [{"step": first + 10 * n, "validation_top1": value} for n, value in enumerate(top1)]
        return [{"step": 5, "loss": 1.0}, *measured]

    said = no_better_than_start(records(0.9, 0.6, 0.8))
    assert said is not None
    assert "(90.0%, later at most 80.0%)" in said
    assert no_better_than_start(records(0.9, 0.6, 0.9)) is None, "as good as the start, on few images"
    assert no_better_than_start(records(0.9, 0.91)) is None
    assert no_better_than_start(records(1.0, 1.0)) is None
    assert no_better_than_start(records(0.9)) is None, "nothing was trained"
    assert no_better_than_start(records(0.9, 0.6, first=10)) is None, "it did not begin at a probe"


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12000, "3 h 20 min"), (216000, "2.5 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_estimate_comes_soon_after_the_first_batch(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    shown = TrainingProgress("barlow", 1000, 0, visible=True)
    for step in range(1, 40):
        now += 0.5
        shown.advance(step)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "barlow: about 8 min for the 989 remaining steps, 0.5 s a step"
    ]  # shown 5 s after the first step
    slow = TrainingProgress("barlow", 1000, 0, visible=True)
    now += 30
    slow.advance(1)
    assert "the first step took 30 s" in capsys.readouterr().err


def test_work_whose_length_is_found_first_is_timed_from_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with CountProgress("packing", 0, 0, True) as shown:
        for now, done in ((100.0, 5_000), (110.0, 5_500)):  # 5,000 were there before a stop
            clock[0] = now
            shown.show(done, 10_000)
    assert "5,500 of 10,000 images, 50 images/s, about 2 min left" in capsys.readouterr().err


def test_fine_tuning_is_told_of_a_warm_up_as_long_as_itself() -> None:
    tuning = FineTuning(0.1, 0.1, "batch", steps=10, warmup_steps=10)
    assert "expected fewer than the 10 steps of the training, found 10" in (tuning.long_warmup or "")
    assert FineTuning(0.1, 0.1, "batch", steps=10, warmup_steps=9).long_warmup is None


def test_the_time_of_several_trainings_is_told_after_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    rows = RowsProgress(3, visible=True)
    for name in "abc":
        now += 60.0
        rows.add(name)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/3] a; about 2 min for the other 2",
        "[2/3] b; about 60 s for the other 1",
        "[3/3] c",
    ]


@pytest.mark.parametrize(("batches", "steps"), [(1, 100), (5, 100), (6, 120), (100, 2000)])
def test_the_length_of_fine_tuning_follows_the_labels(batches: int, steps: int) -> None:
    tuning = FineTuning(0.1, 0.1, "batch")
    assert tuning.with_steps(batches).steps == steps
    assert FineTuning(0.1, 0.1, "batch", steps=7).with_steps(batches).steps == 7
