"""The ranges that the fields of a configuration declare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from loaders.common.checks import (
    Count,
    Positive,
    PositiveShare,
    Share,
    check_different,
    check_number,
    check_numbers,
    check_pair,
    check_seconds,
    check_whole,
)
from loaders.common.errors import UserError


@dataclass(frozen=True)
class Inside:
    rate: float = 0.0


@dataclass(frozen=True)
class Base:
    size: Count = 2
    sizes: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Options(Base):
    size: int = 3  # redeclared, as recipes do to change a default
    seed: int = 0
    lr: Positive | Literal["auto"] = "auto"
    limit: Count | None = None
    decay: Share = 1.0
    part: PositiveShare = 1.0
    flag: bool = False
    inside: Inside = field(default_factory=Inside)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "^size: expected more than 0, found 0; raise it$"),
        ({"sizes": (4, 0)}, "^sizes: expected more than 0"),
        ({"seed": -1}, "^seed: expected a whole number below 2\\*\\*62, at least 0, found -1; change it$"),
        ({"seed": 2**62}, "^seed: expected a whole number"),
        ({"lr": 0.0}, "^lr: expected more than 0, found 0.0"),
        ({"lr": float("inf")}, "^lr: expected a finite number below 2\\*\\*127"),
        ({"lr": float("nan")}, "^lr: expected a finite number"),
        ({"limit": 0}, "^limit: expected more than 0"),
        ({"decay": 1.01}, "^decay: expected a share, at most 1, found 1.01; lower it$"),
        ({"part": 0.0}, "^part: expected more than 0"),
        ({"part": 2.0}, "^part: expected a share, at most 1"),
        ({"inside": Inside(rate=-1.0)}, "^rate: expected a finite number"),
    ],
)
def test_a_number_out_of_its_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_numbers(Options(**changes))


def test_a_number_in_its_range_is_taken() -> None:
    check_numbers(Options(size=1, sizes=(1, 2), lr=0.1, limit=1, decay=0.0, part=0.5, inside=Inside(0.0)))


def test_values_that_stand_twice_are_refused() -> None:
    check_different(Options(sizes=(1, 2)), "sizes")
    for sizes in ((1, 1), ()):
        with pytest.raises(UserError, match="sizes: expected one or more"):
            check_different(Options(sizes=sizes), "sizes")


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (lambda x: check_whole("n", x, 1, 3), (0, 4, True, 2.0)),
        (lambda x: check_number("n", x, 0.0, 1.0), (-0.1, 1.1, True, "a", float("nan"))),
        (lambda x: check_pair("n", x, 0.0, 1.0), ((1.0, 0.0), (0.0,), [0.0, 1.0], (0.0, 2.0))),
        (lambda x: check_seconds("n", x), (0, -1.0, float("inf"), True)),
    ],
)
def test_a_single_argument_out_of_its_range_is_refused(check: Any, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(UserError, match=r"^n: expected"):
            check(value)
