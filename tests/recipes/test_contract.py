"""The promises of every self-supervised recipe: runs repeat and resume exactly, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluate.online_probe import read_probe
from engine.nets.backbones import load_backbone
from engine.train.metrics import read_metrics
from tests.recipes.short_runs import SMALL, run_short

CLOCK = ("img_per_s", "wait_share")


def losses(out: Path) -> list[dict[str, float]]:
    records = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


@pytest.fixture(scope="module")
def whole(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in SMALL:
        run_short(name, few_digits, folder / name)
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_an_interrupted_run_ends_like_a_whole_one(
    name: str, whole: Path, few_digits: Path, tmp_path: Path
) -> None:
    for max_steps in (1, 2, 4):  # stop in an epoch, between epochs, at the end
        summary = run_short(name, few_digits, tmp_path / name, max_steps=max_steps, resume=True)
    assert summary.step == summary.total_steps == 4
    assert losses(tmp_path / name) == losses(whole / name)
    assert (tmp_path / name / "backbone.safetensors").read_bytes() == (
        whole / name / "backbone.safetensors"
    ).read_bytes()
    assert load_backbone(tmp_path / name).num_features == (16 if name == "dcgan" else 96)


@pytest.mark.parametrize("name", SMALL)
def test_another_seed_is_another_run(name: str, whole: Path, few_digits: Path, tmp_path: Path) -> None:
    run_short(name, few_digits, tmp_path / name, seed=1, max_steps=1)
    assert losses(tmp_path / name)[0]["loss"] != losses(whole / name)[0]["loss"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SMALL)
def test_two_processes_equal_one(name: str, whole: Path, by_two: Path) -> None:
    for found, expected in zip(losses(by_two / name), losses(whole / name), strict=True):
        # If two logits are nearly equal, rounding decides, so one image of 32 may be classified differently.
        shares = {n for n in found if n.endswith(("top1", "ordered"))}
        for metric in found:
            tolerance = {"abs": 1.5 / 32} if metric in shares else {"rel": 2e-3, "abs": 1e-5}
            assert found[metric] == pytest.approx(expected[metric], **tolerance), metric


def test_the_probe_of_two_processes_sees_what_that_of_one_does(whole: Path, by_two: Path) -> None:
    one, two = read_probe(whole / "rotnet"), read_probe(by_two / "rotnet")
    assert [r["step"] for r in one] == [r["step"] for r in two] == [2, 4]
    for found, expected in zip(two, one, strict=True):
        assert found["knn_top1"] == pytest.approx(expected["knn_top1"], abs=2 / 64)
        assert found["linear_top1"] == pytest.approx(expected["linear_top1"], abs=2 / 64)


def test_a_run_without_the_probe_ends_with_the_same_bytes(
    whole: Path, few_digits: Path, tmp_path: Path
) -> None:
    run_short("rotnet", few_digits, tmp_path / "run", probe_every_epochs=0)
    assert losses(tmp_path / "run") == losses(whole / "rotnet")
    last = Path("checkpoints") / "step-00000004"
    for file in ("backbone.safetensors", last / "model.safetensors", last / "rng.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / "rotnet" / file).read_bytes(), file
