"""Moving averages: their values, the warm-up, the rules for buffers, and that a target is not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.train.ema import MEAN, POWER, Statistics, make_target, set_momentum, update_ema, warmed_up
from tests.engine.average_on_digits import accuracies
from tests.engine.launches import launches


@pytest.mark.parametrize(
    ("statistics", "running_mean", "batches"),
    [("copy", 5.0, 7), ("average", 0.9 * 1.0 + 0.1 * 5.0, 7), ("own", 2.0, 3)],
)
def test_parameters_average_and_buffers_follow_the_named_rule(
    statistics: str, running_mean: float, batches: int
) -> None:
    source = nn.BatchNorm1d(2)
    source.running_mean.fill_(1.0)
    target = make_target(source)
    if statistics == "own":  # as if from the target's own forward passes
        target.running_mean.fill_(2.0)
        target.num_batches_tracked.fill_(3)
    source.weight.data.fill_(3.0)
    source.running_mean.fill_(5.0)
    source.num_batches_tracked.fill_(7)
    update_ema(target, source, 0.9, statistics)
    torch.testing.assert_close(target.weight.data, torch.full((2,), 0.9 * 1.0 + 0.1 * 3.0))
    torch.testing.assert_close(target.running_mean, torch.full((2,), running_mean))
    assert int(target.num_batches_tracked) == batches


@pytest.mark.parametrize(("statistics", "copies"), [("average", 16), ("copy", 48), ("own", 0)])
def test_launches_do_not_grow_with_the_number_of_tensors(statistics: Statistics, copies: int) -> None:
    """Except for copies: of the batch counts, and of all statistics if the rule is to copy them."""

    def count(num_layers: int) -> int:
        source = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(num_layers)))
        target = make_target(source)
        found = launches(lambda: update_ema(target, source, 0.9, statistics))
        return sum(found[name] for name in ("copy_", "lerp_", "_foreach_lerp_"))

    assert count(20) - count(4) == copies


def test_what_is_not_finite_does_not_stay_in_copied_statistics() -> None:
    source = nn.BatchNorm1d(2)
    target = make_target(source)
    target.running_mean.fill_(torch.nan)
    source.running_mean.fill_(-torch.inf)
    update_ema(target, source, 0.9, "copy")
    assert torch.equal(target.running_mean, source.running_mean)


def test_a_warm_up_makes_the_average_the_plain_mean_until_the_decay_is_reached() -> None:
    source = nn.Linear(1, 1, bias=False).double()
    target = make_target(source)
    seen = []
    for step, value in enumerate((4.0, 1.0, 7.0, 8.0)):
        source.weight.data.fill_(value)
        seen.append(value)
        update_ema(target, source, warmed_up(step, 0.999, MEAN))
        assert float(target.weight) == pytest.approx(sum(seen) / len(seen)), "the random start has no part"
    assert [warmed_up(step, 0.75, MEAN) for step in (0, 1, 3, 4, 1000)] == [0.0, 0.5, 0.75, 0.75, 0.75]
    assert warmed_up(998, 0.999, MEAN) < 0.999 == warmed_up(1000, 0.999, MEAN)


def test_a_warm_up_of_a_higher_power_forgets_the_past_of_a_network_that_learns() -> None:
    """The average of 1, 2, 3, ..., n is 10/11 of n with the higher power, but half of n as a plain mean."""
    averages = {MEAN: 0.0, POWER: 0.0}
    for step in range(1000):
        for power, average in averages.items():
            averages[power] = average + (1.0 - warmed_up(step, 0.9999, power)) * (step + 1 - average)
    assert averages[MEAN] == pytest.approx(500.5)
    assert averages[POWER] == pytest.approx(10 / 11 * 1000, rel=1e-3)


def test_the_momentum_of_every_batchnorm_is_set() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(3)), nn.Linear(1, 1))
    set_momentum(network, 0.001)
    assert (network[0].momentum, network[1][0].momentum) == (0.001, 0.001)


def test_on_the_digits_the_average_is_worth_what_the_network_is() -> None:
    """A short run at a decay of 0.999, with the rules that recipes use and the rule that they used before."""
    before, *now = "copied statistics, no warm-up", "averaged statistics, warm-up", "own statistics, warm-up"
    found = {name: values[0] for name, values in accuracies(0, (150,), (before, *now)).items()}
    assert found["raw"] > 0.92
    assert found[before] < 0.5, "what the start weighs without a warm-up"
    for rule in now:
        assert found[rule] > found["raw"] - 0.05, (rule, found)


def test_a_target_is_apart_and_not_trained() -> None:
    source = nn.Linear(2, 2)
    target = make_target(source)
    assert not any(p.requires_grad for p in target.parameters())
    source.weight.data.add_(1.0)
    assert not torch.equal(target.weight, source.weight)
    update_ema(target, source, 0.0)
    assert torch.equal(target.weight, source.weight)


def test_what_makes_no_average_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        update_ema(nn.Linear(1, 1), nn.Linear(1, 1), 1.5)
    with pytest.raises(ValueError, match="expected 2 parameters, got 1"):
        update_ema(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), 0.5)
