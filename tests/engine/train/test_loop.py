"""The loop: exact resume, refusals, finite checks, and stopping on SIGTERM."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.nets.backbones import load_backbone
from engine.train import loop
from engine.train.checkpoint import find_damage, list_checkpoints
from engine.train.distributed import seed_everything
from engine.train.loop_config import LoopConfig
from engine.train.metrics import NonFiniteLossError, read_metrics
from engine.train.optimizers import fused_on
from engine.train.options import OptimizerOptions
from engine.train.recipe import StepOutput
from engine.train.run import describe_training
from engine.train.stop import EXIT_STOPPED
from loaders.batch import Batch
from loaders.common.errors import UserError
from tests.engine.synthetic import SmallRecipe, SyntheticLoader, train_small
from tests.forked import Forked


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


class Killed(Exception):
    """Raised in place of a kill, which would end the process."""


def killer(at: tuple[int, int]):
    def before_step(epoch: int, step: int) -> None:
        if (epoch, step) == at:
            raise Killed

    return before_step


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    weights, _ = train_small(out, checkpoint_every_steps=2)
    return out, weights


def test_the_same_run_twice_gives_the_same_bits(tmp_path: Path, whole_run) -> None:
    weights, _ = train_small(tmp_path / "again", checkpoint_every_steps=2)
    assert_same_bits(weights, whole_run[1])


@pytest.mark.parametrize(
    ("saved", "present"), [({}, {"a": "new"}), ({"a": "old"}, {"a": "new"}), ({"a": "x"}, {})]
)
def test_a_resume_under_other_rules_is_refused(tmp_path: Path, saved, present) -> None:
    def recipe(rules: dict[str, str]) -> SmallRecipe:
        return type("Ruled", (SmallRecipe,), {"rules": rules})()

    train_small(tmp_path / "run", recipe(saved), max_steps=1)
    with pytest.raises(UserError, match=r"expected the rule '(new|none)' for a, found '(that|old|x)"):
        train_small(tmp_path / "run", recipe(present), resume=True)
    assert train_small(tmp_path / "run", recipe(saved), resume=True)[1].step == 6


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, whole_run) -> None:
    out = tmp_path / "run"
    loader = SyntheticLoader()
    loader.before_step = killer(at=(1, 0))  # after 3 steps; the last checkpoint is of step 2, in epoch 0
    with pytest.raises(Killed):
        train_small(out, loader=loader, checkpoint_every_steps=2)
    assert [c.name for c in list_checkpoints(out / "checkpoints")] == ["step-00000002"]
    weights, summary = train_small(out, checkpoint_every_steps=2, resume=True)
    assert_same_bits(weights, whole_run[1])
    assert summary.step == summary.total_steps == 6
    records = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    expected = read_metrics(whole_run[0] / "metrics.jsonl")
    assert [r["loss"] for r in records] == [r["loss"] for r in expected]


def test_a_compiled_backbone_trains_the_same_weights_under_the_same_names(
    tmp_path: Path, whole_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that captures graphs without compiling them; the run then resumes uncompiled."""
    captured, compiles = [], torch.nn.Module.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiles(module, backend=backend))
    train_small(tmp_path / "run", compile=True, max_steps=3)
    assert captured
    weights, _ = train_small(tmp_path / "run", resume=True)
    assert_same_bits(weights, whole_run[1])


@pytest.mark.parametrize("before", [True, False])
def test_a_fused_run_resumes_to_the_same_bits_and_others_go_on_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """As on a GPU. The device decides whether steps are fused; a checkpoint does not carry this setting."""
    fused: list[bool] = []

    def on_gpu(device: torch.device, optimizer: Optimizer, scaled: bool) -> Optimizer:
        return fused_on(torch.device("cuda" if fused[-1] else "cpu"), optimizer)

    monkeypatch.setattr(loop, "fused_on", on_gpu)
    rules: Any = {"optimizing": OptimizerOptions(optimizer="adamw", optimizer_lr=1e-3)}
    fused.append(True)
    whole, _ = train_small(tmp_path / "whole", **rules)
    fused.append(before)
    train_small(tmp_path / "run", max_steps=4, **rules)
    fused.append(True)
    weights, _ = train_small(tmp_path / "run", resume=True, **rules)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    groups = json.loads((newest / "optimizer.json").read_text())["param_groups"]
    assert all(group["fused"] is True for group in groups)
    if before:
        assert_same_bits(weights, whole)
    else:
        torch.testing.assert_close(weights, whole, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(("log_every", "killed_at"), [(6, (1, 1)), (4, (0, 2)), (4, (1, 2))])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(
    tmp_path: Path, log_every: int, killed_at: tuple[int, int]
) -> None:
    """This includes means over a log window with steps from before and after the kill."""
    options = {"log_every": log_every, "checkpoint_every_steps": 1}
    train_small(tmp_path / "whole", **options)
    loader = SyntheticLoader()
    loader.before_step = killer(killed_at)
    with pytest.raises(Killed):
        train_small(tmp_path / "run", loader=loader, **options)
    train_small(tmp_path / "run", resume=True, **options)
    found, expected = (
        [
            {name: value for name, value in record.items() if name not in ("img_per_s", "wait_share")}
            for record in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("run", "whole")
    )
    assert found == expected
    assert "redundancy" in found[-1]


def test_a_length_in_steps_replaces_epochs(tmp_path: Path, whole_run) -> None:
    # Six steps equal the two epochs of the whole run; seven reach into a third epoch and change the schedule.
    weights, _ = train_small(tmp_path / "six", epochs=1, steps=6)
    assert_same_bits(weights, whole_run[1])
    _, summary = train_small(tmp_path / "seven", epochs=1, steps=7)
    assert summary.step == summary.total_steps == 7
    records = read_metrics(tmp_path / "seven" / "metrics.jsonl")
    assert [r["epoch"] for r in records] == [0, 0, 0, 1, 1, 1, 2]
    last = 0.5 * (0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * 5 / 6)))  # peak 0.5, one warm-up step
    assert records[-1]["lr"] == pytest.approx(last)


def test_the_last_line_of_a_run_has_the_figures_of_its_last_window(tmp_path: Path, whole_run) -> None:
    _, summary = train_small(tmp_path / "run", log_every=4)
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["step"] == 6
    assert (summary.loss, summary.metrics) == (last["loss"], {"redundancy": last["redundancy"]})
    said = describe_training(summary, tmp_path / "run")
    assert said.startswith(f"6 of 6 steps, loss {last['loss']:.4g}, redundancy {last['redundancy']:.4g}, ")
    _, again = train_small(tmp_path / "run", log_every=4, resume=True)
    assert describe_training(again, tmp_path / "run") == "6 of 6 steps, all taken by an earlier process"


def test_max_steps_then_resume_gives_the_same_bits(tmp_path: Path, whole_run) -> None:
    _, first = train_small(tmp_path / "run", max_steps=4)
    assert (first.step, first.total_steps) == (4, 6)
    weights, _ = train_small(tmp_path / "run", resume=True)
    assert_same_bits(weights, whole_run[1])


def test_a_damaged_newest_checkpoint_is_stepped_over(tmp_path: Path, whole_run, capsys) -> None:
    out = tmp_path / "run"
    train_small(out, checkpoint_every_steps=2, max_steps=4)
    victim = out / "checkpoints" / "step-00000004" / "model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    weights, _ = train_small(out, checkpoint_every_steps=2, resume=True, progress=True)
    assert_same_bits(weights, whole_run[1])
    said = capsys.readouterr().err
    assert "step-00000004 is damaged: model.safetensors differs from its SHA-256" in said
    assert "resumed step-00000002" in said


def test_no_byte_of_what_a_checkpoint_says_of_itself_is_taken_on_trust(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_small(out, max_steps=2)
    found = out / "checkpoints" / "step-00000002"
    meta = found / "meta.json"
    content = meta.read_bytes()
    assert find_damage(found) is None
    for i in range(len(content) - 1):  # all but the final line break
        meta.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        assert find_damage(found) is not None
    meta.write_bytes(content.replace(b'"step": 2', b'"step": 3'))
    with pytest.raises(UserError, match="differs from its SHA-256"):
        train_small(out, resume=True)


def test_without_any_whole_checkpoint_nothing_starts_over_silently(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_small(out, max_steps=2)
    (out / "checkpoints" / "step-00000002" / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"expected an intact checkpoint.*found 1 damaged"):
        train_small(out, resume=True)


def test_a_stray_file_among_the_checkpoints_is_none(tmp_path: Path, whole_run) -> None:
    out = tmp_path / "run"
    train_small(out, max_steps=2)
    (out / "checkpoints" / "step-99999999").write_text("a note")
    weights, _ = train_small(out, resume=True, keep_checkpoints=1)
    assert_same_bits(weights, whole_run[1])
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-00000006"]
    assert (out / "checkpoints" / "step-99999999").read_text() == "a note"


def test_resume_of_a_new_folder_starts_at_step_0(tmp_path: Path, whole_run) -> None:
    weights, _ = train_small(tmp_path / "run", resume=True)
    assert_same_bits(weights, whole_run[1])


def test_a_run_folder_in_use_is_refused(tmp_path: Path, whole_run) -> None:
    before = (whole_run[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match="already holds this run; add --resume"):
        train_small(whole_run[0])
    with pytest.raises(UserError, match=r"holds a run with width = 1, but width = 2"):
        train_small(whole_run[0], config={"width": 2}, resume=True)
    assert (whole_run[0] / "config.json").read_bytes() == before
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="expected an empty folder or a run"):
        train_small(tmp_path, resume=True)


class OtherRecipe(SmallRecipe):
    name = "other"


def test_a_checkpoint_of_another_recipe_or_network_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_small(out, max_steps=2)
    with pytest.raises(UserError, match=r"expected a run of recipe 'other'.*found one of 'small'"):
        train_small(out, OtherRecipe(), resume=True)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "recipe": "other"}))
    with pytest.raises(UserError, match="expected one of recipe 'other', found 'small'"):
        train_small(out, OtherRecipe(), resume=True)
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"projector.3.weight of shape \[24, 32\], found \[16, 32\]"):
        train_small(out, SmallRecipe(embedding=24), resume=True)
    with pytest.raises(UserError, match="expected steps per epoch 3, found 4"):
        train_small(out, loader=SyntheticLoader(steps_per_epoch=4), resume=True)


def test_old_checkpoints_go_and_the_backbone_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    weights, summary = train_small(
        out, checkpoint_every_steps=1, keep_checkpoints=2, backbone_metadata={"resolution": "16"}
    )
    assert [c.name for c in list_checkpoints(out / "checkpoints")] == ["step-00000005", "step-00000006"]
    assert not [p for p in out.rglob("*") if p.name.startswith(".")], "nothing half-written is left"
    assert summary.backbone == out / "backbone.safetensors"
    own = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    assert_same_bits(load_backbone(out).state_dict(), own)


def test_damaged_lines_of_metrics_do_not_hold_up_a_resume(tmp_path: Path, whole_run, capsys) -> None:
    """A machine crash can leave blocks of zeros, half lines, and lines of steps that will be repeated."""
    out = tmp_path / "run"
    loader = SyntheticLoader()
    loader.before_step = killer(at=(1, 2))
    with pytest.raises(Killed):
        train_small(out, loader=loader, checkpoint_every_steps=4)
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    damaged = [b"\0" * 40, *lines[1:4], lines[4][:20], b'"no record"', b'{"step": "x"}', b'{"step"']
    path.write_bytes(b"\n".join(damaged))
    weights, _ = train_small(out, checkpoint_every_steps=4, resume=True, progress=True)
    assert_same_bits(weights, whole_run[1])
    assert [r["step"] for r in read_metrics(path)] == [2, 3, 4, 5, 6]
    assert "metrics.jsonl: left out 3 damaged lines" in capsys.readouterr().err


def test_a_step_that_is_not_finite_is_named_and_not_saved(tmp_path: Path) -> None:
    recipe = SmallRecipe()
    recipe.poison_at = 3
    with pytest.raises(NonFiniteLossError, match="first at step 4"):
        train_small(tmp_path / "run", recipe, checkpoint_every_steps=5, log_every=6)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_metrics_hold_what_the_figures_need(whole_run) -> None:
    records = read_metrics(whole_run[0] / "metrics.jsonl")
    assert {"step", "epoch", "loss", "redundancy", "lr", "img_per_s", "wait_share"} <= records[0].keys()
    assert [r["epoch"] for r in records] == [0, 0, 0, 1, 1, 1]
    assert records[0]["lr"] == 0.0
    assert records[1]["lr"] == 0.5
    assert all(r["img_per_s"] > 0 and 0 <= r["wait_share"] <= 1 for r in records)


def test_time_spent_waiting_for_data_is_measured(tmp_path: Path) -> None:
    loader = SyntheticLoader()
    loader.before_step = lambda epoch, step: time.sleep(0.2)
    _, summary = train_small(tmp_path / "run", loader=loader, max_steps=3)
    # At least one of the waits is counted; a test of the share itself would depend on the machine's load.
    assert summary.wait_share * summary.seconds > 0.15
    assert summary.img_per_s < 8 / 0.2


def test_the_hook_runs_after_every_step_and_clipping_is_logged(tmp_path: Path) -> None:
    recipe = SmallRecipe()
    train_small(tmp_path / "run", recipe, optimizing=OptimizerOptions(clip_norm=0.5), max_steps=2)
    assert recipe.steps_after == [0, 1]
    assert all(r["grad_norm"] > 0 for r in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_loader_that_ends_early_is_an_error(tmp_path: Path) -> None:
    loader = SyntheticLoader()
    loader.epoch = lambda epoch, start_step=0: iter(list(SyntheticLoader().epoch(0))[:2])  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="expected 3 steps in epoch 0, got 2"):
        train_small(tmp_path / "run", loader=loader)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"log_every": 0}, {"steps": 0}, {"max_steps": -1}])
def test_counts_that_make_no_run_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(bad))}: expected"):
        LoopConfig(**{"out": Path("x"), "epochs": 1, **bad})


def test_a_run_killed_before_its_first_line_starts_again(tmp_path: Path) -> None:
    """The kill left only a half-written configuration file of the dead process."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.123.tmp").write_text('{"recipe": ')
    train_small(tmp_path / "run", max_steps=1, resume=True)
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert (tmp_path / "run" / "config.json").is_file()


HANGING_RUN = """
import sys, time
from pathlib import Path
from tests.engine.synthetic import SyntheticLoader, train_small
loader, steps = SyntheticLoader(), iter(range(100))
def before_step(epoch, step):
    print("step", flush=True)
    time.sleep(90 if next(steps) == int(sys.argv[2]) else 0)
loader.before_step = before_step
train_small(Path(sys.argv[1]), loader=loader, checkpoint_every_steps=1000)
"""


@pytest.mark.parametrize("hangs_at", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_sigterm_saves_and_exits_with_its_own_code(tmp_path: Path, whole_run, hangs_at: int) -> None:
    """This holds however long a batch takes, even for the first one."""
    out = tmp_path / "run"
    with Forked("-c", HANGING_RUN, out, hangs_at) as process:
        process.wait_for_lines(hangs_at + 1)
        start = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        code = process.wait().returncode
    assert code == EXIT_STOPPED
    assert time.monotonic() - start < 60  # 10 s on an idle machine; the batch takes 90
    assert [c.name for c in list_checkpoints(out / "checkpoints")] == [f"step-{hangs_at:08d}"]
    weights, _ = train_small(out, checkpoint_every_steps=1000, resume=True)
    assert_same_bits(weights, whole_run[1])


class ToldRecipe(SmallRecipe):
    """A recipe that sends itself a signal `times` times in the middle of step `at`."""

    def __init__(self, at: int, times: int, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.at, self.times, self.number = at, times, number

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        for _ in range(self.times if step == self.at else 0):
            signal.raise_signal(self.number)
        return super().training_step(batch, step)


@pytest.mark.parametrize("at", [2, 5])
@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_in_a_step_stops_after_it_also_in_the_last_one(
    tmp_path: Path, whole_run, at: int, times: int
) -> None:
    """Several signals at once have the same effect: a scheduler and a launcher may both send one."""
    seed_everything(5)  # as `train_small` does before it builds a recipe
    recipe = ToldRecipe(at, times)
    with pytest.raises(SystemExit) as ended:
        train_small(tmp_path / "run", recipe)
    assert ended.value.code == EXIT_STOPPED
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{at + 1:08d}"
    weights, _ = train_small(tmp_path / "run", resume=True)
    assert_same_bits(weights, whole_run[1])


def test_ctrl_c_in_a_step_stops_after_it_and_resumes_exactly(tmp_path: Path, whole_run) -> None:
    seed_everything(5)  # as `train_small` does before it builds a recipe
    with pytest.raises(KeyboardInterrupt, match="saved step 3; run the same command with --resume"):
        train_small(tmp_path / "run", ToldRecipe(2, 1, signal.SIGINT))
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000003"
    weights, _ = train_small(tmp_path / "run", resume=True)
    assert_same_bits(weights, whole_run[1])


HOLDER = """
import sys, time
from pathlib import Path
from tests.engine.synthetic import SyntheticLoader, train_small
loader = SyntheticLoader()
loader.before_step = lambda epoch, step: (print("step", flush=True), time.sleep(60))
train_small(Path(sys.argv[1]), loader=loader, resume=True)
"""


def test_a_run_folder_serves_one_command_at_a_time(tmp_path: Path, whole_run) -> None:
    out = tmp_path / "run"
    train_small(out, max_steps=2)
    with Forked("-c", HOLDER, out) as process:
        process.wait_for_lines(1)
        with pytest.raises(UserError, match=r"expected no other process in .*, found one running"):
            train_small(out, resume=True)
    weights, _ = train_small(out, resume=True)  # a killed process leaves no lock
    assert_same_bits(weights, whole_run[1])


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    train_small(tmp_path / "run", max_steps=2)
    loader = SyntheticLoader()
    loader.fingerprint = {"pack": "another of the same size"}
    with pytest.raises(UserError, match="expected pack synthetic, found another of the same size; resume"):
        train_small(tmp_path / "run", loader=loader, resume=True)
