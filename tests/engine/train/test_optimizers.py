"""Optimizers other than the paper's: their parameter groups and learning rates, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import Muon
from torch.nn.utils.parametrizations import weight_norm

from engine.nets.backbones import build_backbone
from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from engine.train.optim import LARS
from engine.train.optimizers import choose_optimizer, choose_schedule, fused_on
from engine.train.options import OptimizerOptions
from engine.train.recipe import Recipe
from engine.train.schedule import constant, warmed, warmup_cosine
from loaders.common.errors import UserError
from recipes import barlow, deepcluster, rotnet, ssl_gan, supervised, vae
from tests.engine.launches import launches
from tests.engine.synthetic import SyntheticLoader, train_small

SMALL: dict[str, Any] = {"pack": Path("p"), "out": Path("o"), "resolution": 16, "backbone": "test_resnet"}


def classifier(**changes: Any) -> Recipe:
    seed_everything(0)
    config = supervised.Config(**{**SMALL, "lr": 0.1, "weight_decay": 0.01, **changes})
    return supervised.Supervised(config, ("a", "b"))


def groups_of(optimizer: torch.optim.Optimizer, *names: str) -> list[tuple[float, ...]]:
    return [tuple(float(group[name]) for name in names) for group in optimizer.param_groups]


def test_the_papers_choice_stays_unless_another_is_asked_for() -> None:
    recipe = classifier()
    paper = choose_optimizer(recipe, OptimizerOptions())
    assert type(paper) is torch.optim.SGD
    again = choose_optimizer(recipe, OptimizerOptions(optimizer="sgd"))
    assert again.state_dict() == paper.state_dict()
    assert groups_of(paper, "lr", "weight_decay") == [(0.1, 0.01), (0.1, 0.0)] * 2


def test_groups_keep_their_decay_and_their_share_of_the_rate() -> None:
    recipe = classifier(lr_head=0.5)
    found = choose_optimizer(recipe, OptimizerOptions(optimizer="adamw", optimizer_lr=1e-3))
    assert type(found) is torch.optim.AdamW
    assert [lr for (lr,) in groups_of(found, "lr")] == pytest.approx([1e-3, 1e-3, 5e-3, 5e-3])
    assert groups_of(found, "weight_decay") == [(0.01,), (0.0,), (0.01,), (0.0,)]
    faster = choose_optimizer(recipe, OptimizerOptions(optimizer_lr=0.2))
    assert [lr for (lr,) in groups_of(faster, "lr")] == pytest.approx([0.2, 0.2, 1.0, 1.0])


@pytest.mark.parametrize(("optimizer", "own"), [("sgd", 0.9), ("lars", 0.9), ("muon", 0.95)])
def test_momentum_is_the_recipes_unless_one_is_given(optimizer: Any, own: float) -> None:
    for given, expected in ((None, own), (0.6, 0.6)):
        options = OptimizerOptions(optimizer=optimizer, optimizer_lr=0.1, optimizer_momentum=given)
        found = choose_optimizer(classifier(), options)
        assert set(groups_of(found, "momentum")) == {(expected,)}


@pytest.mark.parametrize("kind", ["classifier", "rotnet"])
def test_muon_turns_the_matrices_of_the_backbone_alone(kind: str) -> None:
    recipe = classifier() if kind == "classifier" else rotnet.RotNet(rotnet.Config(**SMALL, hidden=(8,)))
    paper = {p: group for group in recipe.make_optimizer().param_groups for p in group["params"]}
    found = choose_optimizer(recipe, OptimizerOptions(optimizer="muon", optimizer_lr=1e-3))
    assert type(found) is Muon
    groups = {p: group for group in found.param_groups for p in group["params"]}
    assert groups.keys() == paper.keys()
    backbone = set(recipe.backbone.parameters())
    for p, group in groups.items():
        assert group["use_fallback"] is not (p in backbone and p.ndim > 1)
        assert group["weight_decay"] == paper[p]["weight_decay"]
    assert any(not group["use_fallback"] for group in groups.values())


@pytest.mark.parametrize(
    ("name", "others"), [("vit_tiny_patch16_224", "pos_embed"), ("mobilenetv2_035", "conv_dw")]
)
def test_muon_leaves_what_is_no_matrix_to_adamw(name: str, others: str) -> None:
    recipe = classifier()
    recipe.classifier.backbone = build_backbone(name, 32)  # type: ignore[attr-defined, assignment]
    found = choose_optimizer(recipe, OptimizerOptions(optimizer="muon", optimizer_lr=1e-3))
    turned = {p for group in found.param_groups if not group["use_fallback"] for p in group["params"]}
    left = [n for n, p in recipe.named_parameters() if p.ndim > 1 and p not in turned and "backbone" in n]
    assert turned
    assert left
    assert all(others in n or "cls_token" in n for n in left)


def test_a_backbone_without_plain_matrices_is_refused() -> None:
    recipe = classifier()
    for module in list(recipe.backbone.modules()):
        if isinstance(module, torch.nn.Conv2d):
            weight_norm(module)
    with pytest.raises(UserError, match=r"optimizer: expected a backbone with plain weights .* use adamw"):
        choose_optimizer(recipe, OptimizerOptions(optimizer="muon", optimizer_lr=1e-3))


def test_lars_leaves_vectors_out_wherever_they_stood() -> None:
    config = rotnet.Config(**SMALL, hidden=(8,))
    found = choose_optimizer(rotnet.RotNet(config), OptimizerOptions(optimizer="lars", optimizer_lr=0.2))
    assert type(found) is LARS
    assert groups_of(found, "adapt", "weight_decay", "momentum") == [(1, 5e-4, 0.9), (0, 0.0, 0.9)]
    assert all(p.ndim > 1 for p in found.param_groups[0]["params"])
    assert all(p.ndim <= 1 for p in found.param_groups[1]["params"])


def test_the_rate_of_vectors_under_lars_means_nothing_elsewhere() -> None:
    recipe = barlow.BarlowTwins(barlow.Config(**SMALL, projector=(8, 8)))
    found = choose_optimizer(recipe, OptimizerOptions(optimizer="adamw", optimizer_lr=1e-3))
    assert [lr for (lr,) in groups_of(found, "lr")] == [1e-3, 1e-3]
    usual = choose_optimizer(recipe, OptimizerOptions())
    scaled = choose_optimizer(recipe, OptimizerOptions(optimizer_lr=0.4))
    (weights,), (vectors,) = groups_of(usual, "lr")
    assert [lr for (lr,) in groups_of(scaled, "lr")] == pytest.approx([0.4, 0.4 * vectors / weights])


def test_layers_move_less_the_further_they_are_from_the_end() -> None:
    recipe = classifier()
    recipe.classifier.backbone = build_backbone("resnet10t", 32)  # type: ignore[attr-defined, assignment]
    options = OptimizerOptions(optimizer="adamw", optimizer_lr=1.0, layer_decay=0.5)
    found = choose_optimizer(recipe, options)
    rate = {p: group["lr"] for group in found.param_groups for p in group["params"]}
    assert len(rate) == len(list(recipe.parameters()))
    rates = {name: rate[p] for name, p in recipe.classifier.named_parameters()}  # type: ignore[attr-defined]
    assert rates["head.weight"] == 1.0
    stem, *layers = (
        rates[f"backbone.{n}"] for n in ("conv1.0.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
    )
    assert stem < layers[0] < layers[1] <= 1.0
    assert all(math.log2(value) == round(math.log2(value)) for value in rates.values())
    assert {group["weight_decay"] for group in found.param_groups} == {0.0, 0.01}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": "adamw"}, "expected --optimizer-lr with adamw"),
        ({"optimizer": "lars"}, "expected --optimizer-lr with lars"),
        ({"optimizer": "muon"}, "expected --optimizer-lr with muon"),
        (
            {"optimizer": "adamw", "optimizer_lr": 1e-3, "layer_decay": 0.7},
            "expected a backbone of timm, which names its layers, found tiny_resnet",
        ),
    ],
)
def test_what_lacks_something_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        choose_optimizer(classifier(backbone="tiny_resnet"), OptimizerOptions(**options))


def test_recipes_that_need_their_own_refuse_others() -> None:
    other = OptimizerOptions(optimizer="adamw", optimizer_lr=1e-3)
    gan = ssl_gan.Config(**{**SMALL, "backbone": "gan_discriminator_8"}, generator_width=4)
    clusters = deepcluster.Config(**SMALL, hidden=(8,), num_clusters=4)
    in_order: Any = SyntheticLoader()
    for recipe in (ssl_gan.SslGan(gan, ("a", "b")), deepcluster.DeepCluster(clusters, in_order, 8)):
        with pytest.raises(UserError, match=f"recipe '{recipe.name}' works only with its"):
            choose_optimizer(recipe, other)
        choose_optimizer(recipe, OptimizerOptions())
    momentum = OptimizerOptions(optimizer="sgd", optimizer_momentum=0.6)
    with pytest.raises(
        UserError, match="optimizer_momentum: expected none, since recipe 'deepcluster' works"
    ):
        choose_optimizer(deepcluster.DeepCluster(clusters, in_order, 8), momentum)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clip_norm": 0.0}, "clip_norm: expected more than 0, found 0.0"),
        ({"layer_decay": 1.5, "optimizer": "adamw"}, "layer_decay: expected a share"),
        ({"layer_decay": 0.5}, "layer_decay: expected --optimizer adamw, found paper"),
        (
            {"optimizer_momentum": 0.5},
            "optimizer_momentum: expected --optimizer sgd, lars or muon, found paper",
        ),
        ({"optimizer_momentum": 1.0, "optimizer": "sgd"}, "optimizer_momentum: expected less than 1"),
        ({"optimizer_lr": 0.0}, "optimizer_lr: expected more than 0"),
        ({"micro_batch": 0}, "micro_batch: expected more than 0"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        vae.Config(**SMALL, **options)


KINDS: dict[str, Any] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"betas": (0.5, 0.99)}),
    "adamw": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_steps_are_fused_and_the_same(kind: str) -> None:
    """One launch updates all tensors of a group, with the settings of that group."""
    cls, options = KINDS[kind]

    def steps(device: str) -> tuple[torch.optim.Optimizer, list[torch.Tensor], int]:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(5)]
        groups = [{"params": weights[:3]}, {"params": weights[3:], "lr": 0.03}]
        optimizer = fused_on(torch.device(device), cls(groups, lr=0.01, **options))
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(3, 2, generator=generator)
            found = launches(optimizer.step)
        return optimizer, weights, found[f"_fused_{kind}_"]

    plain, expected, none = steps("cpu")
    fused, found, one_a_group = steps("cuda")
    assert (none, one_a_group) == (0, 2)
    assert all(group["fused"] is True for group in fused.param_groups)
    changed = [{**group, "fused": None} for group in fused.state_dict()["param_groups"]]
    assert changed == plain.state_dict()["param_groups"]
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_fused_stays() -> None:
    paper = choose_optimizer(barlow.BarlowTwins(barlow.Config(**SMALL, projector=(8, 8))), OptimizerOptions())
    assert fused_on(torch.device("cuda"), paper) is paper
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    assert fused_on(torch.device("cpu"), plain) is plain
    assert fused_on(torch.device("cuda"), plain, scaled=True) is plain
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    assert fused_on(torch.device("cuda"), adam, scaled=True).defaults["fused"]


def test_a_warm_up_rises_to_the_schedule() -> None:
    assert [warmed(constant(), 4)(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmed(constant(), 0)(0) == 1.0
    paper = warmup_cosine(10, 0)
    assert warmed(paper, 4)(7) == paper(7)


def test_the_loop_warms_up_and_clips_and_takes_the_optimizer(tmp_path: Path) -> None:
    options = OptimizerOptions(optimizer="adamw", optimizer_lr=1e-3, clip_norm=0.1, warmup_epochs=1.0)
    train_small(tmp_path / "run", optimizing=options)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    rises = [record["lr"] for record in records[:3]]
    assert rises[0] == 0.0
    assert rises[1] < rises[2] <= 1e-3
    assert all(record["grad_norm"] > 0.0 for record in records)


def test_a_schedule_in_place_of_the_papers() -> None:
    recipe = classifier(warmup_epochs=1.0)

    def factors(options: OptimizerOptions) -> list[float]:
        schedule = choose_schedule(recipe, options, steps_per_epoch=10, total_steps=100)
        return [schedule(step) for step in (0, 5, 10, 55, 100)]

    paper = [recipe.make_schedule(10, 100)(step) for step in (0, 5, 10, 55, 100)]
    assert factors(OptimizerOptions(warmup_epochs=1.0)) == paper
    assert factors(OptimizerOptions(schedule="cosine", warmup_epochs=1.0)) == pytest.approx(
        [0, 0.5, 1, 0.5, 0]
    )
    noted: list[tuple[int, int]] = []
    recipe.make_schedule = lambda *lengths: noted.append(lengths) or constant  # type: ignore[method-assign]
    factors(OptimizerOptions(schedule="cosine"))
    assert noted == [(10, 100)], "a recipe takes the lengths of its other ramps from there"
    expected = [0.2, 0.2 + 0.8 * 5 / 23, 0.2 + 0.8 * 10 / 23, 1 - 0.93 * 32 / 77, 0.07]
    assert factors(OptimizerOptions(schedule="one_cycle")) == pytest.approx(expected)
    with pytest.raises(UserError, match="warmup_epochs: expected 0 with --schedule one_cycle"):
        factors(OptimizerOptions(schedule="one_cycle", warmup_epochs=1.0))


def test_biases_and_scales_have_a_rate_of_their_own() -> None:
    found = choose_optimizer(classifier(lr_vectors=8.0, lr_head=0.5), OptimizerOptions())
    assert [lr for (lr,) in groups_of(found, "lr")] == pytest.approx([0.1, 0.8, 0.5, 4.0])
