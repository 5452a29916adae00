"""Labels that the neighbours of an image doubt, and images that are unlike every class, on frozen features.

Both compare labelled images with each other first, each without itself, so that what is usual in a pack, and
in a class, decides what stands out; no threshold is of one network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluate.collapse import spaced
from engine.evaluate.knn import nearest

MOST_COMPARED, MOST_JUDGED = 60_000, 20_000  # evenly spaced where there are more; half a minute of two cores
USUAL = 0.95  # share of the images of a class that have another image of the class this near
_NEIGHBOURS, _TEMPERATURE = 10, 0.07  # temperature as in `engine.evaluate.knn`
_LEAST_LEAD = 0.5  # share of the vote by which another class has to be ahead
_CHUNK_SIZE = 512  # x 60,000 x 4 bytes
_NOTHING = -2.0  # below every cosine


@dataclass(frozen=True)
class Doubts:
    """Labelled images whose neighbours vote for another class, the most doubtful first.

    Attributes:
        place: int64 [D], positions among the images that were given.
        guess: int64 [D], class of most votes.
        share: float32 [D], its share of the vote.
        num_judged: images that were judged.
    """

    place: NDArray[np.int64]
    guess: NDArray[np.int64]
    share: NDArray[np.float32]
    num_judged: int


@dataclass(frozen=True)
class Unlike:
    """Images that are less like every class than `USUAL` of its own images are, the farthest first.

    Attributes:
        place: int64 [U], positions among the images that were given.
        num_judged: images that were judged.
    """

    place: NDArray[np.int64]
    num_judged: int


@torch.inference_mode()
def doubted_labels(h: Tensor, labels: Tensor, num_classes: int) -> Doubts:
    """Let the ten most similar other images vote for the class of each labelled image.

    A label is doubted where another class is ahead of it by half of the vote, weighted as in `knn_scores`.
    Copies of an image that bear its label vouch for it.

    Args:
        h: float [N, D], such as a memory-mapped float16.
        labels: int64 [N], in [0, C).
        num_classes: C.
    """
    bank, judged = spaced(len(h), MOST_COMPARED), spaced(len(h), MOST_JUDGED)
    found: list[list[Tensor]] = [[], [], [], []]  # places, guesses, leads and shares of the vote
    k, compared = min(_NEIGHBOURS, len(bank) - 1), h if len(bank) == len(h) else h[bank]
    for part in torch.split(judged, _CHUNK_SIZE) if k > 0 else ():
        similarity, neighbour = nearest(compared, h[part], k + 1)
        similarity = torch.where(bank[neighbour] == part.unsqueeze(1), _NOTHING, similarity)
        similarity, kept = similarity.topk(k, dim=1)
        votes = torch.zeros(len(part), num_classes)
        known = labels[bank[neighbour.gather(1, kept)]]
        votes.scatter_add_(1, known, torch.softmax(similarity / _TEMPERATURE, dim=1))
        share, guess = votes.max(1)
        lead = share - votes.gather(1, labels[part].unsqueeze(1)).squeeze(1)
        doubted = lead >= _LEAST_LEAD
        for column, values in zip(found, (part, guess, lead, share), strict=True):
            column.append(values[doubted])
    if not found[0]:
        return Doubts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
    place, guess, lead, share = map(torch.cat, found)
    order = lead.argsort(descending=True, stable=True)
    return Doubts(place[order].numpy(), guess[order].numpy(), share[order].numpy(), len(judged))


@torch.inference_mode()
def unlike_every_class(h: Tensor, labels: Tensor, num_classes: int, others: Tensor) -> Unlike:
    """Find images that are far from every class: each class by the similarities among its own images.

    An image is as like a class as its most similar image there. It is far from a class if it is less like it
    than `USUAL` of the images of that class are, each without itself.

    Args:
        h: float [N, D], of labelled images.
        labels: int64 [N], in [0, C).
        num_classes: C.
        others: float [M, D], of the images to judge.
    """
    bank, judged = spaced(len(h), MOST_COMPARED), spaced(len(others), MOST_JUDGED)
    if len(bank) < 2 or not len(judged):
        return Unlike(np.zeros(0, np.int64), 0)
    known, normal = labels[bank], F.normalize(h[bank].float(), dim=1)
    sample = spaced(len(bank), MOST_JUDGED)
    own = torch.cat(
        [
            likeness[torch.arange(len(part)), known[part]]
            for part, likeness in _likeness(normal, known, num_classes, normal, sample, without_itself=True)
        ]
    )
    usual = torch.full((num_classes,), torch.nan)
    for label in torch.unique(known).tolist():
        among = own[(known[sample] == label) & (own > _NOTHING)]
        usual[label] = among.quantile(1 - USUAL) if len(among) else torch.nan
    if bool(usual.isnan().all()):
        return Unlike(np.zeros(0, np.int64), 0)
    usual = usual.nan_to_num(float(usual.nan_to_num(1.0).min()))  # a class of one image: as wide as any
    margins = torch.cat(
        [
            (likeness - usual).max(1).values
            for _, likeness in _likeness(normal, known, num_classes, others, judged, without_itself=False)
        ]
    )
    order = margins.argsort(stable=True)
    far = judged[order][margins[order] < 0]
    return Unlike(far.numpy(), len(judged))


def _likeness(
    bank: Tensor, labels: Tensor, num_classes: int, query: Tensor, places: Tensor, without_itself: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield places of queries, int64 [B], and the cosine to the most similar image of each class, [B, C]."""
    for part in torch.split(places, _CHUNK_SIZE):
        similarity = F.normalize(query[part].float(), dim=1) @ bank.T
        if without_itself:
            similarity[torch.arange(len(part)), part] = _NOTHING
        likeness = torch.full((len(part), num_classes), _NOTHING)
        yield part, likeness.scatter_reduce(1, labels.expand(len(part), -1), similarity, "amax")
