"""Parts that both families of a comparison share: folders, commands, and the number of steps in a budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from tools.comparison.cpu_budget import CommandFailed, Cost, calibrate, cpu_seconds
from tools.comparison.methods import SUPERVISED, Command, command
from tools.comparison.results import Measurements, Record, stage_of


@dataclass
class Bench(Measurements):
    """Settings and records of one comparison.

    Attributes:
        budget_s: CPU seconds of a training, without start-up.
        lengths: steps of the two calibration runs.
    """

    budget_s: float
    lengths: tuple[int, int]
    num_train: int
    num_classes: int

    @property
    def common(self) -> tuple[object, ...]:
        """Arguments of every training."""
        quiet = ("--trackers", "--no-progress", "--keep-checkpoints", 1)
        return ("--pack", self.pack, "--num-threads", self.num_threads, *quiet)

    def once(self, identity: Record, work: Callable[[], Record]) -> Record:
        """Return the record of a stage; measure the stage if it has no record yet."""
        return self.record_of(stage_of(identity), lambda: {**identity, **work()})

    def adopt(self, records: Iterable[Record], batch_sizes: Mapping[str, int]) -> None:
        """Add records to the folder; a stage that has a record there keeps it.

        Args:
            records: records of a comparison with the same budget, on a pack of the same size.
            batch_sizes: methods of this family, each with the batch size by which its epochs are counted.

        Raises:
            UserError: see `check`.
        """
        found = list(records)
        for record in found:
            self.check(record, batch_sizes)
        for record in found:
            self.once(record, dict)

    def check(self, record: Record, batch_sizes: Mapping[str, int]) -> None:
        """Refuse a record that must not be in a table with those of this comparison.

        Raises:
            UserError: another budget; or for a record of costs, another family or a pack of another size.
        """
        stage = stage_of(record)
        if record.get("budget_s", self.budget_s) != self.budget_s:
            raise UserError(
                f"records: expected a budget of {self.budget_s:g} s, found {record['budget_s']:g} s in "
                f"{stage}; give the same --budget-s or another --records"
            )
        if record["kind"] != "cost":
            return
        if record["method"] not in batch_sizes:
            raise UserError(f"records: {stage} is of the other family; give --records of this one")
        expected = steps_per_epoch(self.num_train, batch_sizes[record["method"]])
        if record["steps_per_epoch"] != expected:
            raise UserError(
                f"records: expected {expected} steps in an epoch of this pack, found "
                f"{record['steps_per_epoch']} in {stage}; give the pack that they were measured on"
            )

    def run(self, made: Command, log: str) -> float:
        """Run a command; return its CPU seconds."""
        path = self.out / "logs" / f"{log}.log"
        return cpu_seconds(made.script, made.arguments, path)

    def start_up(self) -> float:
        """Return the CPU seconds of a one-step training; a first run, which fills caches, does not count."""

        def measure() -> Record:
            seconds = 0.0
            for _ in range(2):
                out = self.empty("start-up")
                run = (*SUPERVISED, "--labels-per-class", 1, "--steps", 1, "--test-split", "", "--out", out)
                seconds = self.run(command("recipes/supervised.py", *self.common, *run), "start-up")
            return {"cpu_s": seconds}

        return float(self.once({"kind": "start_up"}, measure)["cpu_s"])

    def cost(
        self, name: str, run: Callable[[Path, int], float], steps_per_epoch: int, epochwise: bool = False
    ) -> Cost:
        """Return the CPU time of a method by steps, measured by two short runs unless it has a record.

        Args:
            run: (folder, steps) -> CPU seconds.
            steps_per_epoch: see `Cost`.
            epochwise: see `calibrate`.
        """
        start_up = self.start_up()

        def measure() -> Record:
            def short_run(steps: int) -> float:
                return run(self.empty(f"calibration/{name}"), steps)

            found = calibrate(short_run, self.lengths, start_up, steps_per_epoch, epochwise)
            shutil.rmtree(self.out / "calibration" / name)
            return vars(found)

        record = self.once({"kind": "cost", "method": name}, measure)
        return Cost(**{field: record[field] for field in Cost.__dataclass_fields__})

    def steps(self, cost: Cost) -> int:
        """Return the number of steps that fit into the budget."""
        return cost.steps_within(self.budget_s + self.start_up())

    def empty(self, name: str) -> Path:
        """Return the path for a folder below `out`; the remains of an unfinished run there are removed."""
        folder = self.out / name
        if folder.exists():
            shutil.rmtree(folder)
        return folder


class Failures:
    """Counts and prints failures, so that the comparison can continue after one."""

    def __init__(self, console: Console) -> None:
        self.console, self.count = console, 0

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Count and print a `CommandFailed` or `UserError` inside the block instead of raising it."""
        try:
            yield
        except (CommandFailed, UserError) as error:
            self.count += 1
            self.console.print(f"{name} failed: {error}", highlight=False, markup=False)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch, at least 1."""
    return max(1, num_images // batch_size)


def last_metric(run: Path, name: str) -> float:
    """Return the mean of a metric over the last tenth of its values in a run, at least the last value."""
    values: list[Any] = [line[name] for line in read_metrics(run / "metrics.jsonl") if name in line]
    kept = values[-max(1, len(values) // 10) :]
    return float(sum(kept) / len(kept))
