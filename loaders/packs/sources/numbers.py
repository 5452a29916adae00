"""Numbers as labels, which a pack keeps: class 7 of the source is class 7 of the pack."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from typing import Any

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.sources.item import Source, printable

MAX_CLASSES = 1 << 20
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
_FRACTION = re.compile(r"[-+]?[0-9]*\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?inf(?:inity)?", re.IGNORECASE)
_MARKS = ("|", ";", ",")


def number_text(value: Any) -> str:
    """Return a label as text; "" for an empty cell.

    Tables with empty cells store 3 as 3.0 or "3.0"; both become "3".
    """
    if value is None or value != value:  # NaN, which stands for an empty cell in such tables
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    whole = _WHOLE_FLOAT.fullmatch(text)
    return whole[1] if whole else text


def class_text(name: str) -> str:
    """Return the name of a class in the form that packs store: printable, and in Unicode's NFC.

    In names of folders, macOS writes "e" and an accent where other systems write one letter; NFC makes them
    equal.
    """
    return printable(unicodedata.normalize("NFC", name))


def list_text(names: list[str]) -> str:
    """Return several labels as one JSON text, for the label field of a listing."""
    return json.dumps(names, ensure_ascii=False)


def names_of(text: str) -> list[str]:
    """Return the names in a text that `list_text` wrote."""
    return [str(name) for name in parse_json(text)]


def label_list(text: str) -> list[Any]:
    """Return the labels in a cell.

    The cell may hold a JSON list, labels separated by "|", ";" or ",", numbers separated by blanks, or a
    single label.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            found = parse_json(text.replace("'", '"'))
        except ValueError:
            found = [part.strip(" '\"") for part in text.strip("[]").split(",")]
        return list(found) if isinstance(found, list) else [text]
    mark = next((mark for mark in _MARKS if mark in text), None)
    if mark is not None:
        return [part.strip() for part in text.split(mark) if part.strip()]
    words = text.split()
    return words if all(map(_WHOLE_NUMBER.fullmatch, words)) else [text]


class NumberedClasses:
    """Turns the labels of a source into classes one by one, and names the classes if labels are numbers."""

    def __init__(self, names: tuple[str, ...] | None = None, multi_label: bool = False) -> None:
        """Start with no labels.

        Args:
            names: a name for each number, if the source has them; equal names get their number appended.
            multi_label: whether a label is a list of labels.
        """
        if names is not None:
            texts = [class_text(name) for name in names]
            counts = Counter(texts)
            names = tuple(f"{t} ({n})" if counts[t] > 1 else t for n, t in enumerate(texts))
        self._names, self._multi_label = names, multi_label
        self._highest = -1
        self._are_numbers = True
        self._num_empty, self._first_empty = 0, ""

    def label(self, value: Any, where: str) -> str | None:
        """Return the class of a label; None for a missing value and, without `multi_label`, for -1: no label.

        Args:
            value: number or text; with `multi_label` a list of these, or a text that holds a list.
            where: file and row or sample, for messages.

        Returns:
            Name or number of the class, as text; with `multi_label` a JSON list of these, without -1.

        Raises:
            UserError: a number out of range, a fraction, an empty text, or several labels where one is
                expected.
        """
        if value is None or value != value:
            self._first_empty = self._first_empty or where
            self._num_empty += 1
            return None
        text = "" if isinstance(value, list) else number_text(value).strip()
        if self._multi_label:
            values = value if isinstance(value, list) else label_list(text)
            labels = [self._one(one, number_text(one).strip(), where) for one in values]
            known = dict.fromkeys(label for label in labels if label is not None)
            return list_text([*known])
        return self._one(value, text, where)

    def _one(self, value: Any, text: str, where: str) -> str | None:
        if isinstance(value, list | dict | tuple) or (text.startswith("[") and text.endswith("]")):
            raise UserError(
                f"{where}: the label is {str(value)[:60]!r}, expected one number or name; choose a column "
                f"with --label-column, or keep several labels per image with --multi-label"
            )
        if not text:
            raise UserError(
                f"{where}: the label is an empty text; leave the cell out, or give -1 for no label"
            )
        if not _WHOLE_NUMBER.fullmatch(text):
            if _FRACTION.fullmatch(text):
                raise UserError(
                    f"{where}: the label {text} is a fraction, expected a whole number or a name; choose a "
                    f"column with --label-column"
                )
            self._are_numbers = False
            return class_text(text)
        number = int(text)
        limit = MAX_CLASSES if self._names is None else len(self._names)
        if not -1 <= number < limit:
            raise UserError(
                f"{where}: label {number} is out of range: expected 0 to {limit - 1}, or -1 for no label; "
                f"correct it"
            )
        if number == -1:
            return None
        self._highest = max(self._highest, number)
        return text if self._names is None else self._names[number]

    def names(self) -> tuple[str, ...] | None:
        """Return the class of each number, as `NumberLabels.class_names` does."""
        if self._names is not None:
            return self._names
        if not self._are_numbers or self._highest < 0:
            return None
        return tuple(str(number) for number in range(self._highest + 1))

    def notes(self) -> list[str]:
        """Return the notes on the labels for the summary."""
        if not self._num_empty:
            return []
        return [f"{self._num_empty:,} empty labels, the first at {self._first_empty}: packed without a label"]


class NumberLabels(Source):
    """Base of sources whose labels may be numbers."""

    _classes: NumberedClasses

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class of each number: the source's name for it, or else "0", "1", ...

        None if the source names no numbers and a label is a name or all labels are missing.
        """
        return self._classes.names()
