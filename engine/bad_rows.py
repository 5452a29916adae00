"""Rows of the pack that a run could not read: those of all ranks, once each, in `bad_rows.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.distributed import gather_on_main, on_main, world_size
from engine.lines import LineWriter, read_lines
from loaders.batch import Loader

BAD_ROWS_NAME = "bad_rows.jsonl"


class BadRowRecorder:
    """Writes down the rows that a loader could not read, of whatever rank, and counts them.

    Args:
        out: run folder; rows that it names already stay and count.
        loader: of this rank.
        device: where the ranks compare.

    Attributes:
        count: rows known so far, the same on every rank.
    """

    def __init__(self, out: Path, loader: Loader[Any], device: torch.device | str) -> None:
        self._path, self._loader, self._device = out / BAD_ROWS_NAME, loader, device
        self._told: set[int] = set()
        self._known: set[int] = set()  # on rank 0
        self.count = on_main(self._read)

    def update(self) -> int:
        """Add what the loaders met since the last call; called on every rank. Returns the count."""
        new = {row: reason for row, reason in dict(self._loader.bad_rows).items() if row not in self._told}
        self._told |= new.keys()
        if self._any_rank(bool(new)):
            parts = gather_on_main(new)
            self.count = on_main(lambda: self._add(parts))
        return self.count

    def _read(self) -> int:
        self._known = set(read_bad_rows(self._path.parent))
        return len(self._known)

    def _add(self, parts: list[dict[int, str]]) -> int:
        writer = LineWriter(self._path)
        for part in parts:
            for row, reason in sorted(part.items()):
                if row not in self._known:
                    self._known.add(row)
                    writer.write({"row": row, "reason": reason})
        writer.close()
        return len(self._known)

    def _any_rank(self, here: bool) -> bool:
        if world_size() == 1:
            return here
        flag = torch.tensor(int(here), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


def read_bad_rows(out: Path) -> dict[int, str]:
    """Return the rows that a run could not read and why."""
    records = read_lines(out / BAD_ROWS_NAME)[0]
    return {r["row"]: str(r.get("reason")) for r in records if isinstance(r.get("row"), int)}


def describe_bad_rows(out: Path, count: int) -> str:
    """Return what the last line of a run says of them; nothing where there are none."""
    return f", {count:,} bad rows in {out / BAD_ROWS_NAME}" if count else ""
