"""The gradient of a batch in parts is that of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.train.accumulation import Accumulator, Shell, cut
from engine.train.batchnorm import BATCHNORM
from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from engine.train.options import OptimizerOptions
from engine.train.recipe import Recipe
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from recipes import (
    barlow,
    colorization,
    deepcluster,
    fixmatch,
    jigsaw,
    mean_teacher,
    patches,
    pseudo_label,
    rotnet,
    siamese_vae,
    simclr,
    ssl_gan,
    supervised,
    temporal_ensembling,
    vae,
    vicreg,
)
from tests.engine.synthetic import train_small
from tests.recipes.short_runs import SMALL

ROWS, CLASSES = 8, ("a", "b", "c")
PLAIN = SimpleNamespace(
    backward=lambda loss: loss.backward(),
    autocast=nullcontext,
    no_sync=lambda model: nullcontext(),
    device=torch.device("cpu"),
)


def batch_of(num_views: int, rows: int = ROWS, side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    views = [torch.randn(rows, 3, side, side, generator=generator).double() for _ in range(num_views)]
    labels = torch.arange(rows) % len(CLASSES)
    return Batch(tuple(views), labels, torch.arange(rows), torch.ones(rows, dtype=torch.bool))


def paired(labeled: int, unlabeled: int) -> PairedBatch:
    return PairedBatch(batch_of(labeled), batch_of(unlabeled, 2 * ROWS))


def build(module: Any, name: str, *more: Any, **changes: Any) -> Recipe:
    small = {"backbone": "test_resnet", "resolution": 16, "epochs": 1, "batch_size": ROWS}
    config = module.Config(
        pack=Path("p"), out=Path("o"), **{**small, **SMALL.get(module.__name__[8:], {}), **changes}
    )
    seed_everything(0)
    recipe: Recipe = getattr(module, name)(config, *more)
    recipe.double()
    return recipe


def weighted(recipe: Recipe) -> Recipe:
    recipe.weigh_classes(torch.tensor([5, 2, 1]))
    return recipe


def with_averages() -> Recipe:
    recipe = build(temporal_ensembling, "TemporalEnsembling", CLASSES, np.arange(100), ramp_epochs=0.0)
    recipe.visits.fill_(1)
    recipe.ensemble[:, 0] = 0.4
    return recipe


BY_ROWS: dict[str, tuple[Callable[[], Recipe], Any]] = {
    "supervised": (
        lambda: weighted(build(supervised, "Supervised", CLASSES, class_weights="inverse", mixing="mixup")),
        batch_of(1),
    ),
    "fixmatch": (lambda: build(fixmatch, "FixMatch", CLASSES, threshold=0.34), paired(1, 2)),
    "mean_teacher": (
        lambda: weighted(build(mean_teacher, "MeanTeacher", CLASSES, class_weights="effective")),
        paired(2, 2),
    ),
    "pseudo_label": (lambda: build(pseudo_label, "Classical", CLASSES, threshold=0.34), paired(1, 1)),
    "temporal_ensembling": (with_averages, paired(1, 1)),
    "colorization": (lambda: build(colorization, "Colorization"), batch_of(1)),
    "rotnet": (lambda: build(rotnet, "RotNet", probe_every_epochs=0), batch_of(1)),
    "jigsaw": (lambda: build(jigsaw, "Jigsaw"), batch_of(9, side=7)),
    "patches": (lambda: build(patches, "Patches"), batch_of(9, side=7)),
}
BY_EMBEDDINGS: dict[str, Callable[[], Recipe]] = {
    "barlow": lambda: build(barlow, "BarlowTwins", projector=(16, 8)),
    "barlow_joint": lambda: build(barlow, "BarlowTwins", projector=(16, 8), batchnorm="joint"),
    "simclr": lambda: build(simclr, "SimClr"),
    "vicreg": lambda: build(vicreg, "VicReg"),
}


def without_batchnorm(recipe: Recipe) -> Recipe:
    """Make the networks' BatchNorm use running statistics, so that it does not couple rows."""
    for name, module in recipe.named_modules():
        if isinstance(module, BATCHNORM) and not name.startswith("standardise"):
            module.eval()
    return recipe


def gradients(
    recipe: Recipe, batch: Any, micro: int | None
) -> tuple[dict[str, Tensor], float, dict[str, float]]:
    """Return gradients, loss and metrics of a step in parts of `micro` labelled rows; None: in one part."""
    recipe.zero_grad()
    loader: Any = SimpleNamespace(batch_size=ROWS)
    seed_everything(1)
    output = Accumulator(recipe, Shell(recipe), PLAIN, loader, micro)(batch, 3)  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in recipe.named_parameters() if p.grad is not None}
    return found, float(output.loss.detach()), {name: float(value) for name, value in output.metrics.items()}


def assert_parts_make_the_whole(recipe: Recipe, batch: Any, micro: int, rtol: float = 1e-9) -> None:
    whole, loss, metrics = gradients(recipe, batch, None)
    parts, loss_of_parts, metrics_of_parts = gradients(recipe, batch, micro)
    assert parts.keys() == whole.keys()
    largest = max(float(value.abs().max()) for value in whole.values())
    assert largest > 1e-6, "a case that teaches nothing"
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=rtol, atol=0.01 * rtol * largest, msg=name)
    assert loss_of_parts == pytest.approx(loss, rel=rtol)
    assert metrics_of_parts == pytest.approx(metrics, rel=max(rtol, 1e-6))


@pytest.mark.parametrize("name", BY_ROWS)
def test_means_over_rows_are_exact(name: str) -> None:
    make, batch = BY_ROWS[name]
    assert_parts_make_the_whole(without_batchnorm(make()), batch, 2)


def test_parts_of_a_batch_draw_what_the_whole_draws() -> None:
    """Tested on the noise of a VAE in float32, the type in which the noise is drawn."""
    recipe, batch = without_batchnorm(build(vae, "Vae")).float(), batch_of(1)
    single = Batch((batch.views[0].float(),), batch.labels, batch.index, batch.valid)
    assert_parts_make_the_whole(recipe, single, 2, rtol=1e-3)


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("name", BY_EMBEDDINGS)
def test_losses_of_the_whole_batch_are_exact(name: str, micro: int) -> None:
    assert_parts_make_the_whole(without_batchnorm(BY_EMBEDDINGS[name]()), batch_of(2), micro)


def test_a_loss_of_a_batch_is_not_that_of_its_parts() -> None:
    """Why embeddings need two passes: the mean of the parts' losses is not the loss of the whole batch."""
    recipe = without_batchnorm(BY_EMBEDDINGS["vicreg"]())
    whole = gradients(recipe, batch_of(2), None)[0]
    parts = [gradients(recipe, part, None)[0] for part in cut(batch_of(2), 2)]
    name = next(name for name in whole if name.endswith("weight"))
    assert not torch.allclose((parts[0][name] + parts[1][name]) / 2, whole[name], rtol=0.05)


def test_both_passes_drop_the_same() -> None:
    recipe = without_batchnorm(BY_EMBEDDINGS["simclr"]())
    recipe.projector = nn.Sequential(nn.Dropout(0.5), recipe.projector)
    found = gradients(recipe, batch_of(2), 4)[0]
    recipe.zero_grad()
    seed_everything(1)
    embedded = [recipe.embed(part) for part in cut(batch_of(2), 2)]
    recipe.embedding_loss([torch.cat(view) for view in zip(*embedded, strict=True)], 3).loss.backward()
    for name, p in recipe.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_running_statistics_follow_each_part_once() -> None:
    recipe, other = BY_EMBEDDINGS["barlow"](), BY_EMBEDDINGS["barlow"]()
    gradients(recipe, batch_of(2), 4)
    seed_everything(1)
    embedded = [other.embed(part) for part in cut(batch_of(2), 2)]
    other.embedding_loss([torch.cat(view).detach() for view in zip(*embedded, strict=True)], 3)
    for (name, found), (_, expected) in zip(recipe.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    assert int(recipe.backbone.bn1.num_batches_tracked) == 4  # two parts of two views


@pytest.mark.parametrize(
    ("make", "micro", "expected"),
    [
        (BY_EMBEDDINGS["simclr"], 3, "expected a divisor of the 8 images of a step on each process, found 3"),
        (BY_EMBEDDINGS["simclr"], 16, "expected a divisor of the 8 images"),
        (lambda: build(siamese_vae, "SiameseVae"), 4, "the loss of recipe 'siamese_vae' needs the whole"),
        (
            lambda: build(ssl_gan, "SslGan", CLASSES, backbone="gan_discriminator_8", generator_width=4),
            4,
            "the loss of recipe 'ssl_gan' needs the whole batch",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(make: Callable[[], Recipe], micro: int, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        gradients(make(), batch_of(2), micro)


def test_every_recipe_says_how_it_is_cut() -> None:
    assert (deepcluster.DeepCluster.parts, vae.Vae.parts) == ("rows", "rows")
    for name, (make, _) in BY_ROWS.items():
        assert make().parts == "rows", name
    for name, make in BY_EMBEDDINGS.items():
        assert make().parts == "embeddings", name


def test_the_loop_takes_parts(tmp_path: Path) -> None:
    options = OptimizerOptions(micro_batch=3)
    with pytest.raises(UserError, match="expected a divisor of the 8 images"):
        train_small(tmp_path / "run", optimizing=options)
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")
