"""Results of a comparison: one JSON file per finished stage, so that the same command goes on.

A record has the identity of its stage (kind, method, seed, labels) and the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.labels.decided import check_same
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json

Record = dict[str, Any]
_IDENTITY = {
    "start_up": (),
    "cost": ("method",),
    "pretraining": ("method", "seed"),
    "frozen": ("method", "seed"),
    "fine_tuned": ("method", "labels_per_class", "seed"),
    "trained": ("method", "labels_per_class", "seed"),
}


def stage_of(record: Record) -> str:
    """Return the name of the stage that a record, or its identity alone, belongs to."""
    kind = str(record["kind"])
    words = [kind]
    for name in _IDENTITY[kind]:
        value = record[name]
        text = "-".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)
        words.append({"method": text, "labels_per_class": f"{text}-labels", "seed": f"seed-{text}"}[name])
    return "-".join(words)


def once(folder: Path, identity: Record, work: Callable[[], Record]) -> Record:
    """Return the record of a stage: one from an earlier start, or the result of `work` now.

    Args:
        folder: folder of all records.
        identity: identity of the stage.
        work: returns the result.
    """
    path = folder / f"{stage_of(identity)}.json"
    if not path.is_file():
        record = {**identity, **work()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(record))
    return read(path)


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: the file is no record.
    """
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"record: {path} cannot be read ({error}); remove it to measure again") from error
    if not isinstance(found, dict):
        raise UserError(f"record: {path} is no record; remove it to measure again")
    return found


def keep_question(path: Path, asked: Record, later: Record | None = None) -> None:
    """Write down what a folder of results is about, or refuse to go on with another question.

    Args:
        path: file in the folder.
        asked: what all its results have in common, as JSON gives it back.
        later: likewise, but a folder that was begun without it goes on.

    Raises:
        UserError: the folder was begun with something else, or the file is damaged.
    """
    if path.is_file():
        check_same(path, asked, path.parent)
        kept = read(path)
        known = {name: now for name, now in (later or {}).items() if name in kept}
        check_same(path, known, path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json({**asked, **(later or {})}))


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
            record = dict(parse_json(line))
            stage_of(record)
            yield record
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"records: {path} cannot be read ({error!r}); run the comparison first") from error
