"""The sections of a run's report, made from what the run folder holds."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from engine.evaluate.few_labels import SCRATCH, FewLabelResult, Summary, by_start, summarise
from engine.evaluate.results import Evaluation
from engine.report.figures import Curve, Series, draw_curves, draw_label_efficiency
from engine.report.page import Block, Facts, Paragraph, Section, Table, Tile, Tiles

PACKAGES = ("sluice", "torch", "torchvision", "timm", "accelerate", "numba", "numpy", "scikit-learn")

# Key of a log record -> name of its panel, whether the axis starts at zero, name of the curve.
_PANELS = {
    "loss": ("loss", False, "training"),
    "validation_loss": ("loss", False, "validation"),
    "top1": ("accuracy", False, "training"),
    "validation_top1": ("accuracy", False, "validation"),
    "validation_raw_top1": ("accuracy", False, "validation, weights without average"),
    "validation_mean_class_top1": ("accuracy", False, "validation, class mean"),
    "knn_top1": ("accuracy of frozen features", False, "nearest neighbours"),
    "linear_top1": ("accuracy of frozen features", False, "linear probe"),
    "lr": ("learning rate", True, ""),
    "img_per_s": ("images per second", True, ""),
    "wait_share": ("share of time waiting for data", True, ""),
}


def percent(share: float) -> str:
    """Write a share in [0, 1] in per cent, such as "97.1 %"."""
    return f"{100 * share:.1f} %"


def arm_names(results: Sequence[FewLabelResult]) -> dict[str, str]:
    """Return a name for each `init`: "from scratch", "pre-trained (RUN)", or a method's name as it is."""
    names = {r.init: f"pre-trained ({PurePath(r.init).name})" if r.is_pretrained else r.init for r in results}
    return names | {SCRATCH: "from scratch"}


def label_series(summaries: Sequence[Summary], name: Callable[[str], str]) -> list[Series]:
    """Return a line of accuracies over labels per class for each `init`, named by `name`."""
    return [
        Series(name(init), list(arm), [s.mean for s in arm.values()], [s.spread for s in arm.values()])
        for init, arm in by_start(summaries).items()
    ]


def key_figures(evaluation: Evaluation | None, results: Sequence[FewLabelResult]) -> Section:
    """Return the headline figures; a section without blocks if nothing was measured."""
    tiles = []
    if evaluation is not None:
        own = evaluation.rows[0]
        others = {row.network: row for row in evaluation.rows[1:]}
        untrained = others.get("untrained")
        knn_note = f"{percent(untrained.knn_top1)} untrained" if untrained else ""
        linear_note = f"{percent(untrained.linear_top1)} untrained" if untrained else ""
        tiles.append(Tile(percent(own.knn_top1), "nearest neighbours", knn_note))
        tiles.append(Tile(percent(own.linear_top1), "linear probe, all labels", linear_note))
    summaries = {(s.init, s.labels_per_class): s for s in summarise(results)}
    pretrained = sorted({r.labels_per_class for r in results if r.is_pretrained})
    init = next((r.init for r in results if r.is_pretrained), None)
    for labels_per_class in [k for k in (1, 5) if k in pretrained] or pretrained[:2]:
        own_runs = summaries.get((str(init), labels_per_class))
        scratch = summaries.get((SCRATCH, labels_per_class))
        if own_runs is not None:
            plural = "" if labels_per_class == 1 else "s"
            note = f"{percent(scratch.mean)} from scratch" if scratch else ""
            tiles.append(Tile(percent(own_runs.mean), f"{labels_per_class} label{plural} per class", note))
    return Section("At a glance", [Tiles(tiles)] if tiles else [])


def leaks_section(leaks: Sequence[str]) -> Section:
    """Return the leaks; a section without blocks if there are none."""
    if not leaks:
        return Section("Leaks", [])
    lead = (
        "Accuracies on this page are too high: with --allow-leak, the network learned from images on which "
        "it is measured."
    )
    return Section("Leaks", [Paragraph(lead), *(Paragraph(leak) for leak in leaks)])


def frozen_section(evaluation: Evaluation) -> Section:
    """Return the accuracies of nearest neighbours and linear probes on the features of frozen networks."""
    first = evaluation.rows[0]
    rows = [
        [row.network, percent(row.knn_top1), percent(row.linear_top1), percent(row.linear_top5)]
        for row in evaluation.rows
    ]
    caption = f"{first.num_train:,} labelled training images, {first.num_test:,} test images."
    if not all(row.probe_converged for row in evaluation.rows):
        caption += " A probe stopped at its iteration limit: read its accuracy as a lower bound."
    columns = ["network", "kNN", "linear probe", "linear probe, top 5"]
    return Section("Frozen features", [Table(columns, rows, caption)])


def few_labels_section(results: Sequence[FewLabelResult]) -> Section:
    """Return the accuracies with few labels as a drawing and a table: mean and spread over seeds."""
    summaries, names = summarise(results), arm_names(results)
    counts = sorted({s.labels_per_class for s in summaries})
    rows = [
        [names[init], *(arm[k].text if k in arm else "" for k in counts)]
        for init, arm in by_start(summaries).items()
    ]
    num_seeds = sorted({s.num_seeds for s in summaries})
    seeds = (
        "one seed"
        if num_seeds == [1]
        else f"mean and sample standard deviation over {' or '.join(str(n) for n in num_seeds)} seeds, "
        "each with its own choice of labels, new weights, order and views"
    )
    caption = (
        f"Test accuracy in per cent over {results[0].num_test:,} images: {seeds}. All ways to start saw the "
        "same labels."
    )
    columns = ["start", *(f"{k} per class" for k in counts)]
    series = label_series(summaries, names.__getitem__)
    blocks: list[Block] = [draw_label_efficiency(series)] if len(counts) > 1 else []
    return Section("Few labels", [*blocks, Table(columns, rows, caption)])


def curves_of(records: Sequence[Mapping[str, Any]], label: str | None = None) -> list[Curve]:
    """Return the curves of a run's log; a curve leaves out values that are missing or not finite.

    Args:
        records: records of metrics.jsonl, and of probe.jsonl if there is one.
        label: name of the run, if several runs share a panel.
    """
    curves: list[Curve] = []
    for key, (name, from_zero, own) in _PANELS.items():
        points = [
            (r["step"], r[key]) for r in records if _is_number(r.get(key)) and _is_number(r.get("step"))
        ]
        steps, values = zip(*points, strict=True) if points else ((), ())
        # A line that another one hides, as the mean of classes of equal size does, is not drawn.
        hidden = any(c.name == name and c.steps == steps and _are_close(c.values, values) for c in curves)
        if points and not hidden:
            text = own if label is None else ", ".join(part for part in (label, own) if part)
            curves.append(Curve(name, steps, values, from_zero, text, label or ""))
    return curves


def _are_close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(some, others, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def curves_section(records: Sequence[Mapping[str, Any]]) -> Section:
    """Return the curves of a run's log."""
    curves = curves_of(records)
    caption = "Each point is the mean since the one before; the first one includes compiling and warming up."
    return Section("Training", [draw_curves(curves, caption)] if curves else [])


def configuration_section(described: Mapping[str, Any], commands: Sequence[Block]) -> Section:
    """Return the commands, the configuration of the run and the versions of the software."""
    options = [(name, _plain(value)) for name, value in _options(described["config"])]
    installed = {name: _version_of(name) for name in PACKAGES}
    versions = {"python": platform.python_version(), **installed, **described["versions"]}
    return Section(
        "How to repeat it",
        [
            *commands,
            Paragraph(f"Recipe “{described['recipe']}” with these options:"),
            Facts(options),
            Paragraph("Versions:"),
            Facts([(name, str(value)) for name, value in versions.items()]),
        ],
    )


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values; a group of options, such as `loader`, is replaced by its options.

    An option of a group is left out if the run has one of the same name, such as `seed` or `device`.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from (option for option in _options(value) if option[0] not in config)
        else:
            yield name, value


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_plain(v) for v in value) or "none"
    return "none" if value is None else str(value)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
