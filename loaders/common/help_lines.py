"""One paragraph of help per option, however many lines its docstring takes."""

from __future__ import annotations

import functools
import inspect
from typing import Any

_MARK = "joins_help_lines"


def join_help_lines() -> None:
    """Give tyro the docstrings of options with their lines joined; empty lines still divide paragraphs.

    tyro joins lines by itself only where the next one begins with a letter at the margin, which none does in
    the indented docstring of a field: `--help` would break where the source does.
    """
    import docstring_parser  # not every process that meets an error of ours has a command line

    parse = docstring_parser.parse_from_object
    if getattr(parse, _MARK, False):  # a process may run several commands
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
