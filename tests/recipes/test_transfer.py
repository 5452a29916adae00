"""Few-label transfer: BatchNorm modes, separate rates, equal labels for both kinds of start, and resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluate.few_labels import SCRATCH, read_results
from engine.nets.backbones import build_backbone, load_backbone
from engine.nets.layers import Layer
from engine.train.checkpoint import newest_valid
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.metrics import read_metrics
from engine.train.recipe import StepOutput
from engine.train.run_folder import opened_run, save_backbone
from engine.train.samples import load_samples
from engine.train.validation import Validator
from loaders import LoaderOptions, build_loader
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.epochs import EpochLoader
from loaders.packs import Pack, Split
from recipes import transfer as transfer_recipe
from recipes.transfer import Config, FineTuning, Job, Session, Transfer, opened, run, run_grid
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check

QUICK = FineTuning(lr_backbone=0.01, lr_classifier=0.1, batchnorm="batch", steps=3, min_crop=0.6)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an untrained network."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    with opened_run(folder, "barlow", {"backbone": "test_resnet", "resolution": 16}, (), resume=False):
        pass
    seed_everything(7)
    network = build_backbone("test_resnet", 16)
    save_backbone(folder, network, {"backbone": "test_resnet", "resolution": "16"})
    return folder


@pytest.fixture
def config(little_pack: Pack, pretrained: Path, tmp_path: Path) -> Config:
    return Config(
        pack=little_pack.path,
        init=pretrained,
        out=tmp_path / "transfer",
        labels_per_class=(2,),
        seeds=(0,),
        pretrained=QUICK,
        from_scratch=QUICK,
        flip_p=0.0,
        loader=LoaderOptions(num_threads=1),
    )


def transfer(tuning: FineTuning) -> Transfer:
    seed_everything(0)
    return Transfer(build_backbone("test_resnet", 16), "test_resnet", 10, tuning)


def batch_norms(recipe: Transfer) -> list[nn.BatchNorm2d]:
    return [m for m in recipe.backbone.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_batchnorm_follows_its_mode(mode: str) -> None:
    recipe = transfer(replace(QUICK, batchnorm=mode)).train()  # type: ignore[arg-type]
    assert all(norm.training == (mode == "batch") for norm in batch_norms(recipe))
    assert recipe.classifier.training
    before = [norm.running_mean.clone() for norm in batch_norms(recipe)]
    x = torch.randn(8, 3, 16, 16)
    recipe.training_step(Batch((x,), torch.arange(8), torch.arange(8), torch.ones(8, dtype=torch.bool)), 0)
    unchanged = [torch.equal(b, n.running_mean) for b, n in zip(before, batch_norms(recipe), strict=True)]
    assert all(unchanged) == (mode == "running")
    assert not any(norm.training for norm in batch_norms(recipe.eval()))


def test_backbone_and_classifier_have_their_own_rates() -> None:
    recipe = transfer(FineTuning(lr_backbone=0.25, lr_classifier=0.5, batchnorm="batch"))
    rates = {p: group["lr"] for group in recipe.make_optimizer().param_groups for p in group["params"]}
    assert {rates[p] for p in recipe.backbone.parameters()} == {0.25}
    assert {rates[p] for p in recipe.classifier.parameters()} == {0.5}
    assert len(rates) == len(list(recipe.parameters()))


def test_rate_zero_leaves_the_backbone_as_it_was(config: Config, pretrained: Path) -> None:
    frozen = FineTuning(lr_backbone=0.0, lr_classifier=0.1, batchnorm="running", steps=3, min_crop=0.6)
    run(replace(config, pretrained=frozen, beside_scratch=False))
    before = load_backbone(pretrained).state_dict()
    after = load_backbone(config.out / "pretrained-2-labels-seed-0").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run(replace(config, beside_scratch=False, out=config.out / "moving"))
    moved = load_backbone(config.out / "moving" / "pretrained-2-labels-seed-0").state_dict()
    assert not all(torch.equal(before[name], moved[name]) for name in before)


def test_both_ways_to_start_see_the_same_labels_and_runs_repeat(config: Config) -> None:
    results = run(replace(config, labels_per_class=(1, 2)))
    assert [(r.init == SCRATCH, r.labels_per_class, r.steps) for r in results] == [
        (False, 1, 3),
        (True, 1, 3),
        (False, 2, 3),
        (True, 2, 3),
    ]
    assert {r.num_test for r in results} == {200}
    assert read_results(config.out)[0] == results
    folders = [config.out / f"{arm}-2-labels-seed-0" for arm in ("pretrained", "scratch")]
    shown = [sorted(load_samples(folder)[1].tolist()) for folder in folders]
    assert shown[0] == shown[1]
    again = replace(config, out=config.out.with_name("again"))
    run(again)
    first, second = (load_backbone(out / "scratch-2-labels-seed-0") for out in (config.out, again.out))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_finished_runs_are_not_repeated(config: Config) -> None:
    first = run(config)
    folder = config.out / "pretrained-2-labels-seed-0"
    found, _ = newest_valid(folder / "checkpoints")
    assert found is not None
    written = found.stat().st_mtime_ns
    assert run(config) == first
    assert newest_valid(folder / "checkpoints")[0] == found
    assert found.stat().st_mtime_ns == written
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == [3]


def test_a_resume_goes_on_with_the_backend_that_was_taken(config: Config) -> None:
    first = run(replace(config, loader=replace(config.loader, backend="resident")))
    with opened(config) as session:
        assert session.options.backend == "resident"
    assert run(config) == first


def test_a_pack_that_moved_is_gone_on_with_and_another_is_not(
    config: Config, digits_pack: Pack, tmp_path: Path
) -> None:
    alone = replace(config, beside_scratch=False)
    first = run(alone)
    moved = shutil.copytree(config.pack, tmp_path / "moved")
    assert run(replace(alone, pack=moved)) == first
    folder = config.out / "pretrained-2-labels-seed-0"
    steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "nothing is trained twice"
    with pytest.raises(UserError, match=r"expected pack of .*, found of .*; resume with the same pack"):
        run(replace(alone, pack=digits_pack.path))


def test_a_start_whose_weights_are_others_is_refused(config: Config, tmp_path: Path) -> None:
    start, config = tmp_path / "start", replace(config, init=tmp_path / "start", beside_scratch=False)
    start.mkdir()
    described = {"backbone": "test_resnet", "resolution": "16"}
    seed_everything(1)
    save_backbone(start, build_backbone("test_resnet", 16), described)
    first = run(config)
    file = config.out / "pretrained-2-labels-seed-0" / "config.json"
    seed_everything(2)
    save_backbone(start, build_backbone("test_resnet", 16), described)
    with pytest.raises(UserError, match=r"holds a run with init_weights = .*, but init_weights"):
        run(config)
    older = json.loads(file.read_text())
    del older["config"]["init_weights"]
    file.write_text(json.dumps(older))
    assert run(config)[0].steps == first[0].steps, "a folder from before they were kept is gone on with"


def test_images_are_changed_and_mixed_where_asked_for(config: Config) -> None:
    alone = replace(config, beside_scratch=False)
    changed = replace(alone, mixing="mixup", out=config.out / "mixed")
    turned = replace(alone, augment=("rotation", "jitter"), out=config.out / "turned")
    losses = []
    for each in (alone, changed, turned):
        run(each)
        lines = read_metrics(each.out / "pretrained-2-labels-seed-0" / "metrics.jsonl")
        losses.append([line["loss"] for line in lines])
    assert len({tuple(found) for found in losses}) == 3, "each option changes the training by itself"
    assert all(losses)
    kept = json.loads((changed.out / "pretrained-2-labels-seed-0" / "config.json").read_text())["config"]
    assert kept["mixing"] == ["mixup", 1.0]
    for other, found in (
        (replace(changed, mixing="cutmix"), "mixup"),
        (replace(alone, mixing="mixup"), "None"),
    ):
        with pytest.raises(UserError, match=rf"holds a run with (mixing|augment) = .*{found}"):
            run(other)
    odd = replace(changed, batch_size=7, out=config.out / "odd")
    assert run(odd)[0].steps == QUICK.steps


@pytest.mark.floor
def test_it_learns(data: Data, tmp_path: Path) -> None:
    check("fine_tuning", trainings.fine_tuning(data, tmp_path / "run", 0))


def weights_of(config: Config, name: str = "pretrained-2-labels-seed-0") -> dict[str, torch.Tensor]:
    return load_backbone(config.out / name).state_dict()


def test_frozen_trains_the_layers_of_the_classifier_alone(config: Config, pretrained: Path) -> None:
    frozen = replace(config, method="frozen", layer="layer3", hidden=(16, 8), beside_scratch=False)
    (result,) = run(frozen)
    assert (result.method, result.steps) == ("frozen", 3)
    before, after = load_backbone(pretrained).state_dict(), weights_of(config)
    assert all(torch.equal(before[name], after[name]) for name in before)
    seed_everything(0)
    recipe = Transfer(build_backbone("test_resnet", 16), "test_resnet", 10, QUICK, Layer("layer3"), (16, 8))
    sizes = [(m.in_features, m.out_features) for m in recipe.classifier if isinstance(m, nn.Linear)]
    assert sizes == [(192, 16), (16, 8), (8, 10)], "three fully connected layers on the layer's channels"
    assert not any(p.requires_grad for p in recipe.backbone.layer4.parameters()), "nothing reaches them"
    trained = {id(p) for group in recipe.make_optimizer().param_groups for p in group["params"]}
    assert trained == {id(p) for p in recipe.parameters() if p.requires_grad}


@pytest.mark.parametrize("layer", [Layer(), Layer("blocks.1")])
def test_what_a_network_never_learns_stays_so(layer: Layer) -> None:
    """compact_cnn's BatchNorm scales stay frozen, through a stage that freezes all and one that does not."""
    recipe = Transfer(build_backbone("compact_cnn", 16), "compact_cnn", 10, QUICK, layer, (), 16)
    recipe.begin_stage(QUICK, frozen=True)
    assert not any(p.requires_grad for p in recipe.backbone.parameters())
    recipe.begin_stage(QUICK)
    learns = {name for name, p in recipe.backbone.named_parameters() if p.requires_grad}
    assert len(learns) == (13 if not layer.name else 9)
    assert not any(name.endswith(("norm1.weight", "norm2.weight")) for name in learns)


def test_two_stages_train_the_classifier_and_then_everything_at_smaller_rates(config: Config) -> None:
    plan = Job("x", "two_stage", QUICK, 2, 0).stages(7, config.together_factor)
    assert [(ending, tuning.steps, frozen) for ending, tuning, frozen in plan] == [
        ("-head", 7, True),
        ("", 3, False),
    ]
    assert [tuning.lr_classifier for _, tuning, _ in plan] == pytest.approx([0.1, 0.01])
    (result,) = run(replace(config, method="two_stage", head_steps=4, beside_scratch=False))
    assert result.steps == 7
    first, second = (weights_of(config, f"pretrained-2-labels-seed-0{end}") for end in ("-head", ""))
    start = load_backbone(config.init).state_dict()
    assert all(torch.equal(start[name], first[name]) for name in start)
    assert not torch.equal(first["conv1.0.weight"], second["conv1.0.weight"])


def test_early_stopping_measures_validation_images_and_an_interruption_changes_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = replace(QUICK, steps=6)
    stopping = replace(
        config,
        pretrained=tuning,
        beside_scratch=False,
        method="two_stage",
        head_steps=4,
        validation_share=0.2,
        patience=1,
        validate_every=2,
    )
    (result,) = run(stopping)
    lines = read_metrics(config.out / "pretrained-2-labels-seed-0" / "metrics.jsonl")
    measured = [line["validation_top1"] for line in lines if "validation_top1" in line]
    assert result.validation_top1 == pytest.approx(max(measured))
    broken, after_step = replace(stopping, out=config.out.with_name("broken")), Validator.after_step
    calls: list[int] = []

    def failing(*args):
        calls.append(1)
        if len(calls) == 5:  # validation follows every second step
            raise KeyboardInterrupt
        return after_step(*args)

    with monkeypatch.context() as patched:
        patched.setattr(Validator, "after_step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    assert run(broken) == [result]
    whole, parts = weights_of(stopping), weights_of(broken)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_session_that_cannot_be_opened_leaves_no_loader_open(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[EpochLoader] = []

    def build(*args: Any, **options: Any) -> EpochLoader:
        if opened:
            raise UserError("no memory for another")
        opened.append(build_loader(*args, **options))
        return opened[0]

    monkeypatch.setattr(transfer_recipe, "build_loader", build)
    with pytest.raises(UserError, match="no memory for another"):
        Session(replace(config, validation_split="unlabeled", allow_leak=True), make_accelerator("no"))
    with pytest.raises(RuntimeError, match="this loader is closed"):
        opened[0].epoch(0)


def test_scarce_classes_are_named_before_any_training(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(replace(config, labels_per_class=(2, 10_000)), make_accelerator("no"))
    try:
        assert "expected 10000 labelled images of each class, found 24" in capsys.readouterr().err
        job = Job("x", "fine_tune", QUICK, 10_000, 0)
        assert len(session.labels(job)) == len(session.split)
    finally:
        session.close()


def test_validation_images_are_never_trained_on(config: Config) -> None:
    session = Session(replace(config, validation_share=0.5, labels_per_class=(8,)), make_accelerator("no"))
    try:
        held = {row for batch in session.validation.epoch(0) for row in batch.index[batch.valid].tolist()}
        for seed in range(3):
            job = Job("x", "fine_tune", QUICK, 8, seed)
            chosen = session.labels(job)
            assert held.isdisjoint(chosen.rows(np.arange(len(chosen))).tolist())
    finally:
        session.close()
    assert len(held) == pytest.approx(240 / 2, abs=10)


@pytest.mark.floor
def test_neighbours_vote_without_training(data: Data, tmp_path: Path) -> None:
    figures = trainings.votes(data, tmp_path, 0)
    check("votes", figures)
    assert figures["top1"] < figures["top5"] <= 1.0
    (result,), _ = read_results(tmp_path / "runs")
    assert (result.method, result.steps, result.num_test) == ("knn", 0, 445)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_the_grid_chooses_on_validation_images(config: Config) -> None:
    grid = replace(config, grid=True, grid_rates=(0.0, 0.1), grid_weight_decays=(0.0,), validation_share=0.3)
    cells = run_grid(grid)
    assert [(c.setting.lr_backbone, c.setting.lr_classifier) for c in cells] == [(0.0, 0.1), (0.1, 0.1)]
    found = json.loads((config.out / "grid.json").read_text())
    assert [cell["mean"] for cell in found["cells"]] == pytest.approx([c.mean for c in cells])
    assert (config.out / "grid.png").stat().st_size > 1000
    assert run_grid(grid) == cells, "finished cells are taken from disk"


def test_what_cannot_be_chosen_is_refused(config: Config) -> None:
    for change in ({"grid": True}, {"patience": 3}):
        with pytest.raises(UserError, match="not the test's"):
            replace(config, **change)
    with pytest.raises(UserError, match="found it with --validation-share"):
        replace(config, validation_split="val", validation_share=0.1)
    with pytest.raises(UserError, match="found it with --test-split, the same"):
        replace(config, validation_split="test")
    with pytest.raises(UserError, match="one number of labels"):
        replace(config, grid=True, validation_share=0.1, labels_per_class=(1, 2))
    with pytest.raises(UserError, match=r"expected one of conv1.*, found 'layer9'"):
        run(replace(config, layer="layer9", beside_scratch=False))


def test_mistakes_are_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run at"):
        run(replace(config, init=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="seeds: expected one or more different values"):
        run(replace(config, seeds=()))
    with pytest.raises(UserError, match="batch_size: expected 2 or more, since BatchNorm"):
        replace(config, batch_size=1)
    with pytest.raises(UserError, match="steps: expected more than 0"):
        replace(QUICK, steps=0)


def test_classes_of_different_sizes_can_be_evened_out(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All classes have two labels, except for one class with a single label."""
    seen: list[torch.Tensor | None] = []
    whole = Session.labels

    def fewer(session: Session, job: Job) -> Split:
        chosen = whole(session, job)
        return chosen.take(np.arange(1, len(chosen)))

    def step(recipe: Transfer, batch: Batch, number: int) -> StepOutput:
        seen.append(recipe.class_weights)
        counted.append(np.bincount(batch.labels, minlength=10))
        return taken(recipe, batch, number)

    counted: list[Any] = []
    taken = Transfer.training_step
    monkeypatch.setattr(Session, "labels", fewer)
    monkeypatch.setattr(Transfer, "training_step", step)
    plain = replace(config, labels_per_class=(2,), beside_scratch=False)
    run(replace(plain, class_weights="inverse", out=config.out / "weighted"))
    weights = seen[-1]
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.9] + [0.95] * 9)
    run(replace(plain, balanced=True, batch_size=10, out=config.out / "balanced"))
    assert seen[-1] is None
    assert sum(counted[-2:]).tolist() == [2] * 10
    with pytest.raises(UserError, match="class_weights: expected none with --balanced"):
        replace(plain, balanced=True, class_weights="inverse")
