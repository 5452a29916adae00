"""The self-supervised family: pre-train, measure the frozen features, fine-tune on a few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engine.evaluate.few_labels import SCRATCH, read_results
from engine.evaluate.results import FrozenAccuracy, read_evaluation
from tools.comparison.bench import Bench, Failures, last_metric, steps_per_epoch
from tools.comparison.cpu_budget import Cost
from tools.comparison.methods import PRETRAININGS, command, pretraining_command
from tools.comparison.results import Record, stage_of

UNTRAINED = "untrained"


def measure_all(
    bench: Bench,
    names: Sequence[str],
    labels_per_class: Sequence[int],
    seeds: Sequence[int],
    probe_labels: int,
    failures: Failures,
) -> None:
    """Measure every method, one seed after the other, and two baselines: untrained, and from scratch.

    Args:
        labels_per_class: numbers of labels per class to fine-tune on.
        seeds: seeds of everything except the choice of labels for kNN and the probe.
        probe_labels: labels per class for kNN and the linear probe.
    """
    for seed in seeds:
        beside = True  # the baselines depend on no method: measure them with the first method that succeeds
        for name in names:
            identity = {"kind": "pretraining", "method": name, "seed": seed}
            with failures.noted(stage_of(identity)):
                trained = bench.once(identity, lambda name=name, seed=seed: pretrain(bench, name, seed))  # type: ignore[misc]
                metric = f"{trained['metric_name']} {trained['metric']:.3g}"
                bench.say(
                    f"{stage_of(identity)}: {trained['cpu_s']:.0f} s, {trained['steps']} steps, {metric}"
                )
                frozen(bench, name, seed, probe_labels, beside)
                fine_tuned(bench, name, seed, labels_per_class, beside)
                beside = False


def cost_of(bench: Bench, name: str) -> Cost:
    """Return the CPU time of a method by steps; the method is calibrated if it has no record."""
    method = PRETRAININGS[name]
    per_epoch = steps_per_epoch(bench.num_train, method.batch_size)

    def run(out: Path, steps: int) -> float:
        made = pretraining_command(method, bench.common, out, steps, per_epoch)
        return bench.run(made, f"calibration-{name}")

    return bench.cost(name, run, per_epoch, method.epochwise)


def run_name(name: str, seed: int) -> str:
    """Return the name of a pre-training's folder."""
    return f"{name}-seed-{seed}"


def pretrain(bench: Bench, name: str, seed: int) -> Record:
    """Pre-train with one method for the budget; return the record."""
    method, cost = PRETRAININGS[name], cost_of(bench, name)
    steps, out = bench.steps(cost), bench.empty(run_name(name, seed))
    common = (*bench.common, "--seed", seed)
    made = pretraining_command(method, common, out, steps, cost.steps_per_epoch)
    seconds = bench.run(made, out.name)
    metric, metric_name = method.metric
    return {
        "title": method.title,
        "budget_s": bench.budget_s,
        "predicted_s": cost.of(steps),
        "start_up_s": bench.start_up(),
        "cpu_s": seconds,
        "steps": steps,
        "images": steps * method.batch_size,
        "metric": last_metric(out, metric),
        "metric_name": metric_name,
        "command": bench.shown(made.script, made.arguments),
    }


def frozen(bench: Bench, name: str, seed: int, probe_labels: int, untrained: bool) -> None:
    """Measure a pre-trained backbone by kNN and a linear probe; with `untrained`, also an untrained one."""
    run = bench.out / run_name(name, seed)
    arguments = ("--run", run, "--pack", bench.pack, "--labels-per-class", probe_labels)
    flags = ("--untrained" if untrained else "--no-untrained", "--untrained-seed", seed)
    made = command("tools/probe.py", *arguments, *flags, "--num-threads", bench.num_threads)
    rows: list[FrozenAccuracy] = []

    def measure(place: int) -> Record:
        if not rows:
            bench.run(made, f"{run.name}-evaluation")
            evaluation = read_evaluation(run)
            assert evaluation is not None
            rows.extend(evaluation.rows)
        return asdict(rows[place])

    bench.once({"kind": "frozen", "method": name, "seed": seed}, lambda: measure(0))
    if untrained:
        bench.once({"kind": "frozen", "method": UNTRAINED, "seed": seed}, lambda: measure(1))


def fine_tuned(bench: Bench, name: str, seed: int, labels_per_class: Sequence[int], scratch: bool) -> None:
    """Fine-tune a pre-trained backbone on every number of labels; with `scratch`, also train from scratch."""
    run = bench.out / run_name(name, seed)
    out = bench.out / f"{run.name}-transfer"
    counts = ("--labels-per-class", *labels_per_class, "--seeds", seed)
    arguments = ("--pack", bench.pack, "--init", run, "--out", out, *counts)
    # The protocol of the existing records: a new classifier, and the same steps for any number of labels.
    protocol = (
        "--pretrained.classifier-start",
        "random",
        "--pretrained.steps",
        100,
        "--from-scratch.steps",
        200,
    )
    views = (*protocol, "--pretrained.min-crop", 0.5, "--from-scratch.min-crop", 0.5)
    flag = "--beside-scratch" if scratch else "--no-beside-scratch"
    made = command("recipes/transfer.py", *arguments, *views, flag, "--num-threads", bench.num_threads)

    def measure(kind: str) -> Record:
        if kind == name or not any(r.init == SCRATCH for r in read_results(out)[0]):
            bench.run(made, out.name)
        results, _ = read_results(out)
        kept = [asdict(r) for r in results if (r.init == SCRATCH) == (kind == SCRATCH)]
        for result in kept:
            del result["init"]
        return {"results": kept}

    for kind in (name, *([SCRATCH] if scratch else [])):
        identity = {"kind": "fine_tuned", "method": kind, "labels_per_class": list(labels_per_class)}
        bench.once({**identity, "seed": seed}, lambda kind=kind: measure(kind))  # type: ignore[misc]
