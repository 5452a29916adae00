"""Learning-rate factors as pure functions of the step: a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]
"""Maps a step (counted from 0) to the factor by which each group's peak learning rate is multiplied."""


def warmup_cosine(total_steps: int, warmup_steps: int, final_factor: float = 0.0) -> Schedule:
    """Rise linearly from 0 to 1, then follow half a cosine down to `final_factor`.

    Args:
        total_steps: steps of the whole run; later steps stay at `final_factor`.
        warmup_steps: steps of the rise, 0 for none; with `total_steps` or more, the run ends during the rise.
        final_factor: factor reached at `total_steps`.

    Returns:
        The schedule; with a warm-up, its factor at step 0 is 0, as in the paper's code.

    Source: Zbontar et al. 2021 (Barlow Twins), section 2.2: warm-up of 10 epochs, then cosine decay by a
        factor of 1000.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_factor + (1.0 - final_factor) * cosine

    return factor


def warmed(schedule: Schedule, warmup_steps: int) -> Schedule:
    """Return a schedule multiplied by a linear rise from 0 to 1 over its first `warmup_steps` steps."""
    return lambda step: schedule(step) * min(1.0, step / warmup_steps) if warmup_steps else schedule(step)


def partial_cosine(total_steps: int, cycles: float = 7 / 16) -> Schedule:
    """Follow the first part of a cosine: factor = cos(pi * cycles * step / total_steps).

    Args:
        total_steps: steps of the whole run; later steps stay at the last factor.
        cycles: half-periods of the cosine; with 7/16 the factor ends at 0.195 and never reaches 0.

    Source: Sohn et al. 2020 (FixMatch), section 2.4.
    """
    return lambda step: math.cos(math.pi * cycles * min(1.0, step / max(1, total_steps)))


def step_decay(milestones: Sequence[int], factor: float) -> Schedule:
    """Multiply the learning rate by `factor` at each milestone.

    Args:
        milestones: steps, in any order.
        factor: usually 0.1.
    """
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


def flat_then_linear(total_steps: int, flat_share: float) -> Schedule:
    """Keep the peak for `flat_share` of the run, then fall linearly to 0.

    Source: Salimans et al. 2016, published code: constant for 800 of 1,200 epochs.
    """
    flat_steps = flat_share * total_steps
    return lambda step: min(1.0, max(0.0, (total_steps - step) / max(1.0, total_steps - flat_steps)))


def one_cycle(
    total_steps: int, peak_at: float = 0.23, first_factor: float = 0.2, final_factor: float = 0.07
) -> Schedule:
    """Rise linearly to the peak, then fall linearly: a triangle.

    Args:
        total_steps: steps of the whole run; later steps stay at `final_factor`.
        peak_at: share of the run after which the peak is reached.
        first_factor: factor of step 0.
        final_factor: factor reached at `total_steps`.

    Source: Smith and Topin 2018, "Super-Convergence" (arXiv 1708.07120); the shares and factors are those in
        the published code of Jordan 2024 (arXiv 2404.00498).
    """
    rise = peak_at * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return first_factor + (1.0 - first_factor) * step / rise
        progress = min(1.0, (step - rise) / max(1.0, total_steps - rise))
        return 1.0 + (final_factor - 1.0) * progress

    return factor


def constant() -> Schedule:
    """Keep the peak learning rate."""
    return lambda step: 1.0


def ramp_up_and_down(total_steps: int, up_steps: int, down_steps: int) -> Schedule:
    """Rise as exp(-5 (1 - t)^2) over the first steps, and fall as exp(-12.5 t^2) over the last.

    Args:
        total_steps: steps of the whole run.
        up_steps: steps of the rise, over which t goes from 0 to 1; 0 for none.
        down_steps: steps of the fall, over which t goes from 0 to 1; 0 for none.

    Source: Laine and Aila 2017 (temporal ensembling), appendix A.
    """

    def factor(step: int) -> float:
        up = min(1.0, step / up_steps) if up_steps else 1.0
        down = max(0.0, 1.0 - (total_steps - step) / down_steps) if down_steps else 0.0
        return math.exp(-5.0 * (1.0 - up) ** 2 - 12.5 * down**2)

    return factor
