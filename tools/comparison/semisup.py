"""The semi-supervised family: train on a few labels per class, and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loaders.common.json_text import parse_json
from tools.comparison.bench import Bench, Failures, steps_per_epoch
from tools.comparison.cpu_budget import Cost
from tools.comparison.methods import BATCH_SIZE, TRAININGS, Command, Labels, calibration_labels, command
from tools.comparison.results import Record, stage_of


def measure_all(
    bench: Bench,
    names: Sequence[str],
    labels_per_class: Sequence[int],
    seeds: Sequence[int],
    failures: Failures,
) -> None:
    """Measure every method at every number of labels, one seed after the other.

    Args:
        labels_per_class: numbers of true labels per class; the active method has as many at its end.
        seeds: seeds of the choice of labels, of weights, order and views.
    """
    for seed in seeds:
        for per_class in labels_per_class:
            for name in names:
                labels = Labels(per_class, seed, bench.num_classes)
                identity = {"kind": "trained", "method": name, "labels_per_class": per_class, "seed": seed}
                stage = stage_of(identity)
                with failures.noted(stage):
                    found = bench.once(identity, lambda n=name, k=labels, s=stage: train(bench, n, k, s))  # type: ignore[misc]
                    bench.say(f"{stage}: top-1 {found['top1']:.1%}, {found['cpu_s']:.0f} s")


def train(bench: Bench, name: str, labels: Labels, stage: str) -> Record:
    """Train with one method for the budget and test its classifier; return the record."""
    method = TRAININGS[name]
    cost = cost_of(bench, name)
    steps, out = bench.steps(cost), bench.empty(stage)
    made = method.commands(bench.common, labels, out, steps)
    seconds = sum(bench.run(one, stage) for one in made)
    tested = bench.out / f"{stage}-tested"
    where = ("--run", out / method.run, "--pack", bench.pack, "--out", tested, "--no-predictions")
    bench.run(command("recipes/evaluate.py", *where, "--num-threads", bench.num_threads), stage)
    accuracy = parse_json((tested / "classification.json").read_bytes())["mean_of_views"]
    return {
        "title": method.title,
        "budget_s": bench.budget_s,
        "predicted_s": cost.of(steps),
        "start_up_s": bench.start_up(),
        "cpu_s": seconds,
        "steps": steps,
        "top1": accuracy["top1"],
        "commands": [bench.shown(one.script, one.arguments) for one in made],
    }


def cost_of(bench: Bench, name: str) -> Cost:
    """Return the CPU time of a method by steps, calibrated with `calibration_labels` if it has no record."""
    method = TRAININGS[name]
    labels = Labels(calibration_labels(bench.num_classes), 0, bench.num_classes)

    def run(out: Path, steps: int) -> float:
        first, *others = method.commands(bench.common, labels, out, steps)
        complete = Command(first.script, (*first.arguments, *(str(a) for a in method.calibration)))
        return sum(bench.run(one, f"calibration-{name}") for one in (complete, *others))

    return bench.cost(name, run, steps_per_epoch(bench.num_train, BATCH_SIZE))
