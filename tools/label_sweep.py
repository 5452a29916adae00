r"""Label efficiency: accuracy over 1, 2, 4, ... 64 labels per class, for any recipes and from scratch.

Example:
    python tools/label_sweep.py --pack packs/mine --out runs/sweep --seeds 0 1 2 --methods \
        "barlow=transfer --init runs/barlow" \
        "rotnet conv4=transfer --init runs/rotnet --method frozen --layer conv4 --hidden 4096 4096" \
        "fixmatch=fixmatch --backbone resnet18 --resolution 96 --epochs 40"

A method is NAME=RECIPE followed by the recipe's own options; the sweep adds the pack, the labels, the seed
and the folder. `transfer` starts from a pre-trained run; the first method with it also trains the same
network from scratch. Any other recipe with --labels-per-class trains as usual. Several runs proceed at once
if there are enough cores. The same command, given again, reads finished runs from disk and does the rest.

The sweep writes few_labels.json (for tools/report.py --few-labels), sweep.csv and sweep.png into --out.

Source: curves over labels per class in the reports by Muaz and Kumar, and by Zhu, Mananghaya and Rivera Ruiz
2019 (1, 2, 4, ... 64 labels for each of 1,000 classes, top-1 and top-5).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from engine.train.run_config import PackConfig
from loaders.common.checks import Count, check_different, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(PackConfig):
    """Train every method with every number of labels and every seed, and compare them."""

    pack: Path
    """Folder of the pack, or its URL in a store."""
    out: Path
    """Folder of all runs, the table and the plot."""
    methods: tuple[str, ...]
    """NAME=RECIPE OPTIONS, see above."""
    labels_per_class: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of labels per class; a smaller choice of labels is part of every larger one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the choice of labels, of new weights, of order and views."""
    jobs: int = 0
    """Runs at once; 0 for as many as the cores allow."""
    num_threads: Count = 1
    """Threads of each run, both for its loader and for torch."""

    def __post_init__(self) -> None:
        """Refuse empty lists, repeated values, numbers out of range, and a folder that cannot be made."""
        check_different(self, "methods", "labels_per_class", "seeds")
        check_numbers(self)
        check_folder(self.out)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from engine.evaluate.few_labels import (
    SCRATCH,
    FewLabelResult,
    Summary,
    by_start,
    read_results,
    summarise,
    write_results,
)
from engine.labels.shared_images import Account
from engine.nets.starts import weights_digest
from engine.report.figures import draw_label_efficiency, save_picture
from engine.report.sections import label_series
from engine.train.classifier_recipe import read_accuracy
from engine.train.run_folder import read_run
from loaders import open_pack
from loaders.common.cores import available_cores
from loaders.common.files import csv_text, to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.locks import alone_in
from loaders.common.tables import print_table
from loaders.order.fingerprint import pack_fingerprint
from tools.bench.process import ROOT, environment, last_line
from tools.comparison.results import keep_question

TRANSFER = "transfer"


@dataclass(frozen=True)
class Method:
    """One method of the sweep; `beside_scratch` says whether it also trains the same network from scratch."""

    name: str
    recipe: str
    options: tuple[str, ...]
    beside_scratch: bool = False


@dataclass(frozen=True)
class Job:
    """One process: a method with one seed, and with one number of labels, or all of them for `transfer`."""

    method: Method
    seed: int
    labels_per_class: tuple[int, ...]

    @property
    def start(self) -> str:
        """What `weights_digest` returns for the start of the job; "" without --init."""
        options = self.method.options
        named = [option.removeprefix("--init=") for option in options if option.startswith("--init=")]
        named += [value for option, value in pairwise(options) if option == "--init"]
        return weights_digest(Path(named[-1])) if named else ""

    @property
    def folder(self) -> str:
        """Folder of the job inside the sweep's folder."""
        counts = "-".join(map(str, self.labels_per_class))
        return f"{self.method.name}/labels-{counts}-seed-{self.seed}"


def read_methods(texts: Sequence[str]) -> list[Method]:
    """Parse NAME=RECIPE OPTIONS; the first method with `transfer` also trains from scratch.

    Raises:
        UserError: a text has another form, a recipe does not exist, or a name is used twice or reserved.
    """
    found: list[Method] = []
    for text in texts:
        name, separator, command = text.partition("=")
        try:
            words = shlex.split(command)
        except ValueError:  # a quotation is not closed
            words = []
        if not separator or not name.strip(" .") or not words or "/" in name:
            raise UserError(f"methods: expected NAME=RECIPE OPTIONS, found {text!r}")
        if not (ROOT / "recipes" / f"{words[0]}.py").is_file():
            raise UserError(f"methods: expected a recipe such as transfer or fixmatch, found {words[0]!r}")
        first = words[0] == TRANSFER and not any(method.beside_scratch for method in found)
        found.append(Method(name.strip(), words[0], tuple(words[1:]), first))
    names = [method.name for method in found]
    if len(set(names)) < len(names) or SCRATCH in names:
        raise UserError(f"methods: expected different names, none of them {SCRATCH!r}, found {names}")
    return found


def plan(config: Config) -> list[Job]:
    """Return the jobs to run; `transfer` trains with all numbers of labels in one job."""
    counts = [(k,) for k in config.labels_per_class]
    return [
        Job(method, seed, labels)
        for seed in config.seeds
        for method in read_methods(config.methods)
        for labels in ([config.labels_per_class] if method.recipe == TRANSFER else counts)
    ]


def command_of(config: Config, job: Job) -> list[str]:
    """Return the command line of a job."""
    method, threads = job.method, str(config.num_threads)
    command = [sys.executable, str(ROOT / "recipes" / f"{method.recipe}.py"), *method.options]
    command += ["--pack", str(config.pack), "--out", str(config.out / job.folder), "--num-threads", threads]
    command += ["--labels-per-class", *map(str, job.labels_per_class)]
    if method.recipe == TRANSFER:
        beside = "--beside-scratch" if method.beside_scratch else "--no-beside-scratch"
        return [*command, "--seeds", str(job.seed), beside]
    if not any(option.startswith("--validation") for option in method.options):
        command += ["--validation-share", "0"]  # train on all labels that the results count
    seed = str(job.seed)
    return [*command, "--seed", seed, "--label-seed", seed, "--resume", "--no-progress", "--trackers"]


def run_job(config: Config, job: Job) -> list[FewLabelResult]:
    """Run a job, or read its results from disk if it is finished; its output goes to a log beside its folder.

    Raises:
        UserError: the job failed (the message has its last line), its results are damaged or were made with
            other options, or the weights that it started from have changed since.
    """
    command, folder, start = command_of(config, job), config.out / job.folder, job.start
    done, log = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.log")
    decisive = shlex.join(_without_threads(command[2:]))
    if done.is_file():
        try:
            found = parse_json(done.read_bytes())
            made_by, results = found["command"], [FewLabelResult(**result) for result in found["results"]]
            started = found.get("start", start)  # results of older sweeps do not record the start
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"sweep: {done} is damaged ({error}); remove it to measure again") from None
        if made_by != decisive:
            raise UserError(f"sweep: {folder} was made by other options ({made_by}); give another --out")
        if started != start:
            raise UserError(
                f"sweep: {folder} was made from other weights ({started}), found {start}; give another --out"
            )
        return results
    folder.parent.mkdir(parents=True, exist_ok=True)
    threads = environment(config.num_threads)
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=output, env=threads, check=False)
    if code.returncode:
        last = last_line(log) or "no message"
        raise UserError(f"sweep: {job.folder} exited with {code.returncode}: {last} (full output: {log})")
    results = collect(job, folder)
    content = {"command": decisive, "start": start, "results": [asdict(result) for result in results]}
    write_atomic(done, to_json(content))
    return results


def collect(job: Job, folder: Path) -> list[FewLabelResult]:
    """Read the accuracies that a job wrote, and name them after its method.

    Raises:
        UserError: the recipe wrote no accuracy that can be read.
    """
    name = job.method.name
    if job.method.recipe == TRANSFER:
        return [r if r.init == SCRATCH else replace(r, init=name) for r in read_results(folder)[0]]
    found = read_accuracy(folder)
    accuracy = found.get("ema", found.get("raw"))
    if accuracy is None:
        raise UserError(
            f"sweep: expected accuracy.json from {job.method.recipe} in {folder}, found none; name a recipe "
            "that measures on a test split"
        )
    labels = job.labels_per_class[0]
    measured = (accuracy.top1, accuracy.num_images, 0, accuracy.top5, job.method.recipe)
    return [FewLabelResult(name, labels, job.seed, *measured)]


def run(config: Config, console: Console) -> list[FewLabelResult]:
    """Run all jobs, several at once, and return their results sorted.

    Raises:
        UserError: some jobs failed; it is raised after all others have ended.
    """
    jobs, results, failures = plan(config), [], []
    at_once = config.jobs or max(1, available_cores() // config.num_threads)
    with ThreadPoolExecutor(at_once) as pool:
        pending = [pool.submit(run_job, config, job) for job in jobs]
        try:
            for number, future in enumerate(as_completed(pending), start=1):
                error = future.exception()
                if isinstance(error, UserError):
                    failures.append(str(error))
                    console.print(f"[{number}/{len(jobs)}] failed: {error}", markup=False, highlight=False)
                    continue
                found = future.result()
                results += found
                shown = ", ".join(f"{r.init} {r.labels_per_class}: {r.top1:.1%}" for r in found)
                console.print(f"[{number}/{len(jobs)}] {shown}", markup=False, highlight=False)
        except BaseException:  # above all Ctrl-C: jobs that have not begun must not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise UserError(
            f"{failures[0]}; {len(failures)} of {len(jobs)} runs failed: fix this and run the command "
            "again; finished runs are kept"
        )
    return sorted(results, key=lambda r: (r.init, r.labels_per_class, r.seed))


def write_sweep(config: Config, results: Sequence[FewLabelResult]) -> None:
    """Write the results, the table and the plot into the sweep's folder."""
    described = Account(leaks_of(config)).describe(parse_json(to_json(asdict(config))))
    write_results(config.out, results, described)
    summaries = summarise(results)
    measured = ("top1_mean", "top1_spread", "top5_mean", "top5_spread")
    columns = ("method", "labels_per_class", "seeds", *(f"{name}_percent" for name in measured))
    rows = []
    for s in summaries:
        values = (s.mean, s.spread, s.mean_top5, s.spread_top5)
        shown = ("" if value is None else f"{100 * value:.2f}" for value in values)
        rows.append((s.init, s.labels_per_class, s.num_seeds, *shown))
    write_atomic(config.out / "sweep.csv", csv_text(columns, rows).encode())
    series = label_series(summaries, lambda name: "from scratch" if name == SCRATCH else name)
    save_picture(config.out / "sweep.png", draw_label_efficiency(series))


def leaks_of(config: Config) -> tuple[str, ...]:
    """Return the leaks that the runs report and --allow-leak permitted, each text once."""
    found: dict[str, None] = {}
    for job in plan(config):
        folder = config.out / job.folder
        if not folder.is_dir():  # not run yet
            continue
        described = read_results(folder)[1] if job.method.recipe == TRANSFER else read_run(folder)["config"]
        found |= dict.fromkeys(described.get("leaks", ()))
    return tuple(found)


def render(summaries: Sequence[Summary]) -> Table:
    """Return a table of top-1 and top-5 with their spreads: two rows per method, a column per label count."""
    counts = sorted({s.labels_per_class for s in summaries})
    table = Table("method", "", *map(str, counts), title="test accuracy over labels per class, %")
    for name, own in by_start(summaries).items():
        table.add_row(name, "top 1", *(own[k].text if k in own else "" for k in counts))
        table.add_row("", "top 5", *(own[k].text_top5 if k in own else "" for k in counts))
    return table


def _without_threads(command: list[str]) -> list[str]:
    place = command.index("--num-threads")
    return command[:place] + command[place + 2 :]


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    pack = open_pack(config.pack)  # opened here, so that a missing pack is reported once and not by every run
    read_methods(config.methods)  # parsed here for the same reason
    with alone_in(config.out):
        keep_question(config.out / "asked.json", {"pack": pack_fingerprint(pack)})
        results = run(config, Console(stderr=True))
        write_sweep(config, results)
    print_table(Console(), render(summarise(results)))
    print(f"{config.out / 'sweep.csv'}, {config.out / 'sweep.png'}")


if __name__ == "__main__":
    run_command(main)
