"""Checks of arguments and configurations; each refusal is one line: what, expected, found and remedy."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from inspect import get_annotations
from typing import Annotated, Any, get_args

from loaders.common.errors import UserError

_LARGEST = 2**62  # seeds and counts are int64, below 2**63, and later phases of a training add to the seed
_LARGEST_FLOAT = 2.0**127  # weights and their learning rates are float32, which overflows at 2**128


@dataclass(frozen=True)
class Range:
    """Range of a number in a configuration, set in its annotation; no number is infinite or below 0."""

    zero: bool = False
    """Whether 0 is allowed."""
    most: float = _LARGEST_FLOAT
    """The largest value allowed."""


Count = Annotated[int, Range()]
Positive = Annotated[float, Range()]
Share = Annotated[float, Range(zero=True, most=1.0)]
PositiveShare = Annotated[float, Range(most=1.0)]


def check_numbers(config: Any) -> None:
    """Refuse numbers outside the ranges that a configuration, or one nested in it, declares.

    A field annotated `int` or `float` may be 0 or more; `Count`, `Positive`, `Share` and `PositiveShare`
    narrow this. A range still holds where a subclass declares the field again.

    Raises:
        UserError: a number out of its range, not finite, or too large (whole ones from 2**62 on, others from
            2**127 on).
    """
    kind: Any = type(config)
    ranges = _ranges(kind)
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if is_dataclass(value):
            check_numbers(value)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, int | float) and not isinstance(part, bool):
                _check_range(name, part, ranges[name])


def check_different(config: Any, *names: str) -> None:
    """Refuse options that are empty or contain the same value twice.

    Raises:
        UserError: there is such an option; the error names the first one.
    """
    for name in names:
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name}: expected one or more different values, found {values}; change them")


def _check_range(name: str, value: float, ranges: set[Range]) -> None:
    if not 0 <= value < (_LARGEST if isinstance(value, int) else _LARGEST_FLOAT):
        kind = "a whole number below 2**62" if isinstance(value, int) else "a finite number below 2**127"
        raise UserError(f"{name}: expected {kind}, at least 0, found {value}; change it")
    if value == 0 and not all(one.zero for one in ranges):
        raise UserError(f"{name}: expected more than 0, found {value}; raise it")
    if any(value > one.most for one in ranges):
        most = min(one.most for one in ranges)
        kind = "a share, at most 1" if most == 1 else f"at most {most:g}"
        raise UserError(f"{name}: expected {kind}, found {value}; lower it")


@cache
def _ranges(kind: type) -> dict[str, set[Range]]:
    """Return the ranges of each field, from the annotations of a class and its base classes."""
    found: dict[str, set[Range]] = {field.name: set() for field in fields(kind)}
    for one in kind.__mro__:
        for name, annotation in get_annotations(one, eval_str=True).items():
            found.setdefault(name, set()).update(_ranges_in(annotation))
    return found


def _ranges_in(annotation: Any) -> Iterator[Range]:
    yield from (one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Range))
    for part in get_args(annotation):
        yield from _ranges_in(part)


def check_whole(what: str, found: Any, least: int, most: int | None = None, remedy: str = "") -> None:
    """Refuse anything but a whole number in [least, most].

    Args:
        found: value of the argument; True and False are refused.
        most: largest value allowed; None for any.
        remedy: what to do instead, if the range does not say it.

    Raises:
        UserError: another type, or out of range.
    """
    is_whole = isinstance(found, int) and not isinstance(found, bool)
    if is_whole and least <= found and (most is None or found <= most):
        return
    wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UserError(
        f"{what}: expected a whole number {wanted}, found {found!r}; {remedy or 'give one in that range'}"
    )


def is_number(value: object, least: float, most: float) -> bool:
    """Tell whether a value is a number in [least, most]; True, False and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def check_number(
    what: str, found: object, least: float, most: float, remedy: str = "give one in that range"
) -> None:
    """Refuse anything but a number in [least, most].

    Args:
        found: value of the argument; True, False and NaN are refused.

    Raises:
        UserError: another type, or out of range.
    """
    if not is_number(found, least, most):
        raise UserError(f"{what}: expected a number in [{least:g}, {most:g}], found {found!r}; {remedy}")


def check_pair(
    what: str, found: object, least: float, most: float, remedy: str = "give two in that range"
) -> None:
    """Refuse anything but a range: two numbers in [least, most], the smaller one first.

    Raises:
        UserError: another type, out of range, or in the wrong order.
    """
    two = isinstance(found, tuple) and len(found) == 2 and all(is_number(end, least, most) for end in found)
    if not (two and found[0] <= found[1]):  # type: ignore[index]
        raise UserError(
            f"{what}: expected two numbers (least, most) in [{least:g}, {most:g}], found {found!r}; {remedy}"
        )


def check_seconds(what: str, found: Any, may_be_zero: bool = False) -> None:
    """Refuse anything but a number of seconds that a thread can wait.

    Raises:
        UserError: another type, out of range, or 0 where it is not allowed.
    """
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if is_number and 0 <= found <= threading.TIMEOUT_MAX and (found > 0 or may_be_zero):
        return
    least = "of at least 0" if may_be_zero else "above 0"
    raise UserError(
        f"{what}: expected a number of seconds {least} and at most {threading.TIMEOUT_MAX:.0f}, found "
        f"{found!r}; give one in that range"
    )


def check_one_of(what: str, found: object, known: Iterable[str]) -> None:
    """Refuse anything but one of some names.

    Raises:
        UserError: another value.
    """
    names = tuple(known)
    if found not in names:
        raise UserError(f"{what}: expected one of {', '.join(names)}, found {found!r}; choose one of them")


def check_flag(what: str, found: object) -> None:
    """Refuse anything but True and False, since "no" would count as True.

    Raises:
        UserError: another value.
    """
    if not isinstance(found, bool):
        raise UserError(f"{what}: expected True or False, found {found!r}; give one of the two")


def check_batch(
    num_rows: int,
    batch_size: int,
    num_ranks: int = 1,
    drop_last: bool = True,
    what: str = "batch size (global)",
) -> None:
    """Refuse a global batch that cannot be cut into equal parts, or can never be filled.

    Args:
        batch_size: global batch size, summed over ranks.
        num_ranks: number of processes that share a batch.
        drop_last: True in training, where a split must fill at least one batch.

    Raises:
        UserError: the batch is not positive, not divisible by the ranks, or too large for the split; or the
            split is empty.
    """
    check_whole(what, batch_size, 1)
    if num_rows < 1:
        raise UserError(f"split: expected at least one row, found {num_rows}; choose another split")
    if batch_size % num_ranks:
        raise UserError(
            f"{what}: expected a multiple of the {num_ranks} ranks, found {batch_size}; "
            f"use {max(1, batch_size // num_ranks) * num_ranks} or {-(-batch_size // num_ranks) * num_ranks}"
        )
    if drop_last and batch_size > num_rows:
        raise UserError(
            f"{what}: expected at most the {num_rows} rows of the split, found {batch_size}; "
            "use a smaller batch or a larger split"
        )
