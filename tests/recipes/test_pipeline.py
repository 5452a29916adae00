"""The whole pipeline on the digits, on a small scale, and resuming where it stopped."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.nets.backbones import build_backbone
from engine.report.other_pages import _STAGE_FOLDERS
from engine.train.loop import _Run
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError
from loaders.options import BackendName
from loaders.packs import LabelTable
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from recipes import active, barlow, evaluate, fixmatch, pipeline, self_training, supervised
from recipes.pipeline import Ask, Config, Measured, Pretrain, SemiSupervised, run
from tests.drawings import draw_dots
from tests.floors.data import Data
from tests.floors.table import check
from tests.floors.trainings import chain_figures, small_chain

pytestmark = pytest.mark.usefixtures("blank_drawings")


@pytest.fixture
def config(data: Data, tmp_path: Path) -> Config:
    return small_chain(data, tmp_path / "all")


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[Measured]]:
    """Run the whole chain; return its configuration and its measurements."""
    config = small_chain(data, tmp_path_factory.mktemp("whole") / "all")
    with pytest.MonkeyPatch.context() as patch:
        draw_dots(patch)
        measured = run(config)
    pipeline.draw_ablation(config.out, measured, pipeline.TITLES)
    return config, measured


@pytest.mark.floor
def test_every_stage_runs_and_is_measured_and_the_chain_helps(whole: tuple[Config, list[Measured]]) -> None:
    config, measured = whole
    stages = ["scratch", "fine_tune", "rounds", "fixmatch", "active", "tta"]
    assert [row.stage for row in measured] == stages
    check("chain", chain_figures(config.out, measured))
    with (config.out / "ablation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["top1_percent"]) / 100 for line in lines] == pytest.approx(
        [row.top1 for row in measured], abs=1e-4
    )
    assert (config.out / "ablation.png").stat().st_size > 1000
    assert len(json.loads((config.out / "ablation.json").read_text())["stages"]) == 6
    pretrained = json.loads((config.out / "pretrain" / "config.json").read_text())["config"]
    assert pretrained["warmup_epochs"] == 0.2, "a run shorter than the paper's warm-up would never leave it"


def test_a_chain_that_is_over_is_taken_from_disk(whole: tuple[Config, list[Measured]]) -> None:
    config, measured = whole
    last = config.out / "active-fixmatch" / "classifier-ema.safetensors"
    before = last.read_bytes()
    assert run(config) == measured
    assert last.read_bytes() == before


def losses_below(folder: Path) -> dict[str, list[float]]:
    files = sorted(folder.rglob("metrics.jsonl"))
    lines = {str(f.relative_to(folder)): map(json.loads, f.read_text().splitlines()) for f in files}
    return {name: [line["loss"] for line in found if "loss" in line] for name, found in lines.items()}


@pytest.mark.parametrize("backend", ["resident", pytest.param("dali", marks=pytest.mark.slow)])
def test_a_chains_losses_are_the_cpu_backends(
    backend: BackendName, whole: tuple[Config, list[Measured]], data: Data, tmp_path: Path
) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    small = replace(small_chain(data, tmp_path / "all"), device="cpu")
    run(replace(small, loader=replace(small.loader, backend=backend)))
    found = losses_below(tmp_path / "all")
    assert len(found) >= 5
    assert found == losses_below(whole[0].out)
    begun = [json.loads(file.read_bytes())["config"] for file in (tmp_path / "all").rglob("config.json")]
    assert {config["taken_backend"] for config in begun} == {backend}, "of commands of several phases too"


def as_older_versions_wrote(run_folder: Path, **changes: Any) -> bytes:
    """Rewrite a run's config.json as versions before `LoaderOptions` did; return the previous content."""
    file = run_folder / "config.json"
    before = file.read_bytes()
    described = json.loads(before)
    loader = described["config"].pop("loader")
    loading = {name: loader[name] for name in ("verify", "bad_images", "timeout_s", "window")}
    flat = {"backend": loader["backend"], "num_threads": loader["num_threads"], "loading": loading}
    described["config"] |= flat | changes
    file.write_text(json.dumps(described))
    return before


def test_a_folder_of_an_older_version_is_gone_on_with_or_refused(config: Config) -> None:
    short, others = replace(config.fine_tune, epochs=1), ("fine_tune", "rounds", "fixmatch", "active", "tta")
    small = replace(config, skip=("pretrain", *others), fine_tune=short)
    measured, scratch = run(small), config.out / "scratch"
    before = as_older_versions_wrote(scratch)
    assert run(small) == measured
    (scratch / "config.json").write_bytes(before)
    as_older_versions_wrote(scratch, smoothing=0.1)
    with pytest.raises(UserError) as refused:
        run(small)
    assert str(refused.value).startswith(f"run folder: {scratch} holds a run with smoothing = 0.1, but")
    assert "\n" not in str(refused.value)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configurations that the stages pass to their recipes, by folder; nothing is trained."""
    given: dict[str, Any] = {}

    def play(config: Any) -> SimpleNamespace:
        given[config.out.name] = config
        config.out.mkdir(parents=True, exist_ok=True)
        number = 0.01 * len(given)
        measured = {"raw": {"top1": 0.0, "num_images": 1}, "ema": {"top1": number, "num_images": 1}}
        (config.out / "accuracy.json").write_text(json.dumps(measured))
        (config.out / "bought.parquet").write_text("as if bought")
        if not isinstance(config, barlow.Config):
            (config.out / "classifier.safetensors").write_text("as if trained on labels")
        return SimpleNamespace(out=config.out, top1=0.9)

    for recipe in (supervised, barlow, self_training, fixmatch, active):
        monkeypatch.setattr(recipe, "run", play)
    labels = "fixmatch-labels.parquet"
    monkeypatch.setattr(pipeline, "pseudo_labels", lambda chain: chain.config.out / labels)
    monkeypatch.setattr(evaluate, "evaluate", lambda config: (None, play(config)))
    return given


def test_every_stage_goes_on_in_the_precision_and_with_the_backend_of_the_first(
    config: Config, played: dict[str, Any]
) -> None:
    begun = {"autocast": "bf16", "taken_backend": "resident"}
    (config.out / "pretrain").mkdir(parents=True)
    (config.out / "pretrain" / "config.json").write_text(json.dumps({"config": begun}))
    run(replace(config, precision="auto"))
    trained = [given for given in played.values() if hasattr(given, "precision")]
    assert {given.precision for given in trained} == {"bf16"}
    assert {given.loader.backend for given in played.values()} == {"resident"}


def test_each_stage_goes_on_from_the_one_before(config: Config, played: dict[str, Any]) -> None:
    measured = run(replace(config, seed=7, flips=True, device="cpu"))
    assert {given.device for given in played.values()} == {"cpu"}
    assert [row.top1 for row in measured] == pytest.approx([0.01, 0.03, 0.04, 0.05, 0.07, 0.9])
    assert set(_STAGE_FOLDERS) <= set(played), "the page draws the maps of these folders"
    out, known = config.out, ("train", 5, 7)
    for name in ("scratch", "fine-tune", "rounds", "fixmatch", "active", "active-fixmatch"):
        given = played[name]
        assert (given.labeled_split, given.labels_per_class, given.label_seed) == known, name
    assert played["pretrain"].split == "unlabeled"
    before = {name: played[name].init for name in ("scratch", "fine-tune", "rounds", "fixmatch")}
    assert before == {
        "scratch": None,
        "fine-tune": out / "pretrain",
        "rounds": out / "fine-tune",
        "fixmatch": out / "rounds",
    }
    assert (played["rounds"].per_class, played["rounds"].unlabeled_splits) == ((15,), ("unlabeled",))
    assert played["fixmatch"].extra_labels == (out / "fixmatch-labels.parquet",)
    asked, last, tested = (played[name] for name in ("active", "active-fixmatch", "tta"))
    assert (asked.run, asked.init, asked.oracle) == (out / "fixmatch", out / "pretrain", True)
    assert (last.init, last.extra_labels) == (out / "fixmatch", (out / "active" / "bought.parquet",))
    for given in (played["fixmatch"], last):
        assert given.keep_head
        assert given.unlabeled_splits == ("train", "unlabeled")
    assert (tested.run, tested.split) == (out / "active-fixmatch", "test")
    assert (tested.sizes, tested.flips) == ((16, 24), True)


@pytest.mark.parametrize("from_init", [False, True])
def test_a_start_stands_in_the_place_of_pre_training_or_begins_it(
    from_init: bool, config: Config, played: dict[str, Any], tmp_path: Path
) -> None:
    start = tmp_path / "start"
    save_start_of(config, start)
    run(replace(config, init=start, pretrain=replace(config.pretrain, from_init=from_init)))
    assert ("pretrain" in played) == from_init
    assert not from_init or played["pretrain"].init == start
    assert played["fine-tune"].init == (config.out / "pretrain" if from_init else start)
    assert played["active"].init == played["fine-tune"].init
    assert played["scratch"].init is None


def save_start_of(config: Config, out: Path) -> None:
    out.mkdir()
    network = build_backbone(config.backbone, config.resolution)
    save_backbone(out, network, {"backbone": config.backbone, "resolution": config.resolution})


def test_barlow_twins_go_on_from_a_start_that_is_given(config: Config) -> None:
    with pytest.raises(UserError, match=r"pretrain\.from_init: expected --init to start from, found none"):
        replace(config, pretrain=replace(config.pretrain, from_init=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ask": Ask(clusters=9, per_cluster=3)}, "--ask.clusters: expected 10, with which "),
        ({"ask": Ask(clusters=10, per_cluster=4)}, "--ask.per-cluster: expected 3, with which "),
        ({"oracle": False}, "--oracle: expected True, with which "),
        ({"skip": ("fixmatch",)}, "--skip: expected 'fixmatch', with which "),
    ],
)
def test_bought_labels_are_not_those_of_other_options(
    change: dict[str, Any],
    named: str,
    config: Config,
    played: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bought = active.run

    def killed(given: Any) -> None:
        bought(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(active, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    with pytest.raises(UserError) as refused:
        run(replace(config, **change))
    assert str(refused.value).startswith(named)
    run(config)
    run(replace(config, skip=("tta",)))  # the labels do not depend on this stage
    with pytest.raises(UserError) as refused:
        run(replace(config, **change))
    assert str(refused.value).startswith(named)
    description = config.out / "active" / "bought.json"
    description.write_text("[1]")
    with pytest.raises(UserError, match=r"expected the options that made .*bought\.parquet, found none"):
        run(config)
    description.unlink()  # as in folders of older versions
    run(replace(config, **change))


def test_pseudo_labels_are_not_those_of_other_options(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = np.zeros(0, np.int64)
    table = LabelTable.of(empty, empty, 10)
    monkeypatch.setattr(self_training, "surest_labels", lambda *args: table)

    def labels(name: str = "rounds", **change: Any) -> bytes:
        chain = pipeline.Chain(replace(config, **change))
        chain.best = config.out / name
        return pipeline.pseudo_labels(chain).read_bytes()

    assert labels() == labels()
    with pytest.raises(
        UserError, match=r"^--fixmatch\.pseudo-per-class: expected 5, .* found 6; give another"
    ):
        labels(fixmatch=replace(config.fixmatch, pseudo_per_class=6))
    with pytest.raises(UserError, match=r"^--rounds\.top-k: expected 3, .* found 2; give another --out"):
        labels(rounds=replace(config.rounds, top_k=2))
    with pytest.raises(UserError, match=r"^--skip: expected 'rounds', .* found 'fine-tune'; give another"):
        labels("fine-tune")


def test_the_table_grows_with_the_chain_and_is_drawn_once(
    config: Config, played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(pipeline, "draw_ablation", lambda out, measured, titles: drawn.append(len(measured)))
    tested, lines = evaluate.evaluate, []

    def look(given: Any) -> Any:
        lines.append((config.out / "ablation.csv").read_text().count("\n"))
        return tested(given)

    monkeypatch.setattr(evaluate, "evaluate", look)
    run(config)
    assert (lines, drawn) == ([6], [6])


def test_the_folder_may_be_spelled_in_another_way(
    config: Config, played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.out.parent)
    run(replace(config, out=Path(config.out.name)))
    assert played["fine-tune"].init == config.out / "pretrain"


def test_what_is_skipped_is_gone_round(config: Config, played: dict[str, Any]) -> None:
    run(replace(config, skip=("scratch", "fine_tune", "fixmatch", "tta")))
    assert list(played) == ["pretrain", "rounds", "active", "active-fixmatch"]
    assert played["rounds"].init == config.out / "pretrain"
    assert played["active"].run == played["active-fixmatch"].init == config.out / "rounds"


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (
            {"pretrain": Pretrain(1, batch_size=301, warmup_epochs=0.2)},
            "pretrain",
            "expected at most 300 and found 301 images",
        ),
        ({"fixmatch": SemiSupervised(batch_size=86)}, "fixmatch", "expected at most 600 and found 602"),
        ({"fixmatch": SemiSupervised(batch_size=86)}, "active", "expected at most 600 and found 602"),
        ({"ask": Ask(clusters=301)}, "active", "expected at most 300 and found 301 clusters"),
    ],
)
def test_what_is_too_large_is_found_before_the_first_stage(
    change: dict[str, Any], stage: str, message: str, config: Config, played: dict[str, Any]
) -> None:
    large = replace(config, **change)
    if stage == "active":
        large = replace(large, skip=("fixmatch",))
    with pytest.raises(UserError, match=message) as error:
        run(large)
    assert str(error.value).startswith(stage)
    assert not played
    run(replace(large, skip=("pretrain", "fixmatch", "active")))  # skipped stages are not checked


def test_an_oracle_that_does_not_know_is_found_before_the_first_stage(
    config: Config, played: dict[str, Any], tmp_path: Path
) -> None:
    images = config.pack.parent / "images"
    heap = tmp_path / "heap"
    heap.mkdir()
    for number, source in enumerate(sorted(images.glob("0/*.jpg"))):
        (heap / f"{number}.jpg").write_bytes(source.read_bytes())
    splits = [f"unlabeled={heap}", f"train={images}", f"test={images}"]
    pack_dataset(PackOptions(parse_splits(splits), tmp_path / "pack", workers=1))
    pretrain = replace(config.pretrain, batch_size=20)
    small = replace(config, pack=tmp_path / "pack", pretrain=pretrain, allow_leak=True)
    with pytest.raises(UserError, match="oracle: expected a label of every image of 'unlabeled', found 30"):
        run(small)
    assert not played
    run(replace(small, oracle=False))


def test_an_interrupted_chain_goes_on_to_the_same_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(config.fine_tune, epochs=4)
    small = replace(config, skip=("pretrain", "rounds", "fixmatch", "active"), fine_tune=few)
    measured = run(small)
    broken, step = replace(small, out=tmp_path / "broken"), _Run._train_step

    def failing(loop: _Run, *args: Any) -> bool:
        if loop.config.out.name == "fine-tune" and loop.step == 2:
            raise KeyboardInterrupt
        return step(loop, *args)

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "_train_step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    assert run(broken) == measured
    for file in ("fine-tune/classifier.safetensors", "tta/predictions.csv", "ablation.csv"):
        assert (broken.out / file).read_bytes() == (small.out / file).read_bytes(), file


def test_stages_can_be_skipped_and_labels_given_by_hand(config: Config) -> None:
    small = replace(config, skip=("scratch", "pretrain", "rounds", "fixmatch", "tta"), oracle=False)
    with pytest.raises(UserError, match=r"label on .*request\.html"):
        run(small)
    assert len((config.out / "active" / "request.csv").read_text().splitlines()) > 20
    assert (config.out / "ablation.png").is_file(), "what was measured before the wait can be looked at"
    with pytest.raises(UserError, match="expected a stage with labels before it"):
        run(replace(small, skip=("scratch", "pretrain", "fine_tune", "rounds", "fixmatch", "active")))
