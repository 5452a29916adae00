"""Files of JSON lines that a running process appends to: they stay readable after a kill or a crash."""

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

    A last line that a kill cut short, and lines that a crash of the machine damaged, are left out.

    Returns:
        The records, and the number of damaged lines (a line that was cut short does not count).
    """
    found, num_damaged = _sound_lines(path)
    return [record for _, record in found], num_damaged


class LineWriter:
    """Appends records to a file.

    Args:
        path: the file, made if it does not exist.
        keep: decides for each record that the file already holds whether it stays.

    Attributes:
        num_damaged: number of damaged lines that were removed from the file.
    """

    def __init__(self, path: Path, keep: Callable[[Record], bool] = lambda record: True) -> None:
        found, self.num_damaged = _sound_lines(path)
        write_atomic(path, b"".join(line + b"\n" for line, record in found if keep(record)))
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; NaN and infinity, which JSON lacks, become null."""
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
    # Every complete line ends with a newline, so text after the last newline is a line that a kill cut short.
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    found = [(line, record) for line in lines if (record := _record(line)) is not None]
    return found, len(lines) - len(found)


def _record(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
