"""Measure the rows of a table: choose a setting, then train within the budget; finished work is kept.

The folder of a table has `records/` (one file per finished measurement), `runs/` (run folders, in which a
command that is given again continues) and `logs/`. A lock lies beside each record and each run folder.
"""

from __future__ import annotations

import shutil
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json
from tools.comparison.cpu_budget import CommandFailed, CommandStopped, Cost, calibrate, cpu_seconds
from tools.comparison.results import Held, Measurements, Record, alone_at
from tools.reproduction.plan import LINES, ResultTable, Row, Stage

TOLERANCE = 1.05
"""A row with a budget is ended by the system, and has no accuracy, if it takes this multiple of its budget.
The multiple is above 1 because the speed of a shared machine varies after the calibration."""

PLANNED = 0.95
"""A training gets as many steps as should take this part of its share of the budget. It is below 1 because
forecasts on a shared machine are off by a few per cent."""

CALIBRATED = 0.02
"""The longer run of a calibration is extended to this part of a stage's budget if it would be much shorter:
from a few steps of a fast method, the forecast was 8 % less than the whole run took."""

RunScript = Callable[..., float]
"""(script, arguments, log, limit_s) -> core seconds, such as `cpu_seconds`."""


class Stopped(Exception):
    """Measuring was interrupted; the message names the measurement. The same command continues it."""


@dataclass
class Bench(Measurements):
    """The measuring of one table; `run_script` runs one of the project's scripts."""

    table: ResultTable
    run_script: RunScript = field(default=cpu_seconds)


@dataclass(frozen=True)
class Given:
    """The labels, seed and setting with which a row is trained.

    Attributes:
        per_class: labels of each class; 0 for all.
        seed: seed of labels, weights, order and views.
        setting: options of the last stage.
        trial: whether the setting is only tried; a quarter of the labels is then held out to validate it.
    """

    per_class: int
    seed: int
    setting: tuple[object, ...] = ()
    trial: bool = False


@dataclass(frozen=True)
class Trained:
    """A trained row: core seconds including earlier, interrupted calls; steps and command of each stage."""

    cpu_s: float
    steps: tuple[int, ...]
    commands: tuple[str, ...]
    over_budget: bool = False


def arguments_of(
    bench: Bench, row: Row, number: int, given: Given, steps: int, folders: Sequence[Path]
) -> list[str]:
    """Return the arguments of stage `number` of a row; `folders` are the run folders of all its stages."""
    stage = row.stages[number]
    words: list[object] = ["--pack", bench.pack, "--out", folders[number]]
    words += ["--num-threads", bench.num_threads]
    if stage.script.startswith("recipes/"):
        words.append("--no-progress")
    if stage.script.startswith("recipes/") and stage.script != "recipes/pipeline.py":
        words += ["--resume", "--trackers", "--keep-checkpoints", 1]
    if stage.script != "tools/few_labels.py":
        words += ["--seed", given.seed]
    if stage.labels and stage.script == "recipes/pipeline.py":
        words += ["--labels-per-class", given.per_class]
    elif stage.labels:
        words += ["--test-split", "", "--label-seed", given.seed]
        words += ["--validation-share", 0.25 if given.trial else 0]
        words += ["--labels-per-class", given.per_class] if given.per_class else []
    placed = {f"{{{other.name}}}": folder for other, folder in zip(row.stages, folders, strict=True)}
    words += [placed.get(word, word) if isinstance(word, str) else word for word in stage.options]
    for option, multiple in stage.lengths:
        words += [option, max(1, round(multiple * steps))]
    return [str(word) for word in (*words, *(given.setting if stage is row.stages[-1] else ()))]


def costs_of(bench: Bench, row: Row) -> list[Cost | None]:
    """Return the cost of each stage's steps, measured once by short runs; None for a fixed length."""
    given = Given(max(bench.table.columns_of(row)), 0, row.settings[0])
    folder = bench.out / "calibration" / row.name
    folders = [folder / stage.name for stage in row.stages]

    def measure() -> Record:
        found: list[Any] = []
        for number, stage in enumerate(row.stages):

            def run(steps: int, number: int = number) -> float:
                shutil.rmtree(folders[number], ignore_errors=True)
                arguments = arguments_of(bench, row, number, given, steps, folders)
                return _run(bench, row.stages[number], arguments, f"calibration-{row.name}")

            if not stage.lengths:
                if stage is not row.stages[-1]:  # a later stage may start from its result
                    run(1)
                found.append(None)
                continue
            if stage.lengths == Stage.lengths:
                run(1)  # compiles what this stage alone uses; a pipeline would need a whole epoch for it
            found.append(vars(_calibrated(run, bench.table, stage)))
        shutil.rmtree(folder, ignore_errors=True)
        return {"kind": "cost", "row": row.name, "stages": found}

    record = bench.record_of(f"cost-{row.name}", measure)
    return [None if cost is None else Cost(**cost) for cost in record["stages"]]


def _calibrated(run: Callable[[int], float], table: ResultTable, stage: Stage) -> Cost:
    short, long = table.calibration
    cost = calibrate(run, (short, long), 0.0, 1, False)
    longer = cost.steps_within(CALIBRATED * stage.share * table.budget_s)
    return calibrate(run, (short, longer), 0.0, 1, False) if longer > 2 * long else cost


def _run(bench: Bench, stage: Stage, arguments: list[str], log: str, limit_s: float | None = None) -> float:
    return bench.run_script(stage.script, arguments, bench.out / "logs" / f"{log}.log", limit_s)


def train(bench: Bench, row: Row, given: Given, name: str, budget_s: float) -> Trained:
    """Train all stages of a row within a budget, or continue the training that an earlier call began.

    Trials, and the row that sets the budget, are not ended at the budget. A trial runs all steps that the
    forecast allows: it also validates, which the forecast leaves out, and all settings of a row need the same
    number of steps. Pre-training without labels runs once per seed, shared by all numbers of labels or by all
    trials; the seconds that it took count in each of them.

    Raises:
        Stopped: the training was interrupted.
        Held: another command is at work in one of the run folders.
        CommandFailed: a command failed for another reason than its budget.
    """
    costs, folders = costs_of(bench, row), _folders(bench, row, given, name)
    spent = [_Spent(folder.with_name(f"{folder.name}-spent.json")) for folder in folders]
    steps, commands = [], []
    for number, (stage, cost) in enumerate(zip(row.stages, costs, strict=True)):
        steps.append(0 if cost is None else cost.steps_within(PLANNED * stage.share * budget_s))
        arguments = arguments_of(bench, row, number, given, steps[-1], folders)
        commands.append(bench.shown(stage.script, arguments))
        with alone_at(folders[number]):
            spent[number].read()  # another command may have pre-trained meanwhile
            if spent[number].done:
                continue
            if not _runs_once(stage):  # such a stage cannot resume
                shutil.rmtree(folders[number], ignore_errors=True)
            free = given.trial or row.name == bench.table.budget_of
            left = None if free else TOLERANCE * budget_s - sum(one.seconds for one in spent)
            try:
                if left is not None and left <= 0:
                    raise CommandFailed("no budget left", 0.0, -signal.SIGXCPU)
                spent[number].add(_run(bench, stage, arguments, name, left), done=True)
            except CommandStopped as stopped:
                spent[number].add(stopped.seconds, done=False)
                raise Stopped(name) from None
            except CommandFailed as error:
                spent[number].add(error.seconds, done=False)
                if error.code != -signal.SIGXCPU:
                    raise
                break
    seconds = sum(one.seconds for one in spent)
    return Trained(seconds, tuple(steps), tuple(commands), over_budget=not all(one.done for one in spent))


def _folders(bench: Bench, row: Row, given: Given, name: str) -> list[Path]:
    """Return the run folder of each stage; `train` says which runs share one for pre-training."""
    shared = f"{'trial' if given.trial else 'row'}-{row.name}-any-labels-seed-{given.seed}"
    runs = bench.out / "runs"
    alone = [stage.labels or stage is row.stages[-1] for stage in row.stages]
    return [runs / (name if own else shared) / s.name for s, own in zip(row.stages, alone, strict=True)]


def _runs_once(stage: Stage) -> bool:
    return stage.script.startswith("recipes/") or stage.script == "tools/few_labels.py"


class _Spent:
    """Core seconds that a stage has taken over all calls, kept in a file beside its run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()

    def read(self) -> None:
        found: dict[str, Any] = parse_json(self._path.read_bytes()) if self._path.is_file() else {}
        self.seconds = float(found.get("cpu_s", 0.0))
        self.done = bool(found.get("done"))

    def add(self, seconds: float, done: bool) -> None:
        self.seconds, self.done = self.seconds + seconds, done
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, to_json({"cpu_s": self.seconds, "done": done}))


def choose_setting(bench: Bench, row: Row) -> int:
    """Return the index of the row's setting with the best validation accuracy; of equals, the first."""
    if len(row.settings) == 1:
        return 0
    table, tried = bench.table, []
    for number, setting in enumerate(row.settings):
        name = f"trial-{row.name}-{number}"

        def measure(setting: tuple[object, ...] = setting, name: str = name) -> Record:
            found = train(bench, row, Given(table.chosen_at, 0, setting, trial=True), name, table.trial_s)
            top1 = last_validation(bench.out / "runs" / name / row.stages[-1].name)
            facts = {"kind": "trial", "row": row.name, "setting": [str(s) for s in setting]}
            return {**facts, "validation_top1": top1, "cpu_s": found.cpu_s, "steps": list(found.steps)}

        record = bench.record_of(name, measure)
        bench.say(f"{name}: {' '.join(record['setting'])}: validation {record['validation_top1']:.1%}")
        tried.append(float(record["validation_top1"]))
    return tried.index(max(tried))


def last_validation(run: Path) -> float:
    """Return the last validation accuracy of a run; if the run has several phases, that of the last phase.

    Raises:
        UserError: no validation accuracy was measured in the run.
    """
    files = sorted(run.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    found = [line["validation_top1"] for f in files for line in read_metrics(f) if "validation_top1" in line]
    if not found:
        raise UserError(f"validation: expected an accuracy in {run}, found none; see its log")
    return float(found[-1])


def measure_row(
    bench: Bench, row: Row, labels_per_class: Sequence[int] = (), seeds: Sequence[int] = ()
) -> Iterator[Record]:
    """Yield the records of a row, for the given numbers of labels and seeds; by default for all.

    A row whose `results` are "features" has a single record, which covers all of them.

    Raises:
        Held: another command is at work on the row. All records that it does not hold up have been yielded.
    """
    table = bench.table
    held: list[Held] = []
    chosen = choose_setting(bench, row)
    if row.results == "features":
        yield bench.record_of(f"row-{row.name}", lambda: _features(bench, row))
        return
    for per_class in table.columns_of(row):
        for seed in table.seeds[per_class]:
            if per_class not in (labels_per_class or (per_class,)) or seed not in (seeds or (seed,)):
                continue
            name = f"row-{row.name}-{per_class or 'all'}-labels-seed-{seed}"
            given = Given(per_class, seed, row.settings[chosen])
            try:
                record = bench.record_of(name, lambda g=given, n=name: _measure(bench, row, g, n))  # type: ignore[misc]
            except Held as error:
                held.append(error)
                continue
            bench.say(f"{name}: {_told(record)}, {record['cpu_s']:.0f} core s")
            yield record
    if held:
        raise held[0]


def measure_rows(
    bench: Bench, rows: Sequence[Row], labels_per_class: Sequence[int], seeds: Sequence[int]
) -> Iterator[Record]:
    """Yield the records of rows as `measure_row` does; a row held up by another command is repeated later."""
    while rows:
        held: list[tuple[Row, Path]] = []
        for row in rows:
            try:
                take_budget(bench, row)
                yield from measure_row(bench, row, labels_per_class, seeds)
            except Held as error:
                held.append((row, error.path))
        if held:
            with alone_at(held[0][1], bench.say):
                pass
        rows = [row for row, _ in held]


def take_budget(bench: Bench, row: Row) -> None:
    """Make the mean core seconds of the row that `budget_of` names, once it is measured, the table's budget.

    Raises:
        Held: another command is measuring that row, and `row` is another one.
    """
    name = bench.table.budget_of
    if name and row.name != name:
        for lock in sorted((bench.out / "records").glob(f"row-{name}-*.lock")):
            with alone_at(lock):
                pass
    seconds = [r["cpu_s"] for r in bench.records() if r["kind"] == "row" and r["row"] == name]
    if seconds:
        bench.table = replace(bench.table, budget_s=statistics.fmean(seconds))


def _told(record: Record) -> str:
    if record["over_budget"]:
        return "over its budget, no accuracy"
    return ", ".join(f"{result['title']} {result['top1']:.1%}" for result in record["results"])


def _facts(bench: Bench, row: Row, found: Trained) -> Record:
    return {
        "kind": "row",
        "row": row.name,
        "reads_unlabeled": row.reads_unlabeled,
        "budget_s": bench.table.budget_s,
        "settings_tried": len(row.settings) if len(row.settings) > 1 else 0,
        "cpu_s": found.cpu_s,
        "steps": list(found.steps),
        "over_budget": found.over_budget,
        "commands": list(found.commands),
    }


def _measure(bench: Bench, row: Row, given: Given, name: str) -> Record:
    found = train(bench, row, given, name, bench.table.budget_s)
    run = bench.out / "runs" / name / row.stages[-1].name
    if row.results == "peer":  # a peer tests after each epoch, which is not training
        found = replace(found, cpu_s=parse_json((run / "peer.json").read_bytes())["train_cpu_s"])
    identity = {"labels_per_class": given.per_class, "seed": given.seed}
    record = {**_facts(bench, row, found), **identity, "setting": [str(s) for s in given.setting]}
    return {**record, "results": [] if found.over_budget else _results(bench, row, run, name)}


def _results(bench: Bench, row: Row, run: Path, name: str) -> list[Record]:
    """Return the accuracies on the test split; a classifier is tested here, once."""
    if row.results == "ablation":
        stages = parse_json((run / "ablation.json").read_bytes())["stages"]
        return [{"title": stage["stage"], "top1": stage["top1"]} for stage in stages]
    if row.results == "peer":
        found = parse_json((run / "peer.json").read_bytes())
        return _lines(row, found["top1"], found["top1_one_view"])
    tested = bench.out / "runs" / name / "tested"
    words = ("--run", run, "--pack", bench.pack, "--out", tested, "--no-predictions", *bench.table.testing)
    arguments = [str(word) for word in (*words, "--num-threads", bench.num_threads)]
    bench.run_script("recipes/evaluate.py", arguments, bench.out / "logs" / f"{name}.log", None)
    found = parse_json((tested / "classification.json").read_bytes())
    top1 = found["mean_of_views"]["top1"]
    if len(found["views"]) == 1:
        return _lines(row, top1)
    return _lines(row, top1, next(iter(found["views"].values()))["top1"])


def _lines(row: Row, *shares: float) -> list[Record]:
    return [{"title": row.title + more, "top1": top1} for more, top1 in zip(LINES, shares, strict=False)]


def _features(bench: Bench, row: Row) -> Record:
    given = Given(0, 0)
    found = train(bench, row, given, row.name, bench.table.budget_s)
    if found.over_budget:
        return {**_facts(bench, row, found), "results": []}
    run = bench.out / "runs" / row.name / row.stages[-1].name
    measured = parse_json((run / "few_labels.json").read_bytes())["results"]
    kept = ("method", "labels_per_class", "seed", "top1")
    return {**_facts(bench, row, found), "results": [{name: r[name] for name in kept} for r in measured]}
