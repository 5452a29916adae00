"""Results of a comparison: one JSON file per finished stage, so that the same command can be continued.

A record contains the identity of its stage (kind, method, seed, labels) and the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.labels.decided import check_same
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.locks import locked

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
    """Return the name of the stage with this record or identity."""
    kind = str(record["kind"])
    words = [kind]
    for name in _IDENTITY[kind]:
        value = record[name]
        text = "-".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)
        words.append({"method": text, "labels_per_class": f"{text}-labels", "seed": f"seed-{text}"}[name])
    return "-".join(words)


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: the file cannot be read, or is not a record.
    """
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"record: {path} cannot be read ({error}); remove it to measure again") from error
    if not isinstance(found, dict):
        raise UserError(f"record: {path} is not a record; remove it to measure again")
    return found


class Held(Exception):
    """Another command holds the lock `path`, and so is measuring what this one was about to measure."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem)
        self.path = path


@contextmanager
def alone_at(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock beside a record, page or run folder, so that no other command writes there meanwhile.

    Args:
        path: the record, page or folder, which need not exist; or its lock.
        say: function that prints a line. If it is given, a lock that another command holds is waited for.

    Raises:
        Held: another command holds the lock, and `say` is not given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, "held"))
        except UserError:
            if say is None:
                raise Held(lock) from None
            say(f"{lock.stem}: another command is at work on it; waiting")
            held.enter_context(locked(lock))
        yield


@dataclass
class Measurements:
    """A folder of measurements: their records, and how their commands are shown there.

    Attributes:
        out: folder of all runs, logs and records.
        num_threads: threads of every command.
        say: function that prints a line.
    """

    pack: Path
    out: Path
    num_threads: int
    say: Callable[[str], None]

    def record_of(self, name: str, work: Callable[[], Record]) -> Record:
        """Return the record `name`: the one on disk if an earlier call left it, else that of `work()`.

        Raises:
            Held: another command is making this record, or a run that it needs.
        """
        path = self.out / "records" / f"{name}.json"
        if not path.is_file():
            with alone_at(path):
                if not path.is_file():  # another command may have finished it just before
                    write_atomic(path, to_json(work()))
        return read(path)

    def records(self) -> list[Record]:
        """Return all records so far, sorted by name."""
        return [read(path) for path in sorted((self.out / "records").glob("*.json"))]

    def shown(self, script: str, arguments: Sequence[str]) -> str:
        """Return a command as records show it, without paths of this machine."""
        words = [word or "''" for word in arguments]
        for path, name in ((self.out, "OUT"), (self.pack, "PACK")):
            words = [word.replace(str(path), name) for word in words]
        return " ".join(["python", script, *(Path(w).name if w.startswith("/") else w for w in words)])


def keep_question(path: Path, asked: Record, later: Record | None = None) -> None:
    """Record the settings that all results in a folder share, or check them if they are recorded.

    Args:
        path: file in the folder.
        asked: the settings, as values that JSON restores unchanged.
        later: more settings; those that the folder's file does not have yet are added to it unchecked.

    Raises:
        UserError: the folder was begun with other settings, or the file is damaged.
    """
    if path.is_file():
        check_same(path, asked, path.parent)
        kept = read(path)
        known = {name: now for name, now in (later or {}).items() if name in kept}
        check_same(path, known, path.parent)
        if len(known) == len(later or {}):
            return
        asked = kept
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json({**asked, **(later or {})}))


def write_lines(path: Path, records: list[Record]) -> None:
    """Write all records of a comparison into one file, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode())


def read_lines(path: Path) -> Iterator[Record]:
    """Yield the records of a file that `write_lines` wrote.

    Raises:
        UserError: there is no such file, or a line is not a record.
    """
    try:
        for line in path.read_text().splitlines():
            record = dict(parse_json(line))
            stage_of(record)
            yield record
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"records: {path} cannot be read ({error!r}); run the comparison first") from error
