"""The linear probe equals scikit-learn's logistic regression on standardised features, as one linear map."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.evaluate.linear_probe import fit_linear_probe
from loaders.common.errors import UserError


def clouds(num: int, classes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (num,), generator=generator)]
    h = torch.eye(6, 10)[labels] + 0.7 * torch.randn(num, 10, generator=generator)
    return h * torch.logspace(-2, 2, 10) + 3.0, labels


@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (1, 4)])
def test_equals_scikit_learn(classes: tuple[int, ...]) -> None:
    h, labels = clouds(400, classes)
    logits = fit_linear_probe(h, labels, num_classes=6).logits(h)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-8, max_iter=5000))
    reference.fit(h.double().numpy(), labels.numpy())
    expected = reference.predict_proba(h.double().numpy())
    np.testing.assert_allclose(logits.softmax(1)[:, list(classes)].numpy(), expected, atol=0.01)


def test_absent_classes_are_never_predicted() -> None:
    h, labels = clouds(100, (1, 4))
    logits = fit_linear_probe(h, labels, num_classes=6).logits(h)
    assert set(logits.argmax(1).tolist()) == {1, 4}
    assert logits.softmax(1)[:, [0, 2, 3, 5]].max() == 0


def test_two_fits_are_identical_and_constant_features_are_harmless() -> None:
    h, labels = clouds(200, (0, 1, 2))
    h = torch.cat([h, torch.full((200, 1), 5.0)], dim=1)
    first, second = fit_linear_probe(h, labels, 3), fit_linear_probe(h, labels, 3)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert first.logits(h).isfinite().all()
    assert first.converged


def test_a_stopped_solver_says_so() -> None:
    h, labels = clouds(400, (0, 1, 2, 3))
    assert not fit_linear_probe(h, labels, 4, inverse_penalty=1e6, max_iterations=1).converged


def test_one_class_is_refused() -> None:
    h, _ = clouds(10, (0, 1))
    with pytest.raises(UserError, match="at least 2 classes, found 1"):
        fit_linear_probe(h, torch.zeros(10, dtype=torch.int64), 2)
