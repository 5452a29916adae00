"""Predictions on a loader leave out padding, average over views, and restore the modules' modes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from engine.evaluate.predict import Accuracy, measure_accuracy, predict
from loaders.batch import Batch


class FixedLoader:
    steps_per_epoch, batch_size = 2, 3
    bad_rows: ClassVar[dict[int, str]] = {}

    def epoch(self, epoch: int, start_step: int = 0):
        torch.manual_seed(0)
        for step in range(2):
            index = torch.arange(3 * step, 3 * step + 3)
            labels = torch.tensor([0, 1, -1]) if step == 0 else torch.tensor([1, 0, 0])
            views = tuple(torch.randn(3, 3, 2, 2) for _ in range(2))
            yield Batch(views, labels, index, torch.tensor([True, True, step == 0]))

    def close(self) -> None:
        pass


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 2))


def test_means_of_views_without_padding(tmp_path: Path) -> None:
    network = make_network().train()
    network[1].eval()
    parts = list(predict(network, FixedLoader(), "cpu", tmp_path))
    assert [part.index.tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [m.training for m in network] == [True, False, True], "every module has its own mode back"
    network.eval()
    batch = next(FixedLoader().epoch(0))
    expected = sum(network(view).softmax(1) for view in batch.views).detach() / 2
    torch.testing.assert_close(parts[0].probabilities, expected)


def test_accuracy_counts_labelled_images_alone(tmp_path: Path) -> None:
    network = make_network()
    parts = list(predict(network, FixedLoader(), "cpu", tmp_path))
    guesses = torch.cat([part.probabilities for part in parts]).argmax(1).tolist()
    right = sum(guesses[i] == label for i, label in ((0, 0), (1, 1), (3, 1), (4, 0)))
    accuracy = measure_accuracy(network, FixedLoader(), torch.device("cpu"), tmp_path)
    assert (accuracy.top1, accuracy.num_images) == (pytest.approx(right / 4), 4)


def test_without_a_label_only_the_count_is_known(tmp_path: Path) -> None:
    class Unlabelled(FixedLoader):
        def epoch(self, epoch: int, start_step: int = 0):
            for batch in super().epoch(epoch, start_step):
                yield replace(batch, labels=torch.full_like(batch.labels, -1))

    found = measure_accuracy(make_network(), Unlabelled(), torch.device("cpu"), tmp_path)
    assert found == Accuracy(0.0, 0)
    assert (found.top5, found.loss) == (None, None)


def test_top_five_counts_labels_among_the_five_most_probable_classes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    p = torch.cat([part.probabilities for part in predict(network, FixedLoader(), "cpu", tmp_path)])
    known = ((0, 0), (1, 1), (3, 1), (4, 0))
    right = sum(label in p[i].argsort(descending=True)[:5].tolist() for i, label in known)
    assert measure_accuracy(network, FixedLoader(), torch.device("cpu"), tmp_path).top5 == pytest.approx(
        right / 4
    )
    assert measure_accuracy(make_network(), FixedLoader(), torch.device("cpu"), tmp_path).top5 == 1.0, (
        "of two classes"
    )


def test_classes_are_measured_one_by_one(tmp_path: Path) -> None:
    network = make_network()
    parts = list(predict(network, FixedLoader(), "cpu", tmp_path))
    p = torch.cat([part.probabilities for part in parts])
    known = {0: 0, 1: 1, 3: 1, 4: 0}
    found = measure_accuracy(network, FixedLoader(), torch.device("cpu"), tmp_path, ("zero", "one", "none"))
    shares = {
        name: sum(float(p[i].argmax() == c) for i, label in known.items() if label == c) / 2
        for c, name in enumerate(("zero", "one"))
    }
    assert found.per_class == shares
    assert found.mean_class_top1 == pytest.approx(sum(shares.values()) / 2)
    assert found.worst_class == min(shares, key=shares.__getitem__)
    assert found.worst_class_top1 == min(shares.values())
    assert found.loss == pytest.approx(-sum(float(p[i, c].log()) for i, c in known.items()) / 4, rel=1e-5)
    unnamed = measure_accuracy(network, FixedLoader(), torch.device("cpu"), tmp_path)
    assert unnamed.per_class is not None
    assert list(unnamed.per_class) == ["0", "1"]
