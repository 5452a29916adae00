"""Run every step on scikit-learn's handwritten digits: pack, verify, pre-train, evaluate, fine-tune, report.

Example:
    python tools/demo.py

Every step is a separate command, which is printed before it runs, so that it can be copied and changed.

The 445 test images influence no gradient, no choice of labels and no end of training. But the settings of
fine-tuning (learning rates, steps and crops, with and without pre-training) were chosen by hand for accuracy
on these images, so trust the gain from pre-training more than either accuracy. `recipes/transfer.py --grid
--validation-share 0.2` chooses learning rates without test images: on a fifth of the training labels,
which is set aside class by class before training.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Pre-train on the digits without labels, then fine-tune with 1, 2, 5 and 10 labels per class."""

    out: Path = Path("runs/demo")
    """Folder of the runs and of report.html; an earlier demo in it is removed first."""
    pack: Path = Path("packs/digits")
    """Folder of the pack; an earlier demo's pack there is removed first."""
    epochs: Count = 40
    """Epochs of pre-training on the unlabelled images."""
    labels_per_class: tuple[Count, ...] = (1, 2, 5, 10)
    """Numbers of labels per class to fine-tune with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of fine-tuning, which decide the choice of labels, new weights, order and views."""
    num_threads: Count = 2
    """Threads of each step, for torch and for the loaders. Threads and precision (float32) are fixed, so that
    results do not depend on the number of cores or on bfloat16 support."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and folders that cannot be made or that hold the working folder."""
        check_numbers(self)
        for option in ("out", "pack"):
            folder = getattr(self, option)
            check_folder(folder, option)
            if Path.cwd().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{option}: expected a folder of its own, found {folder}, the working folder or one "
                    f"above; give another --{option}"
                )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from engine.evaluate.few_labels import SCRATCH, by_start, read_results, summarise
from engine.evaluate.results import read_evaluation
from loaders.common.next_step import IS_A_STEP, say_next
from loaders.common.tables import print_table
from loaders.packs.manifest import MANIFEST_NAME
from tools.bench.process import environment

MARKER = "made-by-demo"


@dataclass(frozen=True)
class Step:
    """One command of the demo, and a line that says what it is for."""

    title: str
    command: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(self.command)


def python(script: str, *arguments: object) -> tuple[str, ...]:
    """Return the command that runs one of the project's scripts."""
    return ("python", script, *(str(a) for a in arguments))


def plan(config: Config) -> list[Step]:
    """Return all steps but the report, in order."""
    images, run, transfer = config.out / "images", config.out / "barlow", config.out / "transfer"
    # A mirrored digit is not a digit, and the paper's crops of 8 % of such a small image show almost nothing.
    views = ("--min-crop", 0.4, "--flip-p", 0)
    threads = ("--num-threads", config.num_threads)
    exact = ("--precision", "no")
    launch = (
        *("accelerate", "launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--num_cpu_threads_per_process", str(config.num_threads)),
    )
    splits = (f"train={images}/train", f"test={images}/test", f"unlabeled={images}/train")
    return [
        Step("write the digits as JPEG files", python("tools/write_digits.py", "--out", images)),
        Step(
            "pack them",
            python(
                *("tools/pack_dataset.py", "--splits", *splits),
                *("--format", "webdataset", "--out", config.pack),
            ),
        ),
        Step("verify the pack", python("tools/verify_pack.py", config.pack)),
        Step(
            "pre-train without labels",
            (
                *launch,
                *("recipes/barlow.py", "--pack", str(config.pack), "--split", "unlabeled"),
                *("--backbone", "tiny_resnet", "--resolution", "32", *(str(v) for v in views)),
                *("--epochs", str(config.epochs), "--batch-size", "128"),
                *("--warmup-epochs", str(min(5, config.epochs // 2))),
                *("--projector", "512", "512", "512", *(str(t) for t in threads), *exact, "--out", str(run)),
            ),
        ),
        Step(
            "measure the frozen features",
            python("tools/probe.py", "--run", run, "--pack", config.pack, *threads),
        ),
        Step(
            "fine-tune with few labels, beside from scratch",
            python(
                *("recipes/transfer.py", "--pack", config.pack, "--init", run, "--out", transfer),
                *("--labels-per-class", *config.labels_per_class, "--seeds", *config.seeds),
                # The settings behind the documented figures: a new classifier, and these numbers of steps.
                *("--pretrained.classifier-start", "random", "--pretrained.steps", 100),
                *("--from-scratch.steps", 200),
                *(
                    "--pretrained.min-crop",
                    0.8,
                    "--from-scratch.min-crop",
                    0.6,
                    "--flip-p",
                    0,
                    *threads,
                    *exact,
                ),
            ),
        ),
    ]


def report_step(config: Config, commands: Path) -> Step:
    """Return the step that writes the page, which shows the commands of the earlier steps."""
    lead = "Handwritten digits, pre-trained without labels, then classified with a few labels per class."
    return Step(
        "write the report",
        python(
            *("tools/report.py", "--run", config.out / "barlow", "--few-labels", config.out / "transfer"),
            *("--out", config.out / "report.html", "--title", "Sluice on handwritten digits", "--lead", lead),
            *("--commands", commands),
        ),
    )


def make_room(folder: Path) -> None:
    """Remove an earlier demo from a folder.

    Raises:
        UserError: the folder holds anything but an earlier demo.
    """
    if folder.exists() and any(folder.iterdir()):
        if not is_own(folder):
            raise UserError(
                f"demo: expected {folder} to be empty or an earlier demo's, found other content; move it"
            )
        shutil.rmtree(folder)


def is_own(folder: Path) -> bool:
    """Return whether a demo made this folder of runs or this pack.

    A folder of runs holds the marker. Beside a pack stands a file with the checksum of its manifest.
    """
    beside = marker_of(folder)
    return (folder / MARKER).is_file() or (beside.is_file() and beside.read_text() == sum_of(folder))


def marker_of(pack: Path) -> Path:
    """Return the file that marks a pack as the demo's; it lies beside the pack and is no part of it."""
    return pack.with_name(f".{pack.name}.{MARKER}")


def sum_of(pack: Path) -> str | None:
    """Return the checksum of a pack's manifest, which identifies the pack; None without a manifest."""
    manifest = pack / MANIFEST_NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def run_step(console: Console, number: int, step: Step, num_threads: int = 2) -> float:
    """Print a step, run it and return its seconds.

    Raises:
        SystemExit: the step failed; the exit code is the step's, or 128 plus the signal that ended it.
    """
    console.print(f"\n[bold]{number}. {step.title}[/bold]")
    console.print(f"   $ {step.text}", markup=False, highlight=False, soft_wrap=True, style="dim")
    start = time.perf_counter()
    code = subprocess.run(step.command, cwd=Path.cwd(), env=_environment(num_threads), check=False).returncode
    seconds = time.perf_counter() - start
    if code != 0:
        console.print(f"[bold red]step {number} failed[/] with exit code {code}: {step.title}")
        raise SystemExit(code if code > 0 else 128 - code)
    console.print(f"   {seconds:.1f} s", style="dim", highlight=False)
    return seconds


def _environment(num_threads: int) -> dict[str, str]:
    """Return the environment of the steps: PATH begins with the folder of the Python that runs now."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**environment(), "PATH": search, "OMP_NUM_THREADS": str(num_threads), IS_A_STEP: "1"}


def print_outcome(console: Console, config: Config) -> None:
    """Print the results: frozen features, then few labels."""
    evaluation = read_evaluation(config.out / "barlow")
    results, _ = read_results(config.out / "transfer")
    if evaluation is not None:
        frozen = Table("frozen features", "kNN", "linear probe", title="test accuracy, %")
        for row in evaluation.rows:
            frozen.add_row(row.network, f"{100 * row.knn_top1:.1f}", f"{100 * row.linear_top1:.1f}")
        print_table(console, frozen)
    summaries = summarise(results)
    counts = sorted({s.labels_per_class for s in summaries})
    title = f"test accuracy, %, mean ± standard deviation over {len(config.seeds)} seeds"
    table = Table("labels per class", *(str(k) for k in counts), title=title)
    for init, own in by_start(summaries).items():
        table.add_row("from scratch" if init == SCRATCH else "pre-trained", *(own[k].text for k in counts))
    print_table(console, table)


def main() -> None:
    """Run all steps."""
    config = command_line(Config, __doc__)
    console = Console()
    start = time.perf_counter()
    make_room(config.out)
    make_room(config.pack)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / MARKER).touch()
    steps, threads = plan(config), f"export OMP_NUM_THREADS={config.num_threads}"
    console.print(f"   $ {threads}", markup=False, highlight=False, style="dim")
    try:
        for number, step in enumerate(steps, start=1):
            run_step(console, number, step, config.num_threads)
            if made := sum_of(config.pack):
                marker_of(config.pack).write_text(made)
        commands = config.out / "commands.txt"
        commands.write_text("".join(f"{line}\n" for line in (threads, *(step.text for step in steps))))
        run_step(console, len(steps) + 1, report_step(config, commands), config.num_threads)
    except KeyboardInterrupt:
        is_unfinished = config.pack.exists() and not is_own(config.pack)
        first = f"; first remove {config.pack}, which is unfinished" if is_unfinished else ""
        raise KeyboardInterrupt(f"interrupted: the next demo starts over{first}") from None
    console.print()
    print_outcome(console, config)
    console.print(
        f"\n{config.out / 'report.html'}  ({time.perf_counter() - start:.0f} s in all)", highlight=False
    )
    say_next("tools/pack_dataset.py", "--splits", "train,val,test=PHOTOS:0.7,0.1,0.2", "--out", "packs/own")


if __name__ == "__main__":
    run_command(main)
