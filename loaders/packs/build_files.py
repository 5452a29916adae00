"""Reading the JSON files in the build folder of an unfinished pack, from which a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json

T = TypeVar("T")


def read_build_file(path: Path, parse: Callable[[Any], T]) -> T:
    """Read a JSON file of the build folder; `parse` converts its content to the caller's type.

    Raises:
        UserError: the file cannot be read or parsed.
    """
    try:
        return parse(parse_json(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): the packing cannot be resumed; "
            f"remove {path.parent} and the other files of the unfinished pack, then pack again"
        ) from None
