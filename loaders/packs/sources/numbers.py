"""Labels that are numbers keep them: class 7 of the source is class 7 of the pack."""

from __future__ import annotations

import re
from typing import Any

from loaders.errors import UserError

MAX_CLASSES = 1 << 20
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")


def number_text(value: Any) -> str:
    """Return 3 for 3.0 and "3.0", which is what tables with empty cells make of 3; "" for an empty cell."""
    if value is None or value != value:  # NaN, in such tables an empty cell
        return ""
    text = str(value)
    whole = _WHOLE_FLOAT.fullmatch(text)
    return whole[1] if whole else text


class NumberedClasses:
    """Sees every label of a source while it is listed, and then knows whether all of them are numbers."""

    def __init__(self, names: tuple[str, ...] | None = None) -> None:
        """Begin; `names` are the names of the numbers where the source has them."""
        self._names = names
        self._highest = -1
        self._are_numbers = True

    def label(self, value: Any) -> str | None:
        """Return the class of a label; None for -1 and an empty cell, which stand for no label.

        Raises:
            UserError: a number out of range.
        """
        text = number_text(value)
        if not text:
            return None
        if not _WHOLE_NUMBER.fullmatch(text):
            self._are_numbers = False
            return text
        number = int(text)
        limit = MAX_CLASSES if self._names is None else len(self._names)
        if not -1 <= number < limit:
            raise UserError(
                f"label {number} is out of range: expected 0 to {limit - 1}, or -1 for no label; correct it"
            )
        if number == -1:
            return None
        self._highest = max(self._highest, number)
        return text if self._names is None else self._names[number]

    def names(self) -> tuple[str, ...] | None:
        """Return the names of the classes by number; None where labels are names, or there are none."""
        if self._names is not None:
            return self._names
        if not self._are_numbers or self._highest < 0:
            return None
        return tuple(str(number) for number in range(self._highest + 1))
