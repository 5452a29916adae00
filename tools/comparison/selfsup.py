"""The self-supervised family: pre-train, measure the frozen features, fine-tune on a few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engine.evaluation import FrozenAccuracy, read_evaluation
from engine.few_labels import SCRATCH, read_results
from tools.comparison.bench import Bench, Failures, last_metric, steps_per_epoch
from tools.comparison.cpu_budget import Cost
from tools.comparison.methods import PRETRAININGS, command, pretraining_command
from tools.comparison.records import Record

UNTRAINED = "untrained"


def measure_all(
    bench: Bench,
    names: Sequence[str],
    labels_per_class: Sequence[int],
    seeds: Sequence[int],
    probe_labels: int,
    failures: Failures,
) -> None:
    """Measure every method, and beside the first one the untrained backbone and training from scratch.

    Args:
        bench: of the comparison.
        names: of the methods.
        labels_per_class: of the fine-tuning.
        seeds: of the fine-tuning.
        probe_labels: labels per class for kNN and the linear probe.
        failures: notes what fails.
    """
    for place, name in enumerate(names):
        with failures.noted(name):
            trained = bench.once(f"pretraining-{name}", lambda name=name: pretrain(bench, name))  # type: ignore[misc]
            metric = f"{trained['metric_name']} {trained['metric']:.3g}"
            bench.say(f"{name}: {trained['cpu_s']:.0f} s, {trained['steps']} steps, {metric}")
            beside = place == 0  # what does not depend on the method is measured once
            frozen(bench, name, probe_labels, beside)
            fine_tuned(bench, name, labels_per_class, seeds, beside)


def cost_of(bench: Bench, name: str) -> Cost:
    """Return the cost of a method's steps."""
    method = PRETRAININGS[name]
    per_epoch = steps_per_epoch(bench.num_train, method.batch_size)

    def run(out: Path, steps: int) -> float:
        made = pretraining_command(method, bench.common, out, steps, per_epoch)
        return bench.run(made, f"calibration-{name}")

    return bench.cost(name, run, per_epoch, method.epochwise)


def pretrain(bench: Bench, name: str) -> Record:
    """Pre-train with one method for its budget."""
    method, cost = PRETRAININGS[name], cost_of(bench, name)
    steps, out = bench.steps(cost), bench.empty(name)
    made = pretraining_command(method, bench.common, out, steps, cost.steps_per_epoch)
    seconds = bench.run(made, name)
    metric, metric_name = method.metric
    return {
        "kind": "pretraining",
        "method": name,
        "title": method.title,
        "budget_s": bench.budget_s,
        "predicted_s": cost.of(steps),
        "start_up_s": bench.start_up(),
        "cpu_s": seconds,
        "steps": steps,
        "images": steps * method.batch_size,
        "metric": last_metric(out, metric),
        "metric_name": metric_name,
        "command": bench.shown(made),
    }


def frozen(bench: Bench, name: str, probe_labels: int, untrained: bool) -> None:
    """Measure kNN and the linear probe of a pre-trained backbone, and of an untrained one where asked."""
    arguments = ("--run", bench.out / name, "--pack", bench.pack, "--labels-per-class", probe_labels)
    flag = "--untrained" if untrained else "--no-untrained"
    made = command("tools/evaluate.py", *arguments, flag, "--num-threads", bench.num_threads)
    rows: list[FrozenAccuracy] = []

    def measure(place: int, method: str) -> Record:
        if not rows:
            bench.run(made, f"{name}-evaluation")
            evaluation = read_evaluation(bench.out / name)
            assert evaluation is not None
            rows.extend(evaluation.rows)
        return {"kind": "frozen", "method": method, **asdict(rows[place])}

    bench.once(f"frozen-{name}", lambda: measure(0, name))
    if untrained:
        bench.once(f"frozen-{UNTRAINED}", lambda: measure(1, UNTRAINED))


def fine_tuned(
    bench: Bench, name: str, labels_per_class: Sequence[int], seeds: Sequence[int], scratch: bool
) -> None:
    """Fine-tune a pre-trained backbone for every number of labels, beside training from scratch if asked."""
    out = bench.out / f"{name}-transfer"
    counts = ("--labels-per-class", *labels_per_class, "--seeds", *seeds)
    arguments = ("--pack", bench.pack, "--init", bench.out / name, "--out", out, *counts)
    views = ("--pretrained.min-crop", 0.5, "--from-scratch.min-crop", 0.5)
    flag = "--beside-scratch" if scratch else "--no-beside-scratch"
    made = command("recipes/transfer.py", *arguments, *views, flag, "--num-threads", bench.num_threads)

    def measure(kind: str) -> Record:
        if kind == name:
            bench.run(made, f"{name}-transfer")
        results, _ = read_results(out)
        kept = [asdict(r) for r in results if (r.init == SCRATCH) == (kind == SCRATCH)]
        for result in kept:
            del result["init"]
        return {"kind": "fine_tuned", "method": kind, "results": kept}

    wanted = "-".join(str(n) for n in (*labels_per_class, "seeds", *seeds))
    bench.once(f"finetuned-{name}-{wanted}", lambda: measure(name))
    if scratch:
        bench.once(f"finetuned-{SCRATCH}-{wanted}", lambda: measure(SCRATCH))
