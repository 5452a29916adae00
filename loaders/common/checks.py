"""Checks of single arguments; each refusal is one line with what, expected, found and remedy."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from loaders.common.errors import UserError


def check_whole(what: str, found: Any, least: int, most: int | None = None, remedy: str = "") -> None:
    """Refuse anything but a whole number in [least, most].

    Args:
        what: name of the argument.
        found: its value; True and False are no numbers.
        least: smallest value allowed.
        most: largest value allowed; None for any.
        remedy: what to do instead, where the range alone does not say it.

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
    """Tell whether a value is a number in [least, most]; True and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def check_number(
    what: str, found: object, least: float, most: float, remedy: str = "give one in that range"
) -> None:
    """Refuse anything but a number in [least, most].

    Args:
        what: name of the argument.
        found: its value; True, False and NaN are no numbers.
        least: smallest value allowed.
        most: largest value allowed.
        remedy: what to do instead.

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
        UserError: another type, out of range, or the wrong way round.
    """
    two = isinstance(found, tuple) and len(found) == 2 and all(is_number(end, least, most) for end in found)
    if not (two and found[0] <= found[1]):  # type: ignore[index]
        raise UserError(
            f"{what}: expected two numbers (least, most) in [{least:g}, {most:g}], found {found!r}; {remedy}"
        )


def check_seconds(what: str, found: Any, may_be_zero: bool = False) -> None:
    """Refuse anything but a finite number of seconds that a thread can wait.

    Args:
        what: name of the argument.
        found: its value.
        may_be_zero: allow 0.

    Raises:
        UserError: another type, not a number, infinite, negative, or 0 where it is not allowed.
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
    """Refuse anything but True and False: "no" would count as True.

    Raises:
        UserError: another value.
    """
    if not isinstance(found, bool):
        raise UserError(f"{what}: expected True or False, found {found!r}; give one of the two")
