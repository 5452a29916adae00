"""Schedules equal values computed by hand."""

from __future__ import annotations

import math

import pytest

from engine.train.schedule import constant, one_cycle, ramp_up_and_down, step_decay, warmup_cosine


def test_warmup_then_cosine() -> None:
    factor = warmup_cosine(total_steps=110, warmup_steps=10, final_factor=0.001)
    assert [factor(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert factor(60) == pytest.approx(0.5 * (1 + 0.001))
    assert factor(35) == pytest.approx(0.001 + 0.999 * (0.5 + 2**0.5 / 4))
    assert factor(110) == factor(500) == pytest.approx(0.001)
    assert all(factor(s) > factor(s + 1) for s in range(10, 110))


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert warmup_cosine(10, 0)(0) == 1.0


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    factor = warmup_cosine(total_steps=4, warmup_steps=8)
    assert [factor(s) for s in range(4)] == [0.0, 0.125, 0.25, 0.375]


def test_constant() -> None:
    assert constant()(0) == constant()(10**6) == 1.0


def test_step_decay_falls_at_its_milestones() -> None:
    factor = step_decay([5, 8], 0.1)
    assert [factor(s) for s in (0, 4, 5, 7, 8, 100)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_rises_and_falls_in_straight_lines() -> None:
    factor = one_cycle(total_steps=100, peak_at=0.2, first_factor=0.2, final_factor=0.07)
    assert [factor(s) for s in (0, 10, 20)] == pytest.approx([0.2, 0.6, 1.0])
    assert [factor(s) for s in (60, 100, 500)] == pytest.approx([1 - 0.93 / 2, 0.07, 0.07])
    assert one_cycle(1)(0) == pytest.approx(0.2)


def test_ramps_up_and_down() -> None:
    factor = ramp_up_and_down(total_steps=100, up_steps=20, down_steps=50)
    assert factor(0) == pytest.approx(math.exp(-5))
    assert factor(10) == pytest.approx(math.exp(-5 / 4))
    assert factor(20) == factor(50) == 1.0
    assert factor(75) == pytest.approx(math.exp(-12.5 / 4))
    assert factor(100) == pytest.approx(math.exp(-12.5))
    assert [ramp_up_and_down(10, 0, 0)(s) for s in (0, 5, 10)] == [1.0, 1.0, 1.0]
