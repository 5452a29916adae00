"""The semi-supervised GAN's losses equal those of K + 1 explicit classes, and N ranks equal one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.objectives.ssl_gan import discriminator_loss, diversity, feature_matching_loss
from tests.engine.ranks import run_ranks


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 1, 1])


def test_equals_a_softmax_over_k_plus_one_classes() -> None:
    labeled, real, generated = draw(4, 5), draw(7, 5, seed=1), draw(7, 5, seed=2)
    terms = discriminator_loss(labeled, LABELS, real, generated)

    def with_fake_class(logits: Tensor) -> np.ndarray:
        joined = np.concatenate([logits.numpy(), np.zeros((len(logits), 1))], 1)
        return np.exp(joined) / np.exp(joined).sum(1, keepdims=True)

    fake_of_real, fake_of_generated = with_fake_class(real)[:, 5], with_fake_class(generated)[:, 5]
    unsupervised = -0.5 * np.log(1 - fake_of_real).mean() - 0.5 * np.log(fake_of_generated).mean()
    assert float(terms.unsupervised) == pytest.approx(unsupervised, rel=1e-12)
    assert float(terms.supervised) == pytest.approx(float(F.cross_entropy(labeled, LABELS)), rel=1e-12)
    assert float(terms.loss) == pytest.approx(float(terms.supervised + terms.unsupervised))
    assert float(terms.real) == pytest.approx(1 - fake_of_real.mean())
    assert float(terms.generated) == pytest.approx(1 - fake_of_generated.mean())


def test_large_logits_do_not_overflow() -> None:
    terms = discriminator_loss(draw(4, 5), LABELS, 1e4 + draw(7, 5), -1e4 + draw(7, 5))
    assert torch.isfinite(terms.loss)
    assert float(terms.unsupervised) == pytest.approx(0.0, abs=1e-9)


def test_gradients() -> None:
    inputs = tuple(t.requires_grad_() for t in (draw(4, 5), draw(3, 5, seed=1), draw(3, 5, seed=2)))
    assert torch.autograd.gradcheck(lambda a, b, c: discriminator_loss(a, LABELS, b, c).loss, inputs)
    generated = draw(3, 6, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: feature_matching_loss(draw(3, 6), g), generated)


def test_does_not_depend_on_order_or_names_but_on_an_offset() -> None:
    labeled, real, generated = draw(4, 5), draw(6, 5, seed=1), draw(6, 5, seed=2)
    terms = discriminator_loss(labeled, LABELS, real, generated)
    names = torch.tensor([2, 0, 4, 1, 3])
    reordered = discriminator_loss(labeled.flip(0), LABELS.flip(0), real.roll(2, 0), generated.flip(0))
    renamed = discriminator_loss(
        labeled[:, names], torch.argsort(names)[LABELS], real[:, names], generated[:, names]
    )
    for other in (reordered, renamed):
        assert float(other.loss) == pytest.approx(float(terms.loss), rel=1e-12)
    raised = discriminator_loss(labeled + 2, LABELS, real + 2, generated + 2)
    assert float(raised.supervised) == pytest.approx(float(terms.supervised), rel=1e-12)
    assert float(raised.real) > float(terms.real), "the logit of the class 'generated' stays 0"
    assert float(raised.generated) > float(terms.generated)
    swapped = discriminator_loss(labeled, LABELS, generated, real)
    assert float(swapped.unsupervised) != pytest.approx(float(terms.unsupervised), rel=1e-3)
    features = draw(6, 7), draw(6, 7, seed=3)
    matching = float(feature_matching_loss(*features))
    assert float(feature_matching_loss(*(f.flip(0, 1) + 3 for f in features))) == pytest.approx(matching)


def test_feature_matching_compares_means_and_teaches_the_generator_alone() -> None:
    real, generated = draw(8, 6).requires_grad_(), draw(5, 6, seed=1).requires_grad_()
    loss = feature_matching_loss(real, generated)
    expected = np.abs(real.detach().numpy().mean(0) - generated.detach().numpy().mean(0)).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert real.grad is None
    assert generated.grad is not None


def test_diversity_is_zero_for_one_image_repeated() -> None:
    assert float(diversity(draw(1, 3, 4, 4).expand(9, -1, -1, -1))) == pytest.approx(0.0, abs=1e-12)
    images = draw(50, 3, 4, 4)
    assert float(diversity(images)) == pytest.approx(
        float(images.std(0, correction=0).square().mean().sqrt())
    )


def gan_case(rank: int, num_ranks: int) -> dict[str, Tensor]:
    features, generated = draw(8, 6), draw(8, 6, seed=1)
    rows = slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks)
    own = generated[rows].clone().requires_grad_()
    loss = feature_matching_loss(features[rows], own)
    loss.backward()
    assert own.grad is not None
    # DistributedDataParallel averages the gradients of the ranks
    return {"loss": loss, "grad": own.grad / num_ranks, "diversity": diversity(draw(8, 3, 2, 2)[rows])}


def test_ranks_together_compute_what_one_computes() -> None:
    one = gan_case(0, 1)
    found = run_ranks(gan_case)
    for name in ("loss", "diversity"):
        assert all(float(rank[name]) == pytest.approx(float(one[name].detach()), rel=1e-12) for rank in found)
    torch.testing.assert_close(torch.cat([rank["grad"] for rank in found]), one["grad"])
