"""Shows the help of an option as paragraphs, however its docstring is broken into lines."""

from __future__ import annotations

import functools
import inspect
from typing import Any

_MARK = "joins_help_lines"


def join_help_lines() -> None:
    """Join the lines of options' docstrings for tyro; empty lines still divide paragraphs.

    tyro joins two lines only if the second begins with a letter at the left margin. In an indented
    docstring no line does, so `--help` would break lines where the source does.
    """
    import docstring_parser  # a late import: some processes only need our errors

    parse = docstring_parser.parse_from_object
    if getattr(parse, _MARK, False):  # already replaced by an earlier command of this process
        return

    @functools.wraps(parse)
    def parse_and_join(obj: object, *arguments: Any, **named: Any) -> Any:
        found = parse(obj, *arguments, **named)
        for option in found.params:
            paragraphs = inspect.cleandoc(option.description or "").split("\n\n")
            option.description = "\n\n".join(" ".join(text.split()) for text in paragraphs) or None
        return found

    setattr(parse_and_join, _MARK, True)
    docstring_parser.parse_from_object = parse_and_join
