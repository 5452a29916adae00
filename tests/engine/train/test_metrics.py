"""The window of metrics between two log lines: a checkpoint stores its mean over all ranks."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from engine.train.metrics import MetricWindow
from tests.engine.ranks import run_ranks

CPU = torch.device("cpu")


def window_of(rank: int, steps: range) -> MetricWindow:
    window = MetricWindow(CPU)
    add(window, rank, steps)
    return window


def add(window: MetricWindow, rank: int, steps: range) -> None:
    for step in steps:
        window.add(step, torch.tensor(0.1 * step + rank), {"share": torch.tensor(1.0 / (step + rank))})


def interrupted(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return the means of a window that was saved and restored half-way, and of one that was not."""
    before = window_of(rank, range(1, 4))
    after = MetricWindow(CPU)
    after.restore(json.loads(json.dumps(before.state())))
    add(after, rank, range(4, 6))
    means = [window.read() for window in (after, window_of(rank, range(1, 6)))]
    return {str(i): torch.tensor(list(each.values()), dtype=torch.float64) for i, each in enumerate(means)}


def test_a_window_goes_on_over_ranks() -> None:
    for result in run_ranks(interrupted, 2):
        torch.testing.assert_close(result["0"], result["1"], rtol=1e-14, atol=0)
    alone = interrupted(0, 1)
    assert torch.equal(alone["0"], alone["1"])


def test_an_empty_window_and_a_metric_that_is_no_number_are_kept() -> None:
    window = MetricWindow(CPU)
    window.restore(json.loads(json.dumps(window.state(), allow_nan=False)))
    window.add(1, torch.tensor(1.0), {"none": torch.tensor(float("nan"))})
    kept = MetricWindow(CPU)
    kept.restore(json.loads(json.dumps(window.state(), allow_nan=False)))
    means = kept.read()
    assert means["loss"] == 1.0
    assert means["none"] != means["none"]


def test_a_metric_is_averaged_over_the_steps_that_have_it() -> None:
    window = MetricWindow(CPU)
    for step, value in enumerate((1.0, 3.0, 8.0), start=1):
        window.add(step, torch.tensor(value), {"odd" if step % 2 else "even": torch.tensor(value)})
    kept = MetricWindow(CPU)
    kept.restore(json.loads(json.dumps(window.state())))
    assert kept.read() == window.read() == {"loss": 4.0, "odd": 4.5, "even": 3.0}


def test_a_window_of_a_checkpoint_of_before_goes_on() -> None:
    window = MetricWindow(CPU)
    window.restore({"count": 2, "sums": {"loss": "3.0", "top1": "1.0"}})
    window.add(3, torch.tensor(3.0), {"top1": torch.tensor(0.5)})
    assert window.read() == {"loss": 2.0, "top1": 0.5}
