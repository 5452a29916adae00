"""Fine-tuning starts as the linear probe of its own features; a rehearsal decides whether to train on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluate.linear_probe import fit_linear_probe
from engine.evaluate.representations import Features
from engine.objectives.cross_entropy import label_loss
from engine.train.probe_start import PENALTY, is_worth_it, rehearsal_part, start_at_probe
from engine.train.validation import ValidationState


def test_the_classifier_is_the_linear_probe_and_can_be_trained_on() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    h = torch.randn(60, 5, generator=generator) * 10 + 4 * labels.unsqueeze(1)
    head = nn.Linear(5, 4)  # the fourth class has no image
    start_at_probe(head, Features(h, labels, torch.arange(60)))
    probe = fit_linear_probe(h, labels, 4, PENALTY)
    assert torch.allclose(head(h)[:, :3], probe.logits(h)[:, :3], atol=1e-4)
    assert head(h).argmax(1).max() < 3
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    label_loss(head(h), labels).backward()
    optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in head.parameters())


def test_a_rehearsal_holds_out_labels_of_each_class_that_has_two() -> None:
    labels = np.repeat([0, 1, 2], [10, 5, 1])
    part = rehearsal_part(labels, 0)
    assert part is not None
    assert np.bincount(labels[part], minlength=3).tolist() == [2, 1, 0]
    assert np.array_equal(part, rehearsal_part(labels, 0))
    labels[:10] = -1  # images with guessed labels, which are not used for measuring
    few = rehearsal_part(labels, 0)
    assert few is not None
    assert labels[few].tolist() == [1]
    assert rehearsal_part(np.arange(5), 0) is None, "one label per class: nothing to measure on"


@pytest.mark.parametrize(
    ("end", "start", "images", "worth_it"),
    [
        (0.60, 0.5, 100, True),
        (0.56, 0.5, 100, False),  # the gain is within the standard error of 7 points
        (0.377, 0.354, 130, False),  # measured on CIFAR-10, 64 labels per class
        (0.51, 0.5, 10_000, True),
        (0.50, 0.5, 10_000, False),
        (0.10, 0.0, 100, True),
        (1.00, 1.0, 100, False),
    ],
)
def test_a_training_is_worth_it_beyond_what_chance_brings(
    end: float, start: float, images: int, worth_it: bool
) -> None:
    assert is_worth_it(ValidationState(40 if end > start else 0, end, start_top1=start), images) == worth_it
