"""Features leave out masked rows and restore modes; accuracies equal scikit-learn's."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor, nn

from engine.evaluate.representations import extract_features, topk_accuracy
from loaders.batch import Batch


class PaddedLoader:
    """Ten images in batches of four; the last batch is padded with copies of its first row."""

    steps_per_epoch = 3
    batch_size = 4
    bad_rows: ClassVar[dict[int, str]] = {}

    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        self.images, self.labels = images, labels

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for first in range(start_step * 4, len(self.images), 4):
            index = torch.arange(first, first + 4)
            valid = index < len(self.images)
            index = torch.where(valid, index, first)
            labels = None if self.labels is None else self.labels[index]
            yield Batch((self.images[index],), labels, index, valid)

    def close(self) -> None:
        return


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_padding_is_dropped_and_rows_keep_their_order(tmp_path: Path) -> None:
    images, labels = torch.randn(10, 3, 8, 8), torch.arange(10) - 1
    network = backbone()
    features = extract_features(network, PaddedLoader(images, labels), "cpu", tmp_path)
    assert features.index.tolist() == list(range(10))
    assert features.labels.tolist() == labels.tolist()
    with torch.no_grad():
        expected = network.eval()(images)
    torch.testing.assert_close(features.h, expected)
    assert features.labelled().index.tolist() == list(range(1, 10))


def test_modes_are_restored_module_by_module_and_statistics_stay(tmp_path: Path) -> None:
    network = backbone()
    network.train()
    network[1].eval()
    before = network[1].running_mean.clone()
    features = extract_features(network, PaddedLoader(torch.randn(10, 3, 8, 8), None), "cpu", tmp_path)
    assert [m.training for m in network] == [True, False, True, True]
    assert torch.equal(network[1].running_mean, before)
    assert (features.labels == -1).all()
    assert not features.h.requires_grad


def test_a_class_without_a_score_is_no_guess() -> None:
    labels = torch.arange(4)
    votes = torch.tensor([[0.75, 0.25, 0.0, 0.0]]).repeat(4, 1)
    assert topk_accuracy(votes, labels, 4) == 0.5
    logits = torch.tensor([[2.0, 0.0, -1.0, -torch.inf]]).repeat(4, 1)
    assert topk_accuracy(logits, labels, 4) == 0.75
    assert topk_accuracy(logits.softmax(1), labels, 4) == 0.75


@pytest.mark.parametrize("top_k", [1, 3])
def test_topk_accuracy_is_that_of_scikit_learn(top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 5, generator=generator)
    labels = torch.randint(0, 5, (200,), generator=generator)
    expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=top_k, labels=np.arange(5))
    assert topk_accuracy(scores, labels, top_k) == pytest.approx(expected, abs=1e-6)
