"""Test cases of every objective whose loss is a mean over the rank's own rows, to compare N ranks with one.

The objectives that couple the rows of all ranks (Barlow Twins, SimCLR, VICReg, triplets) are in `rank_cases`.
A batch has 16 rows, so that each of 4 ranks gets an even number, as mixing needs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

from engine.objectives.colorization import color_bins, colorization_loss, encode, rarity_weights
from engine.objectives.cross_entropy import pretext_loss
from engine.objectives.dcgan import dcgan_loss
from engine.objectives.deepcluster import cluster_weights, deepcluster_loss
from engine.objectives.fixmatch import fixmatch_loss
from engine.objectives.jigsaw import permutation_set, shuffle_tiles
from engine.objectives.mean_teacher import class_loss, consistency_loss
from engine.objectives.patches import choose_pairs
from engine.objectives.rotnet import rotate_four, rotnet_loss
from engine.objectives.ssl_gan import discriminator_loss, feature_matching_loss
from engine.objectives.supervised import mix, mixed_cross_entropy
from engine.objectives.temporal_ensembling import ensemble_consistency
from engine.objectives.vae import reparameterise, vae_loss
from engine.train.draws import StepDraws

ROWS, SIDE, CLASSES = 16, 4, 5


class Rows:
    """The global batch of a case, of which each rank sees its own rows."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._draws = count(100)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES)
        ).double()

    def own(self, joined: Tensor) -> Tensor:
        return joined.chunk(self._num_ranks)[self._rank].clone()

    def images(self, *more: int) -> Tensor:
        generator = torch.Generator().manual_seed(next(self._draws))
        return self.own(torch.rand(ROWS, *more, 3, SIDE, SIDE, dtype=torch.float64, generator=generator))

    def integers(self, high: int = CLASSES) -> Tensor:
        return self.own(
            torch.randint(high, (ROWS,), generator=torch.Generator().manual_seed(next(self._draws)))
        )


def deepcluster(rows: Rows) -> Tensor:
    assignment = torch.arange(ROWS) * 7 % 11 % CLASSES  # clusters of unequal sizes
    weights = cluster_weights(assignment, CLASSES)
    return deepcluster_loss(rows.net(rows.images()), rows.own(assignment), weights).loss


def fixmatch(rows: Rows) -> Tensor:
    logits = rows.net(rows.images()), rows.integers(), 9 * rows.net(rows.images()), rows.net(rows.images())
    terms = fixmatch_loss(*logits, threshold=0.6, unlabeled_weight=2.0)
    return terms.loss


def pseudo_label(rows: Rows) -> Tensor:
    x = rows.images(), rows.images()
    labeled, labels, guesses = rows.net(x[0]), rows.integers(), 9 * rows.net(x[1])
    return fixmatch_loss(labeled, labels, guesses, guesses, 0.6, 0.7).loss


def mean_teacher(rows: Rows) -> Tensor:
    student, teacher = rows.net(rows.images()), rows.net(rows.images())
    labelled = class_loss(rows.net(rows.images()), rows.integers(), num_rows=3 * len(student))
    return labelled + consistency_loss(student, teacher, "mse") + consistency_loss(student, teacher, "kl")


def jigsaw(rows: Rows) -> Tensor:
    permutations = torch.from_numpy(permutation_set(CLASSES, 4))
    choice = rows.integers()
    tiles = shuffle_tiles(rows.images(4), permutations, choice)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    return pretext_loss(torch.stack([rows.net(t) for t in tiles.unbind(1)], 2) @ weights, choice).loss


def patches(rows: Rows) -> Tensor:
    position = rows.integers(CLASSES)
    centre, neighbour = choose_pairs(rows.images(9), position)
    return pretext_loss(rows.net(centre) - 2 * rows.net(neighbour), position).loss


def rotnet(rows: Rows) -> Tensor:
    return rotnet_loss(rows.net(rotate_four(rows.images()))[:, :4]).loss


def vae(rows: Rows) -> Tensor:
    x = rows.images()
    code = rows.net(x)
    mean, log_variance = code[:, :2], code[:, 2:4]
    noise = StepDraws(seed=1, step=2, device=torch.device("cpu")).normal(len(x), 2).double()
    decoded = reparameterise(mean, log_variance, noise)[:, :1, None, None].expand_as(x)
    return (
        vae_loss(decoded, x, mean, log_variance, 0.5).loss + vae_loss(decoded, x, mean, None, 1.0, "mse").loss
    )


def supervised(rows: Rows) -> Tensor:
    x, labels = rows.images(), rows.integers()
    mixtures = [mix(x, labels, mixing, 1.0, 3, 4) for mixing in ("none", "mixup", "cutmix")]
    return torch.stack([mixed_cross_entropy(rows.net(mixed.x), mixed, 0.1) for mixed in mixtures]).sum()


def ssl_gan(rows: Rows) -> Tensor:
    labeled, unlabeled, generated = (rows.net(rows.images()) for _ in range(3))
    terms = discriminator_loss(labeled, rows.integers(), unlabeled, generated)
    return terms.loss + feature_matching_loss(unlabeled, generated)


def dcgan(rows: Rows) -> Tensor:
    return dcgan_loss(*(rows.net(rows.images())[:, 0] for _ in range(3))).loss


def temporal_ensembling(rows: Rows) -> Tensor:
    logits, target = rows.net(rows.images()), rows.net(rows.images()).softmax(1)
    return ensemble_consistency(logits, target, rows.integers() > 0)


def colorization(rows: Rows) -> Tensor:
    x, bins = rows.images(), color_bins()[::60].double()
    nearest, shares = encode(30 * x[:, :2], bins)
    logits = rows.net(rows.images())[:, : len(bins), None, None].expand(-1, -1, *x.shape[2:])
    counts = torch.arange(len(bins), dtype=torch.float64)
    return colorization_loss(logits, nearest, shares, rarity_weights(counts, bins).double()).loss


OBJECTIVES: dict[str, Callable[[Rows], Tensor]] = {
    case.__name__: case
    for case in (
        deepcluster, fixmatch, pseudo_label, mean_teacher, jigsaw, patches, rotnet, vae, supervised, ssl_gan,
        colorization, dcgan, temporal_ensembling,
    )
}  # fmt: skip


def objective_case(name: str, rank: int, num_ranks: int) -> tuple[Tensor, nn.Module]:
    """Return this rank's loss of an objective, and the network, whose weights are the same on every rank."""
    torch.manual_seed(len(name))
    rows = Rows(rank, num_ranks)
    return OBJECTIVES[name](rows), rows.net
