"""Reads JSON from any origin: the result is a value of bounded depth or a `ValueError`."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100  # comparing and writing a value recurse once per level and must not exhaust the stack


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from any origin.

    Raises:
        ValueError: the text is not JSON, or nests lists and objects more than `MAX_DEPTH` deep.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"lists and objects more than {MAX_DEPTH} deep") from None
    if _num_brackets(text) > MAX_DEPTH and _is_deep(found):
        raise ValueError(f"lists and objects more than {MAX_DEPTH} deep")
    return found


def _num_brackets(text: str | bytes) -> int:
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _is_deep(found: Any) -> bool:
    level = [found]
    for _ in range(MAX_DEPTH):
        inside = (value.values() if isinstance(value, dict) else value for value in level if _is_nest(value))
        level = [child for children in inside for child in children]
    return any(map(_is_nest, level))


def _is_nest(value: Any) -> bool:
    return isinstance(value, dict | list)
