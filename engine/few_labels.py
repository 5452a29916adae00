"""What fine-tuning with few labels came to: one record per run, and its mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.files import to_json, write_atomic
from loaders.errors import UserError

RESULTS_NAME = "few_labels.json"
SCRATCH = "scratch"


@dataclass(frozen=True)
class FewLabelResult:
    """One fine-tuned network.

    Attributes:
        init: run folder whose backbone it started from, or "scratch".
        labels_per_class: labels it saw of each class.
        seed: of the choice of labels, of new weights, of order and views.
        top1: share of test images classified correctly.
        num_test: test images.
        steps: optimizer steps.
    """

    init: str
    labels_per_class: int
    seed: int
    top1: float
    num_test: int
    steps: int


@dataclass(frozen=True)
class Summary:
    """The runs of one way to start with one number of labels.

    Attributes:
        init: see `FewLabelResult`.
        labels_per_class: see `FewLabelResult`.
        mean: of top1 over seeds.
        spread: sample standard deviation over seeds; 0 for one seed.
        num_seeds: number of runs.
    """

    init: str
    labels_per_class: int
    mean: float
    spread: float
    num_seeds: int

    @property
    def text(self) -> str:
        """The accuracy in per cent, such as "93.1 ± 0.8"; without a spread where there was one seed."""
        if self.num_seeds == 1:
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {100 * self.spread:.1f}"


def summarise(results: Iterable[FewLabelResult]) -> list[Summary]:
    """Return one summary per (init, labels per class): from scratch last, labels increasing."""
    groups: dict[tuple[bool, str, int], list[float]] = {}
    for result in results:
        key = (result.init == SCRATCH, result.init, result.labels_per_class)
        groups.setdefault(key, []).append(result.top1)
    return [
        Summary(
            init,
            labels_per_class,
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
            len(values),
        )
        for (_, init, labels_per_class), values in sorted(groups.items())
    ]


def write_results(out: Path, results: Sequence[FewLabelResult], config: Mapping[str, Any]) -> Path:
    """Write all results, with the configuration that gave them, into `out`, atomically."""
    path = out / RESULTS_NAME
    write_atomic(path, to_json({"config": dict(config), "results": [asdict(result) for result in results]}))
    return path


def read_results(out: Path) -> tuple[list[FewLabelResult], dict[str, Any]]:
    """Read what `write_results` wrote: the results and the configuration.

    Raises:
        UserError: no such file, or not one of ours.
    """
    path = out / RESULTS_NAME
    try:
        content = json.loads(path.read_bytes())
        return [FewLabelResult(**result) for result in content["results"]], dict(content["config"])
    except FileNotFoundError:
        raise UserError(
            f"few-label results: expected {path}, found none; run recipes/transfer.py first"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"few-label results: {path} is not a list of results ({error}); remove it") from error
