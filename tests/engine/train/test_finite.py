"""Non-finite losses and gradients are reported with step and rows; the run ends, or the step is skipped."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file

from engine.train.checkpoint import list_checkpoints
from engine.train.distributed import make_accelerator
from engine.train.finite import save_bad_batch
from engine.train.metrics import NonFiniteLossError, read_metrics
from engine.train.options import OptimizerOptions
from engine.train.recipe import StepOutput
from loaders.batch import Batch, PairedBatch
from tests.engine.synthetic import SmallRecipe, SyntheticLoader, train_small


class BadGradientRecipe(SmallRecipe):
    """A recipe whose loss stays finite while its gradient, that of sqrt at 0, does not."""

    bad_step = 2

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        output = super().training_step(batch, step)
        weight = next(self.parameters())
        odd = torch.sqrt((weight.sum() * 0).abs()) if step == self.bad_step else 0.0
        return StepOutput(output.loss + odd, output.metrics)


def poisoned(step: int) -> SmallRecipe:
    recipe = SmallRecipe()
    recipe.poison_at = step
    return recipe


@pytest.mark.parametrize(("kind", "words"), [("loss", "a finite loss"), ("gradient", "finite gradients")])
def test_the_step_and_its_rows_are_named_and_its_batch_is_kept(tmp_path: Path, kind: str, words: str) -> None:
    recipe = poisoned(2) if kind == "loss" else BadGradientRecipe()
    with pytest.raises(
        NonFiniteLossError, match=rf"expected {words}.*first at step 3; .*rows 0, 1, 2"
    ) as caught:
        train_small(tmp_path / "run", recipe, log_every=6, checkpoint_every_steps=6)
    assert caught.value.step == 3
    kept = load_file(tmp_path / "run" / "bad_batches" / "step-00000003-rank0.safetensors")
    batch = list(SyntheticLoader().epoch(0))[2]
    assert torch.equal(kept["view_0"], batch.views[0])
    assert torch.equal(kept["view_1"], batch.views[1])
    assert kept["index"].tolist() == list(range(8))
    assert not list((tmp_path / "run" / "checkpoints").glob("*")), "nothing is saved after a bad step"
    assert "; there is no earlier checkpoint, so give another --out; rows 0, 1" in str(caught.value)


def test_the_checkpoint_before_a_bad_step_is_named(tmp_path: Path) -> None:
    for number, resume in enumerate((False, True)):  # saved by this process, then by an earlier one
        with pytest.raises(NonFiniteLossError, match="; the last earlier checkpoint is step-00000002; rows"):
            train_small(tmp_path / "run", poisoned(3), checkpoint_every_steps=2, log_every=6, resume=resume)
        assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
            "step-00000002"
        ], number


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_skipped_step_leaves_everything_as_it_was(tmp_path: Path, kind: str) -> None:
    recipe = poisoned(2) if kind == "loss" else BadGradientRecipe()
    states = []

    def before_step(epoch: int, step: int) -> None:
        states.append({name: tensor.clone() for name, tensor in recipe.state_dict().items()})

    loader = SyntheticLoader()
    loader.before_step = before_step
    weights, summary = train_small(tmp_path / "run", recipe, loader, on_non_finite="skip", max_steps=4)
    assert summary.step == 4
    before, after = states[2], states[3]  # the states before step 3, the bad one, and before step 4
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(weights[name], after[name]) for name in after), "the next step is taken"
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert recipe.steps_after == [0, 1, 3]
    assert (tmp_path / "run" / "bad_batches" / "step-00000003-rank0.safetensors").is_file()
    records = {record["step"]: record for record in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert records[3]["loss"] is None
    assert records[4]["num_skipped"] == 1
    assert "num_skipped" not in records[2]


def test_a_skipped_step_under_a_scaler_leaves_the_next_one_to_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16's gradient scaler, on a processor: clipping unscales the gradients once per step."""

    def scaled(precision: str) -> Accelerator:
        accelerator = make_accelerator(precision)
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=4.0)
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
        monkeypatch.setitem(vars(accelerator.state), "_mixed_precision", "fp16")
        return accelerator

    monkeypatch.setattr("tests.engine.synthetic.make_accelerator", scaled)
    clipped = OptimizerOptions(clip_norm=1.0)
    _, summary = train_small(tmp_path / "run", poisoned(2), on_non_finite="skip", optimizing=clipped)
    assert summary.step == 6
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["num_skipped"] == 1


def test_skipping_changes_nothing_where_all_is_finite(tmp_path: Path) -> None:
    expected, _ = train_small(tmp_path / "a")
    found, _ = train_small(tmp_path / "b", on_non_finite="skip")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_skips_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, _ = train_small(tmp_path / "a", poisoned(2), on_non_finite="skip")
    train_small(tmp_path / "b", poisoned(2), on_non_finite="skip", max_steps=2)
    resumed, _ = train_small(tmp_path / "b", poisoned(2), on_non_finite="skip", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_was_skipped_still_counts_after_a_resume(tmp_path: Path) -> None:
    train_small(tmp_path / "run", poisoned(1), on_non_finite="skip", max_steps=3)
    train_small(tmp_path / "run", poisoned(4), on_non_finite="skip", resume=True)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record.get("num_skipped") for record in records] == [None, 1, 1, 1, 2, 2]


def test_the_batch_of_a_pair_keeps_both_halves(tmp_path: Path) -> None:
    half = next(SyntheticLoader().epoch(0))
    labeled = Batch(half.views[:1], torch.arange(8), half.index + 100, half.valid)
    note = save_bad_batch(tmp_path, 5, PairedBatch(labeled, half))
    kept = load_file(tmp_path / "bad_batches" / "step-00000005-rank0.safetensors")
    assert kept.keys() == {
        *(f"labeled.{name}" for name in ("view_0", "index", "valid", "labels")),
        *(f"unlabeled.{name}" for name in ("view_0", "view_1", "index", "valid")),
    }
    assert "16 of rank 0" in note
