"""Results of a comparison: one JSON file per finished stage, so that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.files import to_json, write_atomic
from loaders.errors import UserError

Record = dict[str, Any]


def once(path: Path, work: Callable[[], Record]) -> Record:
    """Return the record of a stage: an earlier start's, or what `work` measures now."""
    if path.is_file():
        return read(path)
    record = work()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(record))
    return read(path)


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: the file is not one.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"record: {path} cannot be read ({error}); remove it to measure again") from error
    if not isinstance(found, dict):
        raise UserError(f"record: {path} is no record; remove it to measure again")
    return found


def write_lines(path: Path, records: list[Record]) -> None:
    """Write all records of a comparison into one file, a JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode())


def read_lines(path: Path) -> Iterator[Record]:
    """Yield the records of a file that `write_lines` wrote.

    Raises:
        UserError: no such file, or not one of ours.
    """
    try:
        for line in path.read_text().splitlines():
            yield dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"records: {path} cannot be read ({error}); run the comparison first") from error
