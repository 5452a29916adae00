"""Results of training with few labels: one record per run, and the mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.next_step import say_next

if TYPE_CHECKING:
    from rich.table import Table

RESULTS_NAME = "few_labels.json"
SCRATCH = "scratch"
OF_A_START = ("fine_tune", "frozen", "two_stage", "knn", "probe", "pseudo")
"""Methods that can begin with pre-trained weights: those of recipes/transfer.py and tools/few_labels.py."""


@dataclass(frozen=True)
class FewLabelResult:
    """The result of one classifier that learned from few labels.

    Attributes:
        init: the start as the user named it, or "scratch". tools/few_labels.py appends the method's name,
            and tools/label_sweep.py writes a method's name in place of the start.
        labels_per_class: largest number of labels of each class that the classifier learned from.
        seed: seed of the choice of labels, of new weights, and of the order and views of images.
        top1: share of test images classified correctly.
        num_test: number of labelled test images.
        steps: optimizer steps; 0 if there were none or the number is not known.
        top5: share of test images whose label is among the five most probable classes; None in older files.
        method: one of `OF_A_START`, or the recipe that trained the network.
        validation_top1: share of validation images classified correctly; None if it was not measured.
        start_top1: test accuracy of the linear probe with which the network started; None if it did not start
            with a probe. This accuracy decides nothing.
        folder: folder of the classifier, relative to that of the results; "" if no classifier was kept.
    """

    init: str
    labels_per_class: int
    seed: int
    top1: float
    num_test: int
    steps: int
    top5: float | None = None
    method: str = "fine_tune"
    validation_top1: float | None = None
    start_top1: float | None = None
    folder: str = ""

    @property
    def is_pretrained(self) -> bool:
        """Whether the network started from pre-trained weights."""
        return self.init != SCRATCH and self.method in OF_A_START


@dataclass(frozen=True)
class Summary:
    """The mean result of the runs with the same start and the same number of labels.

    Attributes:
        mean: mean of top1 over seeds.
        spread: sample standard deviation of top1 over seeds; 0 for one seed.
        num_seeds: number of runs, one per seed.
        mean_top5: mean of top5 over seeds; None if a run did not measure it.
        spread_top5: spread of top5, like `spread`; None if a run did not measure it.
    """

    init: str
    labels_per_class: int
    mean: float
    spread: float
    num_seeds: int
    mean_top5: float | None = None
    spread_top5: float | None = None

    @property
    def text(self) -> str:
        """The accuracy in per cent, such as "93.1 ± 0.8", or "93.1" if there was one seed."""
        return _in_percent(self.mean, self.spread, self.num_seeds)

    @property
    def text_top5(self) -> str:
        """The top-5 accuracy in the form of `text`; empty if it was not measured."""
        if self.mean_top5 is None or self.spread_top5 is None:
            return ""
        return _in_percent(self.mean_top5, self.spread_top5, self.num_seeds)


def _in_percent(mean: float, spread: float, num_seeds: int) -> str:
    return f"{100 * mean:.1f}" + ("" if num_seeds == 1 else f" ± {100 * spread:.1f}")


def summarise(results: Iterable[FewLabelResult]) -> list[Summary]:
    """Return one summary per pair of init and labels per class, sorted by both, with "scratch" last."""
    groups: dict[tuple[bool, str, int], list[FewLabelResult]] = {}
    for result in results:
        key = (result.init == SCRATCH, result.init, result.labels_per_class)
        groups.setdefault(key, []).append(result)
    return [_summarise(init, k, runs) for (_, init, k), runs in sorted(groups.items(), key=lambda g: g[0])]


def _summarise(init: str, labels_per_class: int, runs: Sequence[FewLabelResult]) -> Summary:
    mean, spread = mean_and_spread([run.top1 for run in runs])
    top5 = [run.top5 for run in runs if run.top5 is not None]
    mean_top5, spread_top5 = mean_and_spread(top5) if len(top5) == len(runs) else (None, None)
    return Summary(init, labels_per_class, mean, spread, len(runs), mean_top5, spread_top5)


def by_start(summaries: Iterable[Summary]) -> dict[str, dict[int, Summary]]:
    """Group summaries by init, then by labels per class; both keep the order given."""
    found: dict[str, dict[int, Summary]] = {}
    for summary in summaries:
        found.setdefault(summary.init, {})[summary.labels_per_class] = summary
    return found


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def write_results(out: Path, results: Sequence[FewLabelResult], config: Mapping[str, Any]) -> Path:
    """Write all results and their configuration into `RESULTS_NAME` in `out`, atomically; return its path."""
    path = out / RESULTS_NAME
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json({"config": dict(config), "results": [asdict(result) for result in results]}))
    return path


def read_results(out: Path) -> tuple[list[FewLabelResult], dict[str, Any]]:
    """Read the results and the configuration that `write_results` wrote.

    Raises:
        UserError: the file does not exist, or is not a list of results.
    """
    path = out / RESULTS_NAME
    try:
        content = parse_json(path.read_bytes())
        return [FewLabelResult(**result) for result in content["results"]], dict(content["config"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"few-label results: expected {path}, found none; run recipes/transfer.py first"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"few-label results: {path} is not a list of results ({error}); remove it") from error


def say_next_step(out: Path, results: Sequence[FewLabelResult]) -> None:
    """Print where the classifiers are, and a command that uses one of them.

    The command uses a classifier trained with the most labels: of several, the one with the highest
    validation accuracy, or the first if none was measured. Test accuracy plays no part. If no classifier was
    kept, only the command that writes the report is printed.
    """
    left = [result for result in results if result.folder]
    if not left:
        say_next("tools/report.py", "--run", out)
        return
    most = max(result.labels_per_class for result in left)
    few = [result for result in left if result.labels_per_class == most]
    best = max(few, key=lambda result: -1.0 if result.validation_top1 is None else result.validation_top1)
    options = ("--network", out / best.folder, "--images", "FOLDER", "--out", "predictions")
    print(f"classifiers: {len(left)}, each in its folder of {out}")
    say_next("tools/predict.py", *options)


def results_table(results: Sequence[FewLabelResult], heading: str = "start") -> Table:
    """Return a table of accuracies in per cent: a row per start, a column per number of labels."""
    from rich.table import Table

    summaries = summarise(results)
    counts = sorted({s.labels_per_class for s in summaries})
    table = Table(heading, *(f"{k} per class" for k in counts), title="test accuracy, %")
    for init, own in by_start(summaries).items():
        table.add_row(init, *(own[k].text if k in own else "" for k in counts))
    return table
