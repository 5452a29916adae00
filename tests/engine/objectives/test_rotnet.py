"""The rotations and their loss equal plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.objectives.rotnet import rotate_four, rotnet_loss


def logits_of(rows: int) -> torch.Tensor:
    return torch.randn(4 * rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rotations_are_numpys_quarter_turns() -> None:
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).view(2, 3, 5, 5)
    expected = np.concatenate([np.rot90(x.numpy(), turns, axes=(2, 3)) for turns in range(4)])
    assert np.array_equal(rotate_four(x).numpy(), expected)


def test_rotations_keep_the_memory_format() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert rotate_four(x).is_contiguous(memory_format=torch.channels_last)
    assert rotate_four(x.contiguous()).is_contiguous()


def test_equals_the_equation() -> None:
    logits = logits_of(3)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    # equations 2 and 3: for each image, the mean over rotations y of -log p(y | the image turned by y)
    per_image = [-np.mean([np.log(p[y * 3 + i, y]) for y in range(4)]) for i in range(3)]
    terms = rotnet_loss(logits)
    assert float(terms.loss) == pytest.approx(float(np.mean(per_image)), rel=1e-12)
    hits = [logits[y * 3 + i].argmax() == y for y in range(4) for i in range(3)]
    assert float(terms.top1) == pytest.approx(np.mean(hits))


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda z: rotnet_loss(z).loss, (logits_of(2).requires_grad_(),))


def test_does_not_depend_on_the_order_of_images_or_an_offset() -> None:
    logits = logits_of(5)
    shuffled = logits.view(4, 5, 4)[:, torch.randperm(5)].reshape(20, 4)
    expected = float(rotnet_loss(logits).loss)
    assert float(rotnet_loss(shuffled).loss) == pytest.approx(expected)
    assert float(rotnet_loss(logits + 7).loss) == pytest.approx(expected)


def test_half_precision_is_widened() -> None:
    assert rotnet_loss(logits_of(2).bfloat16()).loss.dtype == torch.float32


def test_mean_of_two_halves_is_the_whole() -> None:
    logits = logits_of(4).view(4, 4, 4)
    halves = [rotnet_loss(logits[:, rows].reshape(8, 4)).loss for rows in (slice(0, 2), slice(2, 4))]
    assert float(sum(halves)) / 2 == pytest.approx(float(rotnet_loss(logits.reshape(16, 4)).loss))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \[1, 3, 4, 5\]"):
        rotate_four(torch.randn(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"got \[6, 4\]"):
        rotnet_loss(torch.randn(6, 4))
