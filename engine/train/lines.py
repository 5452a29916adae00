"""JSON lines that a process appends while it works: intact after a kill, readable after a crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json

Record = dict[str, Any]


def read_lines(path: Path) -> tuple[list[Record], int]:
    """Read the records of a file, in order; none if there is no file.

    Lines that a kill cut short, or that a crash of the machine damaged, are left out.

    Returns:
        The records, and the number of damaged lines.
    """
    found, num_damaged = _sound_lines(path)
    return [record for _, record in found], num_damaged


class LineWriter:
    """Appends records to a file.

    Args:
        path: the file, made when it does not exist.
        keep: tells which of its present records stay.

    Attributes:
        num_damaged: number of damaged lines that were left out.
    """

    def __init__(self, path: Path, keep: Callable[[Record], bool] = lambda record: True) -> None:
        found, self.num_damaged = _sound_lines(path)
        write_atomic(path, b"".join(line + b"\n" for line, record in found if keep(record)))
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a number that JSON cannot hold becomes null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(plain).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines so far are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _sound_lines(path: Path) -> tuple[list[tuple[bytes, Record]], int]:
    """Return the lines that are JSON objects, raw and parsed, and the number of other lines."""
    if not path.exists():
        return [], 0
    # A line is whole once its newline is written; what follows the last one is a line that a kill cut off.
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    found = [(line, record) for line in lines if (record := _record(line)) is not None]
    return found, len(lines) - len(found)


def _record(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
