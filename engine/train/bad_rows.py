"""Rows of the pack that could not be read: `bad_rows.jsonl` lists those of all ranks, each row once.

The training loop records the bad rows that it meets. Code that reads images in order, to measure or to
predict, uses `read_in_order`, so that no image is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.train.distributed import gather_on_main, on_main, world_size
from engine.train.lines import LineWriter, read_lines
from loaders.batch import Batch, Loader

BAD_ROWS_NAME = "bad_rows.jsonl"


class BadRowRecorder:
    """Records and counts the rows that the loaders of all ranks could not read.

    Args:
        out: folder of `bad_rows.jsonl`, made when there is something to write. Rows that the file already
            lists stay in it and are counted.
        device: device for the collective by which each rank learns whether any rank has new rows.

    Attributes:
        count: number of rows in the file when it was last read or written, the same on every rank.
    """

    def __init__(self, out: Path, loader: Loader[Any], device: torch.device | str) -> None:
        self._out, self._loader, self._device = out, loader, device
        self._told: set[int] = set()
        self.count = on_main(lambda: len(read_bad_rows(out)))

    def update(self) -> int:
        """Record the bad rows met since the last call, and return `count`; every rank calls this."""
        new = {row: reason for row, reason in dict(self._loader.bad_rows).items() if row not in self._told}
        self._told |= new.keys()
        if self._any_rank(bool(new)):
            parts = gather_on_main(new)
            self.count = on_main(lambda: self._add(parts))
        return self.count

    def _add(self, parts: list[dict[int, str]]) -> int:
        self._out.mkdir(parents=True, exist_ok=True)
        known = set(read_bad_rows(self._out))  # read again: a measurement in between may have added rows
        writer = LineWriter(self._out / BAD_ROWS_NAME)
        for part in parts:
            for row, reason in sorted(part.items()):
                if row not in known:
                    known.add(row)
                    writer.write({"row": row, "reason": reason})
        writer.close()
        return len(known)

    def _any_rank(self, here: bool) -> bool:
        if world_size() == 1:
            return here
        flag = torch.tensor(int(here), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


def read_in_order(
    loader: Loader[Batch], out: Path, device: torch.device | str, start_step: int = 0
) -> Iterator[Batch]:
    """Yield the batches of a loader in evaluation mode, then record the rows that could not be read.

    Every rank has to call this and read to the end, since the ranks then exchange their bad rows.

    Args:
        out: folder of `bad_rows.jsonl`.
        device: see `BadRowRecorder`.
    """
    yield from loader.epoch(0, start_step)
    BadRowRecorder(out, loader, device).update()


def forget_bad_rows(out: Path) -> None:
    """Delete the `bad_rows.jsonl` of an earlier command whose results are replaced, but not a run's own."""
    if not (out / "config.json").exists():
        (out / BAD_ROWS_NAME).unlink(missing_ok=True)


def read_bad_rows(out: Path) -> dict[int, str]:
    """Return the rows that a folder's `bad_rows.jsonl` lists, with the reason for each."""
    records = read_lines(out / BAD_ROWS_NAME)[0]
    return {r["row"]: str(r.get("reason")) for r in records if isinstance(r.get("row"), int)}


def describe_bad_rows(out: Path) -> str:
    """Return the end of a summary, ", N bad rows in FILE", for files in and below a folder; "" if N is 0."""
    files = sorted(out.rglob(BAD_ROWS_NAME))
    count = len({row for file in files for row in read_bad_rows(file.parent)})
    if not count:
        return ""
    where = f"{files[0]}" if len(files) == 1 else f"the {len(files)} {BAD_ROWS_NAME} below {out}"
    return f", {count:,} bad rows in {where}"
