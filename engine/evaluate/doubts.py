"""Doubtful labels, and images that are unlike every class, found by the similarity of frozen features.

A labelled image is compared with the other labelled images, never with itself. How similar the images of a
class are to each other decides what counts as unlike that class, so no threshold depends on the network.
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

# Largest numbers of images to compare with and of images to judge; of more, evenly spaced ones are used.
# These numbers take half a minute on two cores.
MOST_COMPARED, MOST_JUDGED = 60_000, 20_000
USUAL = 0.95  # share of a class's own images that count as like the class
_NEIGHBOURS, _TEMPERATURE = 10, 0.07  # temperature as in `engine.evaluate.knn`
_LEAST_LEAD = 0.5  # share of the vote by which another class must lead
_CHUNK_SIZE = 512  # queries at once; their similarities to 60,000 images take 123 MB
_NOTHING = -2.0  # stands for a missing cosine; below every cosine


@dataclass(frozen=True)
class Doubts:
    """Labelled images whose neighbours vote for another class, the most doubtful first.

    Attributes:
        place: int64 [D], positions among the given images.
        guess: int64 [D], the class with the largest share of the vote.
        share: float32 [D], that share.
        num_judged: number of images that were judged.
    """

    place: NDArray[np.int64]
    guess: NDArray[np.int64]
    share: NDArray[np.float32]
    num_judged: int


@dataclass(frozen=True)
class Unlike:
    """Images that are unlike every class, the least similar first; see `unlike_every_class`.

    Attributes:
        place: int64 [U], positions among the given images.
        num_judged: number of images that were judged.
    """

    place: NDArray[np.int64]
    num_judged: int


@torch.inference_mode()
def doubted_labels(h: Tensor, labels: Tensor, num_classes: int) -> Doubts:
    """Find the labels that the ten most similar other images outvote.

    A label is doubtful if another class leads it by at least half of the vote, weighted as in `knn_scores`.
    Copies of an image vote too, so copies with the same wrong label can hide the error.

    Args:
        h: float [N, D], such as a memory-mapped float16.
        labels: int64 [N], in [0, num_classes).
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
    """Find the images that are unlike every class.

    The similarity of an image to a class is the cosine to the most similar image of that class. An image is
    unlike a class if its similarity is below that of 95 % (`USUAL`) of the class's own images, each of which
    is compared with the others of the class. A class of one image has the lowest limit of the others.

    Args:
        h: float [N, D], features of labelled images.
        labels: int64 [N], in [0, num_classes).
        others: float [M, D], features of the images to judge.
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
    usual = usual.nan_to_num(float(usual.nan_to_num(1.0).min()))  # one-image classes: the lowest limit
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
    """Yield batches of `places` in `query`, int64 [B], and cosines to each class's nearest image, [B, C]."""
    for part in torch.split(places, _CHUNK_SIZE):
        similarity = F.normalize(query[part].float(), dim=1) @ bank.T
        if without_itself:
            similarity[torch.arange(len(part)), part] = _NOTHING
        likeness = torch.full((len(part), num_classes), _NOTHING)
        yield part, likeness.scatter_reduce(1, labels.expand(len(part), -1), similarity, "amax")
