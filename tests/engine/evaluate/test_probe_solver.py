"""The probe for many penalties at once: equal to scikit-learn's solution and choice, and read in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.evaluate import probe_solver
from engine.evaluate.linear_probe import fit_linear_probe
from engine.evaluate.probe_solver import fit_probe, fit_probes


def made(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(4, 12, generator=generator)
    generator.manual_seed(seed)
    labels = torch.randint(3, (num,), generator=generator)
    h = 0.6 * centres[labels] + torch.randn(num, 12, generator=generator) * torch.linspace(0.2, 3, 12) + 5
    h[:, 5] = 2.0  # a constant feature carries no information
    return h, labels


def objective(weight: Tensor, bias: Tensor, h: Tensor, labels: Tensor, c: float, std: Tensor) -> float:
    loss = torch.nn.functional.cross_entropy(h @ weight.T + bias, labels, reduction="sum")
    return float(c * loss + 0.5 * (weight * std).square().sum())


def test_each_penalty_comes_to_the_optimum_of_scikit_learn() -> None:
    h, labels = made(600)
    held, held_labels = made(400, 1)
    penalties = (0.01, 1.0)
    std = h.std(0, correction=0)
    for number, c in enumerate(penalties):
        own = fit_probes(h, labels, 3, held, held_labels, penalties[number : number + 1]).probe
        best = fit_linear_probe(h, labels, 3, c)
        reached = objective(own.weight, own.bias, h, labels, c, std)
        assert reached <= 1.005 * objective(best.weight, best.bias, h, labels, c, std)


def test_the_penalty_is_chosen_on_held_out_images() -> None:
    h, labels = made(60)
    held, held_labels = made(500, 1)
    found = fit_probes(h.half(), labels, 4, held.half(), held_labels, (1e-6, 0.05, 100.0), passes=40)
    assert found.inverse_penalty == (1e-6, 0.05, 100.0)[max(range(3), key=found.accuracies.__getitem__)]
    logits = found.probe.logits(held.half())
    assert logits.shape == (500, 4)
    assert torch.isneginf(logits[:, 3]).all()  # a class without training images is never predicted
    share = float((logits.argmax(1) == held_labels).float().mean())
    assert share == pytest.approx(max(found.accuracies), abs=1e-6)


def test_without_held_out_images_every_accuracy_is_0() -> None:
    h, labels = made(60)
    found = fit_probes(h, labels, 3, h[:0], labels[:0], (0.05, 1.0), passes=2)
    assert found.accuracies == (0.0, 0.0)


def test_large_sets_take_the_other_solver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    h, labels = made(900)
    small = fit_probe(h, labels, 3, 1.0)
    monkeypatch.setattr(probe_solver, "MOST_NUMBERS", 100)
    large = fit_probe(h.half(), labels, 3, 1.0)
    same = (small.logits(h).argmax(1) == large.logits(h).argmax(1)).float().mean()
    assert float(same) > 0.95
    assert "C chosen on 90 of the images" in capsys.readouterr().err
