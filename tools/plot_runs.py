r"""Draw one quantity of several runs over the steps, with a line per run or per group of runs.

Example:
    python tools/plot_runs.py --runs runs/fixmatch-* --by threshold --metric validation_top1 --out curves.png

Runs with equal values of all options of --by share a line: their mean, with the standard deviation around it.
Without --by each run has its own line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare runs in one chart."""

    runs: tuple[Path, ...]
    """Run folders."""
    out: Path
    """PNG file to write; a version for dark pages is written beside it."""
    metric: str = "validation_top1"
    """Quantity of metrics.jsonl or probe.jsonl, such as validation_top1, loss, mask_rate or knn_top1."""
    by: tuple[str, ...] = ()
    """Options that distinguish lines, such as threshold, backbone or labels_per_class."""

    def __post_init__(self) -> None:
        """Refuse an empty list of runs, and an --out that is no PNG file or cannot be written."""
        if not self.runs:
            raise UserError("runs: expected one run folder or more, found none")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"out: expected a name that ends with .png, found {self.out}; change it")
        check_file(self.out)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import statistics
from typing import Any

from engine.evaluate.online_probe import read_probe
from engine.report.figures import Series, draw_lines, save_picture
from engine.report.names import names_of
from engine.train.metrics import read_metrics
from engine.train.run_folder import read_run

_IN_PER_CENT = ("top1", "top5", "share", "rate")


def name_of(run: Path, by: tuple[str, ...], own: str) -> str:
    """Return the name of a run's line: the values of the options `by`, or `own` if `by` is empty.

    Raises:
        UserError: the folder is not a run folder, or the run has no such option.
    """
    described = read_run(run)
    if not by:
        return own
    config = {**described["config"], **described["config"].get("loader", {}), "recipe": described["recipe"]}
    missing = [option for option in by if option not in config]
    if missing:
        known = ", ".join(sorted(config))
        raise UserError(f"by: expected options of {run}, found {missing[0]!r}; it has {known}")
    return ", ".join(f"{option} {_plain(config[option])}" for option in by)


def points_of(run: Path, metric: str) -> dict[int, float]:
    """Return a run's values of a quantity, keyed by step in rising order.

    Raises:
        UserError: the run has no such values.
    """
    records = [*read_metrics(run / "metrics.jsonl"), *read_probe(run)]
    measured = (record for record in records if isinstance(record.get(metric), int | float))
    found = {int(record["step"]): float(record[metric]) for record in measured}
    if not found:
        numbers = {name for record in records for name, value in record.items() if not isinstance(value, str)}
        known = sorted(numbers - {"step", "epoch"})
        raise UserError(f"metric: expected {metric!r} in {run}, found {', '.join(known) or 'no measurement'}")
    return dict(sorted(found.items()))


def lines_of(config: Config) -> list[Series]:
    """Return a line for each group of runs, over the steps at which every run of the group was measured."""
    groups: dict[str, list[dict[int, float]]] = {}
    for run, own in zip(config.runs, names_of(config.runs), strict=True):
        groups.setdefault(name_of(run, config.by, own), []).append(points_of(run, config.metric))
    lines = []
    for name, members in groups.items():
        steps = [step for step in members[0] if all(step in member for member in members)]
        if not steps:
            raise UserError(
                f"runs: expected those of {name!r} to be measured at the same steps, found none in common; "
                "tell them apart by another option (--by)"
            )
        columns = [[member[step] for member in members] for step in steps]
        spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
        shown = name if len(members) == 1 else f"{name} ({len(members)} runs)"
        lines.append(Series(shown, steps, [statistics.fmean(column) for column in columns], spread))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    lines = lines_of(config)
    is_share = config.metric.endswith(_IN_PER_CENT)
    titles = ("step", f"{config.metric}{', %' if is_share else ''}", f"{config.metric} of {len(lines)} lines")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(config.out, draw_lines(lines, titles, 100.0 if is_share else 1.0))
    for line in lines:
        print(f"{line.name}: {config.metric} {line.mean[-1]:.4g} at step {line.places[-1]:g}")
    print(f"plot_runs: {len(config.runs)} runs in {len(lines)} lines -> {config.out}")


if __name__ == "__main__":
    run_command(main)
