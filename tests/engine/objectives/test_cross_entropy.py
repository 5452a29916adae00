"""The cross-entropies of pretext tasks and of labels equal plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.objectives.cross_entropy import class_weights, label_loss, pretext_loss

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


def test_rare_classes_weigh_as_much_as_frequent_ones() -> None:
    counts = torch.tensor([8, 2, 0])
    inverse, effective = class_weights(counts), class_weights(counts, effective=True)
    assert inverse.tolist() == pytest.approx([10 / 16, 10 / 4, 0.0])
    numbers = [(1 - 0.999**n) / (1 - 0.999) for n in (8, 2)]
    assert float(effective[1] / effective[0]) == pytest.approx(numbers[0] / numbers[1], rel=1e-5)
    for weights in (inverse, effective):
        assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0)
    many = class_weights(torch.tensor([10**6, 10**5]), effective=True)
    assert many.tolist() == pytest.approx([1.0, 1.0]), "both are as many as can be told apart"


def test_weighted_rows_are_a_mean_over_rows_whatever_is_in_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    labels, weights = torch.tensor([0, 1, 2, 2, 0, 0]), torch.tensor([0.5, 1.0, 3.0]).double()
    rows = F.cross_entropy(logits, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(label_loss(logits, labels, weights), rows.mean())
    halves = [label_loss(logits[part], labels[part], weights) for part in (slice(3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), rows.mean())
    assert torch.equal(label_loss(logits, labels), F.cross_entropy(logits, labels))
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(label_loss(logits, labels, torch.ones(3).double(), 0.1), smoothed)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_of_classes_are_labels_in_proportion(weighted: bool, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    weights = torch.tensor([0.5, 2.0, 1.0]).double() if weighted else None
    own, other = torch.arange(6) % 3, torch.tensor([1, 1, 0, 2, 0, 2])
    shares = 0.7 * F.one_hot(own, 3).double() + 0.3 * F.one_hot(other, 3).double()
    expected = 0.7 * label_loss(logits, own, weights, smoothing)
    expected += 0.3 * label_loss(logits, other, weights, smoothing)
    torch.testing.assert_close(label_loss(logits, shares, weights, smoothing), expected)
