"""Functions that tests run on N ranks and on one rank, to compare the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.nets.backbones import Projector
from engine.objectives.barlow import barlow_twins_loss
from engine.objectives.simclr import simclr_loss
from engine.objectives.triplet import triplet_loss
from engine.objectives.vicreg import vicreg_loss
from engine.train.accumulation import Accumulator, Shell
from engine.train.batchnorm import forward_views, synchronise_batchnorm
from engine.train.distributed import all_gather, all_reduce_sum, on_main
from engine.train.draws import StepDraws
from engine.train.recipe import Recipe, StepOutput
from engine.train.schedule import Schedule, constant
from loaders.batch import Batch
from tests.engine.objective_cases import OBJECTIVES, objective_case

ROWS, FEATURES, EMBEDDING = 12, 5, 7


def own_rows(joined: Tensor, rank: int, num_ranks: int) -> Tensor:
    return joined.chunk(num_ranks)[rank].clone()


class BarlowHead(nn.Module):
    """The parts of Barlow Twins that couple rows: projector with BatchNorm, standardisation, loss."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = Projector(FEATURES, (6, EMBEDDING))
        self.bias = nn.Parameter(torch.randn(EMBEDDING))
        self.standardise = nn.BatchNorm1d(EMBEDDING, affine=False)

    def forward(self, h_a: Tensor, h_b: Tensor) -> Tensor:
        z_a, z_b = (torch.tanh(z + self.bias) for z in forward_views(self.projector, (h_a, h_b)))
        z_a, z_b = forward_views(self.standardise, (z_a, z_b))
        return barlow_twins_loss(z_a, z_b).loss


def barlow_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return loss, parameter gradients as DDP averages them, and running statistics, in float64."""
    torch.manual_seed(0)
    head: nn.Module = synchronise_batchnorm(BarlowHead().double(), torch.device("cpu"))
    views = torch.randn(2, ROWS, FEATURES, dtype=torch.float64)
    wrapped = DistributedDataParallel(head, broadcast_buffers=False) if num_ranks > 1 else head
    loss = wrapped(*(own_rows(view, rank, num_ranks) for view in views))
    loss.backward()
    gradients = {f"barlow.grad.{n}": p.grad for n, p in head.named_parameters() if p.grad is not None}
    return {"barlow.loss": loss, **gradients, **{f"barlow.buffer.{n}": b for n, b in head.named_buffers()}}


def batchnorm_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return output, input gradient and buffers of each kind of BatchNorm on channels_last images."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm2d(3, affine=False, momentum=None)
    )
    network[0].weight.data.uniform_(0.5, 2.0)
    network[0].bias.data.normal_()
    joined = torch.randn(ROWS, 3, 4, 4) * 3 + 100  # a mean far from 0, to reveal cancellation
    target = torch.randn(ROWS, 3, 4, 4)
    network = synchronise_batchnorm(network, torch.device("cpu"))  # type: ignore[assignment]
    x = own_rows(joined, rank, num_ranks).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = network(x)
    (y * own_rows(target, rank, num_ranks)).sum().backward()
    assert x.grad is not None
    network.eval()
    buffers = {f"bn.buffer.{n}": b for n, b in network.named_buffers()}
    evaluated = network(own_rows(joined, rank, num_ranks))
    return {"bn.rows.y": y, "bn.rows.grad": x.grad, "bn.rows.eval": evaluated, **buffers}


def autocast_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return output and input gradient of layers under bfloat16 autocast, for two views far from zero."""
    torch.manual_seed(6)
    network: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    network = synchronise_batchnorm(network, torch.device("cpu"))
    joined, target = torch.randn(2, ROWS, 3, 4, 4) + 20, torch.randn(2, ROWS, 4, 4, 4)
    views = [own_rows(view, rank, num_ranks).requires_grad_() for view in joined]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = forward_views(network, views)
    sums = [(y * own_rows(t, rank, num_ranks)).sum() for y, t in zip(outputs, target, strict=True)]
    torch.stack(sums).sum().backward()
    values = {f"autocast.rows.y{n}": y.float() for n, y in enumerate(outputs)}
    return values | {f"autocast.rows.grad{n}": x.grad for n, x in enumerate(views) if x.grad is not None}


def views_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return output, input gradient and buffers of two views with separate statistics, and message counts."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm2d(3, affine=False))
    network[0].weight.data.uniform_(0.5, 2.0)
    network[0].bias.data.normal_()
    joined = torch.randn(2, ROWS, 3, 4, 4) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1) + 10
    target = torch.randn(2, ROWS, 3, 4, 4)
    network = synchronise_batchnorm(network, torch.device("cpu"))  # type: ignore[assignment]
    views = [own_rows(view, rank, num_ranks).requires_grad_() for view in joined]
    with (
        mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as gathered,
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced,
    ):
        outputs = forward_views(network, views)
        sums = [(y * own_rows(t, rank, num_ranks)).sum() for y, t in zip(outputs, target, strict=True)]
        torch.stack(sums).sum().backward()
    values = {f"views.rows.y{n}": y for n, y in enumerate(outputs)}
    values |= {f"views.rows.grad{n}": x.grad for n, x in enumerate(views) if x.grad is not None}
    gradients = _averaged(torch.zeros((), requires_grad=True), network, num_ranks)
    values |= {f"views.{n}": v * num_ranks for n, v in gradients.items()}  # the loss is a sum
    values |= {f"views.buffer.{n}": b for n, b in network.named_buffers()}
    return values | {"messages": torch.tensor([gathered.call_count, reduced.call_count])}


def collective_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return gradients of the sum of all ranks' losses through all_reduce_sum and all_gather."""
    torch.manual_seed(2)
    joined = torch.randn(ROWS, 2, dtype=torch.float64)
    weights = torch.randn(num_ranks, ROWS, 2, dtype=torch.float64)[rank]
    summed = own_rows(joined, rank, num_ranks).requires_grad_()
    gathered = own_rows(joined, rank, num_ranks).requires_grad_()
    total = all_reduce_sum(summed)
    (total * weights[: len(total)]).sum().backward()
    whole = all_gather(gathered)
    (whole * weights).sum().backward()
    assert summed.grad is not None
    assert gathered.grad is not None
    return {"sum": total, "sum.grad": summed.grad, "gather": whole, "gather.grad": gathered.grad}


def triplet_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return loss and encoder gradients of the triplet loss, with negatives from the global batch."""
    torch.manual_seed(3)
    encoder = nn.Linear(FEATURES, EMBEDDING, dtype=torch.float64)
    views = torch.randn(2, ROWS, FEATURES, dtype=torch.float64)
    terms = triplet_loss(*(encoder(own_rows(view, rank, num_ranks)) for view in views), margin=1.0)
    return {f"triplet.{name}": value for name, value in _averaged(terms.loss, encoder, num_ranks).items()}


def two_view_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return loss and gradients of SimCLR (a mean over own rows) and VICReg (in full on every rank)."""
    values = {}
    for name, objective in (("simclr", simclr_loss), ("vicreg", vicreg_loss)):
        torch.manual_seed(4)
        encoder = nn.Linear(FEATURES, EMBEDDING, dtype=torch.float64)
        views = torch.randn(2, ROWS, FEATURES, dtype=torch.float64)
        terms = objective(*(encoder(own_rows(view, rank, num_ranks)) for view in views))
        values |= {f"{name}.{n}": v for n, v in _averaged(terms.loss, encoder, num_ranks).items()}
    return values


def own_rows_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return loss and gradients of every objective that is a mean over the rank's own rows."""
    values = {}
    for name in OBJECTIVES:
        loss, network = objective_case(name, rank, num_ranks)
        values |= {f"{name}.{n}": v for n, v in _averaged(loss, network, num_ranks).items()}
    return values


def draws_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return two random draws of one step."""
    draws = StepDraws(seed=7, step=3, device=torch.device("cpu"))
    rows = ROWS // num_ranks
    return {"draws.rows.normal": draws.normal(rows, 2), "draws.rows.integers": draws.integers(9, rows)}


def _averaged(loss: Tensor, module: nn.Module, num_ranks: int) -> dict[str, Tensor]:
    """Average loss and gradients over ranks, as DistributedDataParallel does."""
    loss.backward()
    values = {"loss": loss.detach().clone()}
    values |= {f"grad.{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    for value in values.values() if num_ranks > 1 else ():
        dist.all_reduce(value)
        value /= num_ranks
    return values


class Embeds(Recipe):
    """A loss that couples all rows, on a network that does not."""

    name, backbone_name, parts = "embeds", "embeds", "embeddings"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, EMBEDDING)).double()

    def embed(self, batch: Batch) -> list[Tensor]:
        return [self.backbone(view) for view in batch.views]

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        return StepOutput(vicreg_loss(*embeddings).loss)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        return self.embedding_loss(self.embed(batch), step)

    def make_optimizer(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.parameters(), 0.1)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        return constant()


def parts_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return loss and gradients of a batch: accumulated over parts on several ranks, at once on one."""
    torch.manual_seed(2)
    recipe = Embeds()
    views = torch.randn(2, ROWS, FEATURES, dtype=torch.float64)
    index = torch.arange(ROWS // num_ranks)
    own = tuple(own_rows(view, rank, num_ranks) for view in views)
    batch = Batch(own, None, index, torch.ones_like(index, dtype=torch.bool))
    model: nn.Module = Shell(recipe)
    if num_ranks > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    accelerator: Any = SimpleNamespace(
        backward=lambda loss: loss.backward(),
        autocast=nullcontext,
        no_sync=lambda model: model.no_sync(),
        device=torch.device("cpu"),
    )
    loader: Any = SimpleNamespace(batch_size=ROWS)
    micro = None if num_ranks == 1 else 1
    output = Accumulator(recipe, model, accelerator, loader, micro)(batch, 0)
    gradients = {f"parts.grad.{n}": p.grad for n, p in recipe.named_parameters() if p.grad is not None}
    return {"parts.loss": output.loss.detach(), **gradients}


def patience_case(rendezvous: str, rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Let rank 0 work for longer than the timeout of the process group."""
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=1)
    )
    return {"answer": torch.tensor(on_main(lambda: time.sleep(2.5) or 7))}


def all_cases(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Run all cases in one group of processes, since starting a group takes seconds."""
    cases = (
        barlow_case,
        batchnorm_case,
        views_case,
        autocast_case,
        collective_case,
        triplet_case,
        two_view_case,
        draws_case,
    )
    cases += (own_rows_case, parts_case)
    return {name: value for case in cases for name, value in case(rank, num_ranks).items()}
