"""Images ranked by class probability: figures equal scikit-learn's and counts by hand."""

import numpy as np
import pytest
from sklearn.metrics import precision_score

from engine.evaluate.ranks import passing, rank_images


def case(num_images: int = 300, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_images)
    scores = rng.random((num_images, num_classes)) + np.eye(num_classes)[labels] * 0.6
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32), labels


def test_precision_at_rank_is_that_of_the_first_k() -> None:
    scores, labels = case()
    found = rank_images(scores, labels, 120)
    assert found.place.shape == (4, 120)
    precision = found.precision()
    for number in range(4):
        order = np.argsort(-scores[:, number], kind="stable")
        assert np.array_equal(found.place[number], order[:120])
        for k in (1, 7, 50, 120):
            taken = np.zeros(300, bool)
            taken[order[:k]] = True
            assert precision[number, k - 1] == pytest.approx(precision_score(labels == number, taken))
    own = found.at_own_size()
    for number in range(4):
        size = int((labels == number).sum())
        assert own[number] == pytest.approx(precision[number, size - 1])


def test_no_more_images_than_there_are_and_equals_in_their_order() -> None:
    scores = np.full((5, 2), 0.5, np.float32)
    found = rank_images(scores, np.array([0, 0, 0, 1, 1]))
    assert found.place.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert found.precision()[0].tolist() == pytest.approx([1, 1, 1, 0.75, 0.6])
    assert found.at_own_size().tolist() == [1.0, 0.0]


def test_images_without_a_label_count_neither_way() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], np.float32)
    found = rank_images(scores, np.array([-1, 0, 1, 0]))
    assert np.isnan(found.precision()[0, 0])
    assert found.precision()[0, 1:].tolist() == pytest.approx([1.0, 0.5, 2 / 3])
    nobody = rank_images(scores, np.full(4, -1))
    assert np.isnan(nobody.precision()).all()
    assert np.isnan(nobody.at_own_size()).all()
    assert nobody.rows(("a", "b")) == []


def test_rows_have_the_ranks_that_there_are() -> None:
    scores, labels = case()
    found = rank_images(scores, np.minimum(labels, 2))
    assert found.count[2] > 100, "of two classes"
    assert found.columns == ("class", "images", "at 1", "at 10", "at 50", "at 100", "at own size")
    rows = found.rows(("a", "b", "c", "d"))
    assert [row[0] for row in rows] == ["a", "b", "c"], "a class without images has no row"
    assert all(2 + len(shares) == len(found.columns) for _, _, shares in rows)
    assert rows[1][2][1] == pytest.approx(found.precision()[1, 9])


def test_no_rank_is_shown_beyond_the_images_of_a_class() -> None:
    scores, labels = case(120)
    labels[:] = np.repeat([0, 1, 2], [12, 48, 60])
    found = rank_images(scores, labels)
    assert found.columns == ("class", "images", "at 1", "at 10", "at 50", "at own size")
    few, some, many = (shares for _, _, shares in found.rows(("a", "b", "c", "d")))
    assert np.isnan(few).tolist() == np.isnan(some).tolist() == [False, False, True, False]
    assert not np.isnan(many).any()
    assert found.reach.tolist() == [12, 48, 60, 120]
    labels[::2] = -1  # half of each class loses its labels
    assert rank_images(scores, labels).reach.tolist() == [12, 48, 60, 120]


def test_pseudo_labels_of_a_threshold_are_counted_by_class() -> None:
    confidence, guess = np.array([0.5, 0.9, 0.95, 0.99], np.float32), np.array([0, 2, 2, 1])
    assert passing(confidence, guess, 4, 0.0).tolist() == [1, 1, 2, 0]
    assert passing(confidence, guess, 4, 0.95).tolist() == [0, 1, 1, 0]
