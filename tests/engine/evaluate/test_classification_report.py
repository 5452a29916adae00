"""A classifier's figures equal scikit-learn's and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from engine.evaluate.classification_report import classification_report


def case(num_classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 200)
    logits = rng.normal(size=(200, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return torch.from_numpy(p.astype(np.float32)), torch.from_numpy(labels)


def test_equals_scikit_learn() -> None:
    p, labels = case()
    report = classification_report(p, labels)
    guesses = p.argmax(1)
    assert report.top1 == pytest.approx(float((guesses == labels).float().mean()))
    assert report.top5 == pytest.approx(top_k_accuracy_score(labels, p, k=5))
    assert report.mean_class_top1 == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert np.array_equal(report.confusion, confusion_matrix(labels, guesses))
    assert report.log_loss == pytest.approx(
        log_loss(labels, p.double() / p.double().sum(1, keepdim=True)), rel=1e-5
    )
    assert report.per_class == pytest.approx(np.diag(report.confusion) / report.confusion.sum(1))


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    p, labels = case()
    report = classification_report(p, labels)
    found = report.reliability
    gap = np.abs(found.confidence - found.accuracy)
    assert found.count.sum() == 200
    assert report.calibration_error == pytest.approx((gap * found.count).sum() / 200, abs=1e-5)
    confidence, guess = p.max(1)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            hits = (guess == labels)[inside].float().mean()
            expected += float((confidence[inside].mean() - hits).abs() * inside.float().mean())
    assert report.calibration_error == pytest.approx(expected, abs=1e-5)


def test_classes_without_images_and_few_classes() -> None:
    p, labels = case(3)
    labels = labels.clamp_max(1)
    report = classification_report(p, labels)
    assert report.top5 == 1.0
    assert np.isnan(report.per_class[2])
    assert report.mean_class_top1 == pytest.approx(report.per_class[:2].mean())


def test_what_is_no_probability_is_refused() -> None:
    p, labels = case()
    p[3, 1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        classification_report(p, labels)
