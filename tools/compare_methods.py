r"""Compare methods on one pack, on small networks and with an equal budget of CPU time each.

Example:
    python tools/compare_methods.py --family selfsup --pack packs/cifar10 --out runs/selfsup --budget-s 150
    python tools/compare_methods.py --family semisup --pack packs/cifar10 --out runs/semisup --budget-s 60

selfsup: self-supervised methods train on the split `train` without its labels. The frozen features are
measured by kNN and a linear probe, and the backbone is fine-tuned on a few labels per class, beside an
untrained backbone and training from scratch. semisup: methods with labels train on a few labels per class.
Both families are tested on the split `test`.

The budget is kept as follows. First, two short runs of each method show how long its steps take. The training
then takes as many steps as fit into the budget, which excludes the start-up of a run, and its schedule spans
these steps. Its record has the seconds that it really took. On a shared machine, CPU time grows with the
load, so calibrate (--calibrate-only) while the machine is idle. Evaluation, and fine-tuning in selfsup, are
not part of the budget. Every finished stage leaves a JSON file in --out, so the same command, given again,
continues from there. Another pack, budget or other common setting needs another --out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.train.run_config import PackConfig
from loaders.common.checks import Count, Positive, check_different, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line
from tools.comparison.methods import BATCH_SIZE, PRETRAININGS, TRAININGS, calibration_labels


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig):
    """Measure a family of methods and write its records, its table and its plot."""

    family: Literal["selfsup", "semisup"]
    """Self-supervised pre-training, or training with few labels."""
    pack: Path
    """Pack with the labelled splits `train` and `test`."""
    out: Path
    """Folder of all runs and records; finished stages in it are not repeated."""
    budget_s: Positive
    """CPU seconds, user and system, of a training (selfsup: of a pre-training), without start-up."""
    methods: tuple[str, ...] = ()
    """Names of the methods; all by default."""
    labels_per_class: tuple[int, ...] = ()
    """Numbers of labels per class: selfsup fine-tunes on 1 4 16 64 by default, semisup trains on 4 25 400."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, order, views and labels to train on; the table has mean and standard deviation."""
    probe_labels_per_class: Count = 1000
    """selfsup: labels per class for kNN and the linear probe."""
    calibration_steps: tuple[Count, Count] = (8, 40)
    """Steps of the two runs from which the time of a method's steps is computed."""
    calibrate_only: bool = False
    """Measure only the time of steps; the rest can then be done while the machine is shared."""
    table_only: bool = False
    """Write the table and the plot of the results so far, and measure nothing."""
    num_threads: Count = 1
    """Threads of every command; with one, CPU time is easiest to compare."""
    records: Path | None = None
    """File of all records, one per line; the table (.md) and the plot (.png) are written beside it. In --out
    by default. Each record of a given file counts as measured, unless --out has its own. The file's times of
    steps are used too, so that every seed takes the same number of steps on any machine."""

    def __post_init__(self) -> None:
        """Refuse unknown methods, repeated or missing values, and numbers out of range or order."""
        if unknown := [name for name in self.methods if name not in self.batch_sizes]:
            known = ", ".join(self.batch_sizes)
            raise UserError(f"methods: expected names among {known}, found {', '.join(unknown)}")
        check_numbers(self)
        given = [name for name in ("labels_per_class", "methods") if getattr(self, name)]
        check_different(self, "seeds", *given)
        first, second = self.calibration_steps
        if first >= second:
            raise UserError(
                f"calibration_steps: expected two increasing numbers, found {first} and {second}; change them"
            )

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Methods of the family, each with the batch size by which its epochs are counted."""
        if self.family == "selfsup":
            return {name: method.batch_size for name, method in PRETRAININGS.items()}
        return dict.fromkeys(TRAININGS, BATCH_SIZE)

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of labels per class: those of --labels-per-class, or the family's default."""
        return self.labels_per_class or ((1, 4, 16, 64) if self.family == "selfsup" else (4, 25, 400))


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from contextlib import nullcontext

import numpy as np
from rich.console import Console

from loaders import open_pack
from loaders.common.files import check_file, check_folder
from loaders.common.locks import alone_in
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import Pack
from loaders.packs.labels.subsample import few_labels
from tools.comparison import selfsup, semisup
from tools.comparison.bench import Bench, Failures
from tools.comparison.cpu_budget import preload
from tools.comparison.results import Record, keep_question, read_lines, write_lines
from tools.comparison.tables import selfsup_table, semisup_table, write_page


def run(config: Config, console: Console) -> int:
    """Measure and write what the options ask for, but no stage twice; return the number of failures."""
    path = config.records or config.out / "records.jsonl"
    check_folder(config.out)
    check_file(path, "records")
    pack = open_pack(config.pack)
    # Without a lock, --table-only can write the results so far while another command measures.
    with nullcontext() if config.table_only else alone_in(config.out):
        bench, failures = open_bench(config, pack, console), Failures(console)
        found = list(read_lines(path)) if config.records and path.exists() else []
        for record in found:
            bench.check(record, config.batch_sizes)
        if not config.table_only:
            check_labels(config, pack)
        keep_question(config.out / "comparison.json", question_of(config, pack))
        bench.adopt(found, config.batch_sizes)
        if not config.table_only:
            preload(config.num_threads)
            measure(config, bench, failures)
        if not config.calibrate_only:
            table = selfsup_table if config.family == "selfsup" else semisup_table
            write_lines(path, bench.records())
            write_page(path, table(bench.records()))
            console.print(path.with_suffix(".md").read_text(), markup=False, highlight=False, soft_wrap=True)
    return failures.count


def question_of(config: Config, pack: Pack) -> Record:
    """Return the settings that all results in a folder share and that are not part of a stage's name."""
    return {
        "family": config.family,
        "pack": pack_fingerprint(pack),
        "budget_s": config.budget_s,
        "calibration_steps": list(config.calibration_steps),
        "probe_labels_per_class": config.probe_labels_per_class,
    }


def check_labels(config: Config, pack: Pack) -> None:
    """Print which classes have fewer labels than the comparison uses, before any work.

    Raises:
        UserError: no class has as many labels as asked for, a split has no labels, or there are too few
            labels for a method.
    """
    known = pack.split("train").labels()
    largest = int(np.bincount(known[known >= 0], minlength=1).max())
    if max(config.counts) > largest:
        raise UserError(
            f"labels per class: expected at most {largest}, as many as the largest class has, found "
            f"{max(config.counts)}; lower --labels-per-class"
        )
    selfsup, names = config.family == "selfsup", config.methods or config.batch_sizes
    if not selfsup and "active" in names and min(config.counts) < 2:
        raise UserError(
            f"labels per class: expected 2 or more for active, which buys half of them, found "
            f"{min(config.counts)}; give more, or --methods without active"
        )
    beside = config.probe_labels_per_class if selfsup else calibration_labels(len(pack.classes))
    few_labels(pack.split("train"), max(*config.counts, beside), seed=0)
    few_labels(pack.split("test"), None, seed=0)


def open_bench(config: Config, pack: Pack, console: Console) -> Bench:
    """Return the comparison that the options describe."""
    return Bench(
        pack=config.pack.resolve(),
        out=config.out.resolve(),
        budget_s=config.budget_s,
        lengths=config.calibration_steps,
        num_threads=config.num_threads,
        num_train=len(pack.split("train")),
        num_classes=len(pack.classes),
        say=lambda line: console.print(line, highlight=False, markup=False),
    )


def measure(config: Config, bench: Bench, failures: Failures) -> None:
    """Calibrate all methods, then train and measure them, unless --calibrate-only is given."""
    is_selfsup = config.family == "selfsup"
    names = config.methods or tuple(config.batch_sizes)
    for name in names:
        with failures.noted(f"calibration of {name}"):
            cost = (selfsup if is_selfsup else semisup).cost_of(bench, name)
            bench.say(f"{name}: {bench.steps(cost)} steps in {config.budget_s:g} s")
    if config.calibrate_only:
        return
    if is_selfsup:
        probe = config.probe_labels_per_class
        selfsup.measure_all(bench, names, config.counts, config.seeds, probe, failures)
    else:
        semisup.measure_all(bench, names, config.counts, config.seeds, failures)


def main() -> int:
    """Parse the command line and run the command; return the exit code."""
    return 1 if run(command_line(Config, __doc__), Console()) else 0


if __name__ == "__main__":
    run_command(main)
