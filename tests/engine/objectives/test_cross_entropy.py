"""The cross-entropy of pretext tasks against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.objectives.cross_entropy import pretext_loss

TARGET = torch.tensor([2, 0, 1, 1])


def logits() -> torch.Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_equals_the_equation() -> None:
    z, y = logits().numpy(), TARGET.numpy()
    expected = np.mean([np.log(np.exp(row).sum()) - row[t] for row, t in zip(z, y, strict=True)])
    terms = pretext_loss(logits(), TARGET)
    assert float(terms.loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(terms.top1) == pytest.approx(float((z.argmax(1) == y).mean()))


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda z: pretext_loss(z, TARGET).loss, (logits().requires_grad_(),))


def test_does_not_depend_on_order_names_or_an_offset_and_halves_average() -> None:
    expected = float(pretext_loss(logits(), TARGET).loss)
    rows, names = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 0, 1])
    assert float(pretext_loss(logits()[rows] + 5, TARGET[rows]).loss) == pytest.approx(expected)
    renamed = pretext_loss(logits()[:, names], torch.argsort(names)[TARGET])
    assert float(renamed.loss) == pytest.approx(expected)
    halves = [float(pretext_loss(logits()[i : i + 2], TARGET[i : i + 2]).loss) for i in (0, 2)]
    assert sum(halves) / 2 == pytest.approx(expected)


def test_half_precision_is_widened_and_shapes_are_checked() -> None:
    assert pretext_loss(logits().bfloat16(), TARGET).loss.dtype == torch.float32
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[3\]"):
        pretext_loss(logits(), TARGET[:3])
