"""A loader of deterministic random tensors and a recipe small enough for many runs per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.evaluate.online_probe import OnlineProbe
from engine.nets.backbones import Projector, build_backbone
from engine.objectives.barlow import barlow_twins_loss
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.loop import TrainSummary, train
from engine.train.loop_config import LoopConfig
from engine.train.optim import LARS, split_by_dimension
from engine.train.recipe import Recipe, StepOutput
from engine.train.schedule import Schedule, warmup_cosine
from loaders.batch import Batch


class SyntheticLoader:
    """Yields two random views per image, a pure function of (epoch, step), divided among the ranks."""

    def __init__(
        self,
        steps_per_epoch: int = 3,
        batch_size: int = 8,
        resolution: int = 16,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.resolution, self.rank, self.num_ranks = resolution, rank, num_ranks
        self.fingerprint = {"pack": "synthetic"}
        self.bad_rows: dict[int, str] = {}
        self.before_step: Callable[[int, int], None] = lambda epoch, step: None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step in range(start_step, self.steps_per_epoch):
            self.before_step(epoch, step)
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            shape = (2, self.batch_size, 3, self.resolution, self.resolution)
            views = torch.randn(shape, generator=generator)
            rows = slice(self.rank, None, self.num_ranks)
            index = torch.arange(self.batch_size)[rows]
            yield Batch(
                (views[0, rows], views[1, rows]), None, index, torch.ones_like(index, dtype=torch.bool)
            )

    def close(self) -> None:
        pass


class SmallRecipe(Recipe):
    """Barlow Twins on timm's small ResNet, with dropout, so that a run depends on the random generators."""

    name = "small"

    def __init__(self, embedding: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = build_backbone("test_resnet", 16)
        self.backbone_name = "test_resnet"
        self.projector = Projector(self.backbone.num_features, (32, embedding))
        self.standardise = nn.BatchNorm1d(embedding, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.poison_at: int | None = None
        self.steps_after: list[int] = []

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        assert type(batch) is Batch, "the batch reaches the recipe as it left the loader"
        z_a, z_b = (self.standardise(self.projector(self.dropout(self.backbone(x)))) for x in batch.views)
        terms = barlow_twins_loss(z_a, z_b)
        loss = terms.loss * float("nan") if step == self.poison_at else terms.loss
        return StepOutput(loss, {"redundancy": terms.redundancy.detach()})

    def make_optimizer(self) -> LARS:
        weights, vectors = split_by_dimension(self)
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": vectors, "adapt": False, "lr": 0.01}]
        return LARS(groups, lr=0.5, weight_decay=1e-4)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        return warmup_cosine(total_steps, 1, 0.1)

    def after_step(self, step: int) -> None:
        self.steps_after.append(step)


def train_small(
    out: Path,
    recipe: Recipe | None = None,
    loader: SyntheticLoader | None = None,
    dropout: float = 0.1,
    probe: OnlineProbe | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], TrainSummary]:
    """Train for 2 epochs of 3 steps and return the weights and the summary."""
    accelerator = make_accelerator("no")
    seed_everything(5)
    recipe = recipe or SmallRecipe(dropout=dropout)
    loader = loader or SyntheticLoader(rank=accelerator.process_index, num_ranks=accelerator.num_processes)
    defaults: dict[str, Any] = {"epochs": 2, "log_every": 1, "progress": False, "config": {"width": 1}}
    summary = train(recipe, loader, accelerator, LoopConfig(out=out, **{**defaults, **options}), probe)
    return {name: tensor.clone() for name, tensor in recipe.state_dict().items()}, summary
