"""The sweep over labels per class: its commands, its resume, its table and its plot."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from rich.console import Console

import recipes.fixmatch
import recipes.transfer
from engine.evaluate.few_labels import SCRATCH, FewLabelResult, read_results
from engine.nets.backbones import build_backbone
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError
from loaders.common.files import to_json
from loaders.common.json_text import parse_json
from loaders.common.locks import alone_in
from loaders.packs import Pack
from tests.in_process import ROOT, run_script
from tools import label_sweep
from tools.label_sweep import Config, command_of, plan, read_methods, run, write_sweep


@pytest.fixture
def config(tmp_path: Path) -> Config:
    methods = ("barlow=transfer --init runs/b", "again=transfer --init runs/c", "fm=fixmatch --mu 3")
    return Config(
        pack=Path("packs/x"), out=tmp_path / "sweep", methods=methods, labels_per_class=(1, 4), seeds=(0, 1)
    )


def test_every_command_is_one_that_its_recipe_takes(config: Config) -> None:
    jobs = plan(config)
    assert len(jobs) == 2 * (1 + 1 + 2), "a transfer does all its numbers of labels in one process"
    for job in jobs:
        _, script, *arguments = command_of(config, job)
        recipe = {"transfer.py": recipes.transfer, "fixmatch.py": recipes.fixmatch}[Path(script).name]
        found = tyro.cli(recipe.Config, args=arguments)
        assert found.out == config.out / job.folder
        if recipe is recipes.transfer:
            assert (found.seeds, found.labels_per_class) == ((job.seed,), (1, 4))
            assert found.beside_scratch == (job.method.name == "barlow"), "once is enough"
        else:
            assert (found.seed, found.label_seed, found.mu) == (job.seed, job.seed, 3)
            assert (found.labels_per_class,) == job.labels_per_class
    assert len({job.folder for job in jobs}) == len(jobs)


@pytest.mark.parametrize("text", ["barlow", "=transfer", "a/b=transfer", "x=", "x=nothing"])
def test_a_wrong_method_is_named(text: str) -> None:
    with pytest.raises(UserError, match="methods: expected"):
        read_methods([text])


def test_names_are_different() -> None:
    for texts in (["a=transfer", "a=fixmatch"], ["scratch=transfer"]):
        with pytest.raises(UserError, match="different names"):
            read_methods(texts)


def test_table_and_plot(config: Config) -> None:
    results = [
        FewLabelResult(init, k, seed, 0.2 + 0.1 * seed, 100, 5, 0.6 + 0.1 * seed)
        for init in (SCRATCH, "a", "b", "c", "d")
        for k in (1, 4)
        for seed in (0, 1)
    ]
    write_sweep(config, results)
    assert read_results(config.out)[0] == results
    lines = list(csv.DictReader(io.StringIO((config.out / "sweep.csv").read_text())))
    assert [(line["method"], line["labels_per_class"]) for line in lines][:2] == [("a", "1"), ("a", "4")]
    assert lines[-1]["method"] == SCRATCH
    assert float(lines[0]["top1_mean_percent"]) == pytest.approx(25)
    assert float(lines[0]["top1_spread_percent"]) == pytest.approx(7.07, abs=0.01)
    assert float(lines[0]["top5_mean_percent"]) == pytest.approx(65)
    assert (config.out / "sweep.png").stat().st_size > 1000
    shown = io.StringIO()
    Console(file=shown, width=120).print(label_sweep.render(label_sweep.summarise(results)))
    assert shown.getvalue().count("25.0 ± 7.1") == 10
    assert shown.getvalue().count("65.0 ± 7.1") == 10


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    seed_everything(7)
    folder = tmp_path / "pretrained"
    folder.mkdir()
    save_backbone(folder, build_backbone("test_resnet", 16), {"backbone": "test_resnet", "resolution": "16"})
    return folder


HERE = threading.Lock()  # scripts run here share arguments, streams and tyro's cache


def run_here(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    python, script, *arguments = command
    assert python == sys.executable
    with HERE:
        return run_script(str(Path(script).relative_to(ROOT)), *arguments)


def test_a_sweep_on_the_digits_and_its_resume(
    config: Config, pretrained: Path, little_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = "--pretrained.steps 3 --from-scratch.steps 3 --flip-p 0"
    methods = (
        f"transfer=transfer --init {pretrained} {quick}",
        "alone=supervised --backbone test_resnet --resolution 16 --epochs 2 --flip-p 0",
    )
    config = replace(config, pack=little_pack.path, methods=methods, labels_per_class=(2,), seeds=(0,))
    monkeypatch.setattr(subprocess, "run", run_here)
    quiet = Console(file=io.StringIO())
    results = run(config, quiet)
    assert [(r.init, r.labels_per_class, r.num_test) for r in results] == [
        ("alone", 2, 200),
        (SCRATCH, 2, 200),
        ("transfer", 2, 200),
    ]
    assert all(r.top5 is not None and r.top5 >= r.top1 for r in results)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a finished run was started again"))
    assert run(replace(config, num_threads=2), quiet) == results, "everything is taken from disk"
    other = replace(config, methods=(*methods[:1], methods[1].replace("--epochs 2", "--epochs 3")))
    with pytest.raises(UserError, match="made by other options"):
        run(other, quiet)
    save_backbone(
        pretrained, build_backbone("test_resnet", 16), {"backbone": "test_resnet", "resolution": "16"}
    )
    with pytest.raises(UserError, match=r"was made from other weights .* found .*; 1 of 2 runs failed"):
        run(config, quiet)
    done = config.out / "transfer" / "labels-2-seed-0.json"
    older = {name: value for name, value in parse_json(done.read_bytes()).items() if name != "start"}
    done.write_bytes(to_json(older))
    assert run(config, quiet) == results


def test_another_pack_or_a_second_command_is_told_before_any_run(
    config: Config, little_pack: Pack, digits_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [FewLabelResult("fm", 1, 0, 0.5, 10, 0)]
    monkeypatch.setattr(label_sweep, "run", lambda config, console: measured)
    monkeypatch.setattr(label_sweep, "write_sweep", lambda config, results: None)

    def sweep(pack: Pack) -> subprocess.CompletedProcess[str]:
        given = ("--pack", pack.path, "--out", config.out, "--methods", "fm=fixmatch")
        return run_script("tools/label_sweep.py", *given)

    with alone_in(config.out):
        second = sweep(little_pack)
    assert "out: expected no other command in" in second.stderr
    for _ in range(2):
        assert sweep(little_pack).returncode == 0
    other = sweep(digits_pack)
    assert other.returncode == 2
    assert "pack: expected 'of " in other.stderr


def test_a_failure_is_named_and_the_others_go_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(config: Config, job: label_sweep.Job) -> list[str]:
        program = f"print('first'); raise SystemExit({'last words' if job.seed else 0!r})"
        return [sys.executable, "-c", program, "--num-threads", "1"]

    found = [FewLabelResult("a", 1, 0, 0.5, 10, 0)]
    monkeypatch.setattr(label_sweep, "command_of", command)
    monkeypatch.setattr(label_sweep, "collect", lambda job, folder: found)
    config = replace(config, methods=("fm=fixmatch",), labels_per_class=(1,), seeds=(1, 0))
    with pytest.raises(UserError, match=r"fm/labels-1-seed-1 exited with 1: last words .*1 of 2 runs failed"):
        run(config, Console(file=io.StringIO()))
    assert (config.out / "fm" / "labels-1-seed-1.log").read_text().splitlines() == ["first", "last words"]
    assert not (config.out / "fm" / "labels-1-seed-1.json").exists()
    assert (config.out / "fm" / "labels-1-seed-0.json").exists(), "what succeeded is kept"


def test_what_waits_for_its_turn_does_not_begin_after_ctrl_c(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def job(config: Config, job: label_sweep.Job) -> list[FewLabelResult]:
        begun.append(job.folder)
        time.sleep(0.1)
        return []

    def interrupt(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label_sweep, "run_job", job)
    console = Console(file=io.StringIO())
    monkeypatch.setattr(console, "print", interrupt)  # interrupt at the message about the first of six
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, methods=("fm=fixmatch",), labels_per_class=(1, 2, 4), jobs=1), console)
    assert len(begun) <= 2


def test_a_recipe_that_measured_nothing_is_named(config: Config, tmp_path: Path) -> None:
    job = plan(replace(config, methods=("fm=fixmatch",)))[0]
    with pytest.raises(UserError, match=r"expected accuracy.json from fixmatch in .*, found none"):
        label_sweep.collect(job, tmp_path)
