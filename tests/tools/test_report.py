"""The report of a run shows its views, curves, accuracies and options."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from engine.evaluate.few_labels import SCRATCH, FewLabelResult, write_results
from engine.evaluate.results import Evaluation, FrozenAccuracy, write_evaluation
from engine.report.run_page import original_pixels, phases_of, read_logs
from engine.train.run_folder import opened_run, say_next_of_run
from engine.train.samples import save_samples
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.packs import Pack
from tests.in_process import run_script
from tests.next_line import read_next_line
from tools.report import Config, build_report


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    """A small run folder with the files that training, evaluation and transfer write."""
    run = tmp_path / "run"
    options = {
        "pack": str(digits_pack.path),
        "note": "<b>bold & bare</b>",
        "loading": {"verify": False, "timeout_s": 120.5},
    }
    with opened_run(run, "barlow", options, (), resume=False):
        pass
    index = torch.tensor([30, 4, 30, 700])
    views = tuple(torch.randn(4, 3, 24, 24) for _ in range(2))
    save_samples(run, Batch(views, None, index, torch.ones(4, dtype=torch.bool)))
    records = [
        {
            "step": s,
            "epoch": 0,
            "loss": 9.0 / s,
            "lr": 0.1,
            "img_per_s": None if s == 1 else 50.0,
            "wait_share": 0.1,
        }
        for s in (1, 2, 3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    rows = tuple(
        FrozenAccuracy(name, knn, 0.987, 1.0, probe_converged=True, num_train=1352, num_test=445)
        for name, knn in (("barlow", 0.971), ("untrained", 0.609))
    )
    write_evaluation(run, Evaluation(rows))
    few_labels = tmp_path / "transfer"
    few_labels.mkdir()
    results = [
        FewLabelResult(init, k, seed, base + 0.02 * seed, 445, 100)
        for init, base in ((str(run), 0.7), (SCRATCH, 0.4))
        for k in (1, 5)
        for seed in (0, 1, 2)
    ]
    write_results(few_labels, results, {})
    (tmp_path / "commands.txt").write_text("python a.py\npython b.py --x '<y>'\n")
    return Config(run=run, few_labels=few_labels, commands=tmp_path / "commands.txt", title="Digits & more")


def test_everything_is_on_the_page(config: Config) -> None:
    page = build_report(config)
    assert "<h1>Digits &amp; more</h1>" in page
    assert "&lt;b&gt;bold &amp; bare&lt;/b&gt;" in page
    assert "python b.py --x &#x27;&lt;y&gt;&#x27;" in page
    assert page.count('title="image"') == page.count('title="view b"') == 4
    assert page.count("<picture>") == 2
    for text in (
        "97.1 %",
        "60.9 % untrained",
        "72.0 ± 2.0",
        "42.0 ± 2.0",
        "pre-trained (run)",
        "over 3 seeds",
        "timeout_s",
        "120.5",
    ):
        assert text in page
    assert "http" not in page
    assert "{" not in page.split("with these options")[1].split("<script>")[0]


@pytest.mark.usefixtures("blank_drawings")
def test_the_next_command_goes_on_from_the_run(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_script("tools/report.py", "--run", config.few_labels)
    assert done.stdout.splitlines()[-1].startswith("report: "), "no network was kept: nothing goes on from it"
    say_next_of_run(config.run)
    assert capsys.readouterr().out == "", "its weights are gone"
    (config.run / "backbone.safetensors").touch()
    say_next_of_run(config.run)
    script, named = read_next_line(capsys.readouterr().out)
    assert (script, named.init) == ("recipes/transfer.py", config.run)
    (config.run / "classifier.safetensors").touch()
    say_next_of_run(config.run)
    script, named = read_next_line(capsys.readouterr().out)
    assert (script, named.network) == ("tools/predict.py", config.run)


@pytest.mark.usefixtures("blank_drawings")
def test_a_sweeps_method_from_random_weights_is_not_called_pretrained(config: Config) -> None:
    assert config.few_labels is not None
    results = [FewLabelResult("fixmatch", 1, 0, 0.3, 445, 9, method="fixmatch")]
    write_results(config.few_labels, [*results, FewLabelResult("barlow", 1, 0, 0.6, 445, 9)], {})
    page = build_report(config)
    assert "pre-trained (barlow)" in page
    assert "pre-trained (fixmatch)" not in page
    assert ">fixmatch<" in page
    assert "60.0 %" in page.split("Few labels")[0], "the headline is of what was pre-trained"


@pytest.mark.usefixtures("blank_drawings")
def test_one_seed_has_no_spread(config: Config) -> None:
    assert config.few_labels is not None
    write_results(config.few_labels, [FewLabelResult(SCRATCH, k, 7, 0.5, 445, 100) for k in (1, 5)], {})
    page = build_report(config)
    assert "over 445 images: one seed." in page
    assert "deviation" not in page


@pytest.mark.usefixtures("blank_drawings")
def test_what_was_not_measured_is_left_out(config: Config) -> None:
    (config.run / "evaluation.json").unlink()
    page = build_report(replace(config, few_labels=None, commands=None, num_images=2))
    for text in ("At a glance", "Few labels", "Frozen features", "The commands"):
        assert text not in page
    assert page.count('title="image"') == 2
    assert "<h2>Training</h2>" in page


def test_the_originals_are_the_images_of_the_rows(digits_pack: Pack) -> None:
    rows = torch.tensor([30, 4, 30, 700])
    shown = original_pixels(digits_pack, rows, 32)
    for image, row in zip(shown, rows.tolist(), strict=True):
        decoded = simplejpeg.decode_jpeg(digits_pack.read(row))
        difference = image.permute(1, 2, 0).numpy().astype(int) - decoded.astype(int)
        assert np.abs(difference).max() <= 2


def test_mistakes_are_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run at"):
        build_report(replace(config, run=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"run recipes/transfer\.py first"):
        build_report(replace(config, few_labels=tmp_path))
    with pytest.raises(UserError, match="leave out --commands"):
        build_report(replace(config, commands=tmp_path / "none.txt"))


@pytest.mark.usefixtures("blank_drawings")
def test_what_is_missing_is_said_and_left_out(config: Config) -> None:
    """A killed run has no views, no log, a truncated file and no pack; its page is made all the same."""
    assert "test images: " in build_report(config)  # no network has been saved yet
    for name in ("views.safetensors", "metrics.jsonl"):
        (config.run / name).unlink()
    (config.run / "evaluation.json").write_text('{"rows": [')
    page = build_report(config)
    missing = page.split("<h2>What is missing</h2>")[1]
    for text in (
        "views: sample views: expected",
        "curves: metrics.jsonl has no line",
        "is not an evaluation",
    ):
        assert text in missing
    assert "<h2>Few labels</h2>" in page
    described = json.loads((config.run / "config.json").read_text())
    described["config"]["pack"] = "/nowhere"
    (config.run / "config.json").write_text(json.dumps(described))
    missing = build_report(config).split("<h2>What is missing</h2>")[1]
    assert "pack: no pack at /nowhere" in missing or "pack: " in missing
    assert "How to repeat it" in missing or "with these options" in build_report(config)


def test_the_folder_of_few_labels_and_runs_side_by_side(config: Config, tmp_path: Path) -> None:
    assert config.few_labels is not None
    page = build_report(Config(run=config.few_labels))
    assert "<h1>Few labels: transfer</h1>" in page
    assert "72.0 % (67.6 to 75.9)" in page
    other = tmp_path / "other"
    shutil.copytree(config.run, other)
    described = json.loads((other / "config.json").read_text())
    described["config"]["note"] = "another"
    (other / "config.json").write_text(json.dumps(described))
    page = build_report(Config(run=config.run, beside=(other,)))
    assert Config(run=config.run, beside=(other,)).page.name == "compared.html"
    differing = page.split("Where their options differ")[1]
    assert "<td>another</td>" in differing
    assert "timeout_s" not in differing
    assert page.count("<picture>") == 1
    with pytest.raises(UserError, match="expected a run at"):
        build_report(Config(run=config.run, beside=(tmp_path / "none",)))


@pytest.mark.usefixtures("blank_drawings")
def test_runs_of_one_name_are_told_apart(config: Config, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / config.run.name
    shutil.copytree(config.run, other)
    page = build_report(Config(run=config.run, beside=(other,)))
    for run in (config.run, other):
        assert f">{run}</th>" in page


def test_what_a_page_of_several_runs_ignores_is_refused(config: Config) -> None:
    for option, value in (("few_labels", config.few_labels), ("num_images", 3), ("classes", ("a",))):
        with pytest.raises(UserError, match=f"^{option}: expected none with --beside, .*; leave out"):
            Config(run=config.run, beside=(config.run,), **{option: value})


@pytest.mark.usefixtures("blank_drawings")
def test_a_run_without_curves_is_named_beside_others(config: Config, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(config.run, bare)
    (bare / "metrics.jsonl").unlink()
    page = build_report(Config(run=config.run, beside=(bare,)))
    assert "bare: curves: metrics.jsonl has no line that can be read" in page
    assert "run: curves:" not in page


@pytest.mark.usefixtures("blank_drawings")
def test_a_command_of_several_phases_joins_its_curves(config: Config, tmp_path: Path) -> None:
    out, names = tmp_path / "rounds", ("start", "round-2-pseudo", "round-10-true")
    for name in names:
        shutil.copytree(config.run, out / name)
    shutil.copy(config.run / "config.json", out)
    assert phases_of(out) == [out / name for name in names], "the tenth comes last"
    assert [record["step"] for record in read_logs(phases_of(out))] == list(range(1, 10))
    assert phases_of(config.run) == []
    page = build_report(Config(run=out, num_tested=0))
    phases = page.split("<h2>Phases</h2>")[1].split("</table>")[0]
    assert [phases.index(f">{name}<") for name in names] == sorted(
        phases.index(f">{name}<") for name in names
    )
    assert page.count('title="image"') >= 4, "the views are those of the first phase"
    assert "<h2>Training</h2>" in page
    assert "<h2>Speed</h2>" in page
    assert "curves:" not in page


@pytest.mark.usefixtures("blank_drawings")
def test_a_pipeline(tmp_path: Path, config: Config) -> None:
    out = tmp_path / "pipeline"
    shutil.copytree(config.run, out / "pretrain")
    stages = [{"stage": "scratch", "top1": 0.4}, {"stage": "tta", "top1": 0.55}]
    (out / "ablation.json").write_text(json.dumps({"config": {"seed": 3}, "stages": stages}))
    page = build_report(Config(run=out))
    assert "+15.0" in page
    assert ">pretrain</th>" in page
    (out / "ablation.json").write_text("{")
    with pytest.raises(UserError, match="is not a pipeline's result"):
        build_report(Config(run=out))
