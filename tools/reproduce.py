r"""Measure a table of docs/results.md, or continue measuring it, and write its page and its records.

Example:
    python tools/reproduce.py budget --pack packs/cifar10 --splits train=cifar10.tar#cifar10/train \
        test=cifar10.tar#cifar10/test --out runs/results

`speed`: a supervised run on all labels, compared with airbench94 if --peer names its file. `budget`: methods
with few labels, each row within the same core seconds, pre-training included. `ablation`: the stages of
recipes/pipeline.py. `start`: frozen features of --init. The rows are in tools/reproduction/tables.py.

The command can be stopped at any time (Ctrl-C, SIGTERM). The same command then reads finished measurements
from OUT/TABLE-SCALE, and continues the training of a recipe from its last checkpoint. Several commands may
measure one table at once: each leaves to the others what they have begun, and waits for it at the end. A row
that takes more than 1.05 times its budget is ended and has no accuracy; airbench94, whose time is the budget
of `speed`, has no limit. Settings are chosen on held-out labels of the split `train`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file, check_folder
from loaders.common.program import Positional, check_command_line, command_line
from tools.reproduction.tables import ScaleName, TableName


@dataclass(frozen=True)
class Config:
    """Measure one table at one scale."""

    table: Positional[TableName]
    """`speed`, `budget`, `ablation` or `start`, see above."""
    out: Path = Path("runs/results")
    """Folder of all tables; each table has its own folder in it."""
    pack: Path = Path("packs/results")
    """Pack with the labelled splits `train` and `test`; made from --splits if it does not exist."""
    splits: tuple[str, ...] = ()
    """NAME=PATH of both splits, see tools/pack_dataset.py; default at scale `tiny`: scikit-learn's digits."""
    scale: ScaleName = "full"
    """`tiny`: seconds per row, for tests; `short`: minutes per row; `full`: as in docs/results.md."""
    init: str = ""
    """Pre-trained network for the table `start`, see docs/pretrained.md."""
    peer: str = ""
    """legacy/airbench94.py of a checkout of KellerJordan/cifar10-airbench, for the table `speed`."""
    rows: tuple[str, ...] = ()
    """Names of the rows to measure now; all by default."""
    labels_per_class: tuple[int, ...] = ()
    """Columns to measure now, by labels per class (0: all labels); all by default, and always in `start`."""
    seeds: tuple[int, ...] = ()
    """Seeds of the table to measure now; all by default, and always in `start`."""
    records: Path | None = None
    """File for the records (.jsonl); the page (.md) and the picture (.png) are written beside it. By default
    OUT/TABLE-SCALE/records.jsonl."""
    num_threads: Count = 1
    """Threads of every command; budgets are in core seconds, so they do not depend on this."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, paths that cannot be written, and a missing --init."""
        check_numbers(self)
        check_folder(self.out)
        if self.records:
            check_file(self.records, "records")
        if self.table == "start" and not self.init and self.scale != "tiny":
            raise UserError("init: expected a pre-trained network for the table start, found none; name one")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import platform
from collections.abc import Sequence
from functools import cache

import torch
from rich.console import Console

from engine.nets.starts import weights_digest
from engine.train.autocast import SAID, of_hardware
from loaders import open_pack
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import Pack
from loaders.packs.labels.subsample import few_labels
from tools.bench.process import cpu_name
from tools.comparison import results
from tools.comparison.cpu_budget import CommandFailed, CommandStopped, cpu_seconds, preload
from tools.comparison.results import Record, alone_at
from tools.reproduction.measure import Bench, RunScript, Stopped, measure_rows
from tools.reproduction.page import write_page
from tools.reproduction.plan import ResultTable
from tools.reproduction.tables import make_table

STOPPED_CODE = 75


def prepare_pack(config: Config, run_script: RunScript) -> Pack:
    """Open the pack; if it does not exist, make it first, from --splits or scikit-learn's digits.

    Args:
        config: options of the command.
        run_script: see `Bench`; packing runs in its own process, since this one will fork and must not have
            threads.

    Raises:
        UserError: the pack does not exist, and there is no --splits at a scale other than `tiny`.
    """
    splits = config.splits
    if (config.pack / "manifest.json").is_file():
        return open_pack(config.pack)
    if not splits and config.scale != "tiny":
        raise UserError(
            f"pack: expected one at {config.pack}, or --splits to make it from, found neither; see "
            "tools/pack_dataset.py"
        )
    log = config.out / "logs" / "pack.log"
    if not splits:
        images = config.pack.with_name(f"{config.pack.name}-images")
        if not images.is_dir():
            run_script("tools/write_digits.py", ["--out", str(images)], log, None)
        splits = tuple(f"{name}={images / name}" for name in ("train", "test"))
    run_script("tools/pack_dataset.py", ["--splits", *splits, "--out", str(config.pack)], log, None)
    return open_pack(config.pack)


def described_machine(config: Config) -> Record:
    """Return a record of the machine and the versions with which a table is measured."""
    return {
        "kind": "machine",
        "processor": cpu_name(),
        "threads": config.num_threads,
        "precision": SAID[of_hardware()],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def label_tables(table: ResultTable, pack: Pack) -> list[Record]:
    """Return the labelled rows of the pack, in a record per seed and number of labels per class, 1 to 100."""
    split = pack.split("train")
    return [
        {
            "kind": "labels",
            "labels_per_class": count,
            "seed": seed,
            "rows": few_labels(split, count, seed).row.tolist(),
        }
        for count in table.labels_per_class
        for seed in table.seeds[count]
        if 0 < count <= 100
    ]


def folder_of(config: Config) -> Path:
    """Return the folder of a table at a scale."""
    return (config.out / f"{config.table}-{config.scale}").resolve()


def run(config: Config, console: Console, run_script: RunScript = cpu_seconds) -> str:
    """Measure what is missing; return the page.

    Raises:
        UserError: the table lacks a row, column or seed; no pack can be opened; or see `keep_question`.
        Stopped, CommandStopped, CommandFailed: a command was interrupted, or failed.
    """
    table = make_table(config.table, config.scale, config.init, config.peer)
    rows = [row.name for row in table.rows]
    seeds = sorted({seed for column in table.seeds.values() for seed in column})
    _check_among("rows", config.rows, rows)
    _check_among("labels-per-class", config.labels_per_class, table.labels_per_class)
    _check_among("seeds", config.seeds, seeds)
    out = folder_of(config)

    @cache  # print each line once; a row that is begun again repeats its earlier results
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    preload(config.num_threads)
    with alone_at(out / "asked.json", say):
        pack = prepare_pack(config, run_script)
        keep_question(config, out, pack)
        bench = Bench(config.pack.resolve(), out, config.num_threads, say, table, run_script)
        bench.record_of("machine", lambda: described_machine(config))
    path, labels = config.records or out / "records.jsonl", label_tables(table, pack)

    def write() -> str:
        with alone_at(out / "page", say):  # so that no page replaces a page that has more records
            return write_page(path, bench.table, [*bench.records(), *labels])

    chosen = [row for row in table.rows if row.name in (config.rows or rows)]
    try:
        for _ in measure_rows(bench, chosen, config.labels_per_class, config.seeds):
            write()
    finally:
        text = write()
    return text


def _check_among(option: str, given: Sequence[object], known: Sequence[object]) -> None:
    if unknown := [one for one in given if one not in known]:
        has, found = (", ".join(map(str, values)) for values in (known, unknown))
        raise UserError(f"{option}: expected values among {has}, found {found}")


def keep_question(config: Config, out: Path, pack: Pack) -> None:
    """Store in a folder the options that decide its figures, or refuse options other than those stored.

    Raises:
        UserError: the folder has figures of another pack or start (by path or content), another peer or
            number of threads, or of a row with other options (see `ResultTable.digest_of`).
    """
    table = make_table(config.table, config.scale, config.init, config.peer)
    asked: dict[str, str | int] = {"init": config.init, "peer": config.peer}
    asked |= {"pack": str(config.pack.resolve()), "num_threads": config.num_threads}
    init = weights_digest(Path(config.init)) if config.init else ""
    contents = {"content of pack": pack_fingerprint(pack), "content of init": init}
    rows = {f"content of row {row.name}": table.digest_of(row) for row in table.rows}
    results.keep_question(out / "asked.json", asked, {**contents, **rows})


def main() -> int:
    """Parse the command line and run the command; return the exit code."""
    config = command_line(Config, __doc__)
    try:
        print(run(config, Console(stderr=True)))
    except (Stopped, CommandStopped) as stopped:
        where = f" in {stopped}" if str(stopped) else ""
        print(f"reproduce: stopped{where}; run the same command to continue", file=sys.stderr)
        return STOPPED_CODE
    except CommandFailed as failed:
        raise UserError(
            f"reproduce: {failed}; fix this and run the command again; finished runs are kept"
        ) from None
    return 0


if __name__ == "__main__":
    run_command(main)
