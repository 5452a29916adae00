"""Pages other than the page of one run: few labels, a pipeline, an evaluation, several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from engine.evaluate.few_labels import RESULTS_NAME, read_results
from engine.evaluate.online_probe import read_probe
from engine.report.classifier_sections import headline
from engine.report.feature_maps import draw_maps, look, sparseness_table
from engine.report.figures import draw_curves, draw_steps
from engine.report.names import check_classes, names_of
from engine.report.page import Block, Facts, Paragraph, Section, Table, render_page
from engine.report.rank_sections import RankPages
from engine.report.run_page import (
    FOOTER,
    PageOptions,
    accuracy_cell,
    build_run_page,
    classifier_sections,
    commands_of,
    pack_of,
)
from engine.report.sections import curves_of, few_labels_section, leaks_section, percent
from engine.report.tested import Tested
from engine.train.classifier_recipe import read_accuracy
from engine.train.metrics import read_metrics
from engine.train.run_folder import read_run
from loaders.common.errors import LoaderError, UserError, one_line
from loaders.common.json_text import parse_json
from loaders.order.fingerprint import pack_fingerprint

ABLATION_NAME = "ablation.json"
_STAGE_FOLDERS = ("pretrain", "fine-tune", "rounds", "fixmatch", "active-fixmatch")
CLASSIFICATION_NAME, PREDICTIONS_NAME = "classification.json", "predictions.npz"


def build_page(options: PageOptions) -> str:
    """Return the page about any folder that a recipe writes.

    Raises:
        UserError: the folder is not one of a recipe, or its page cannot be made with these options.
    """
    if (options.run / RESULTS_NAME).is_file() and not (options.run / "metrics.jsonl").is_file():
        return few_labels_page(options)
    if (options.run / ABLATION_NAME).is_file():
        return pipeline_page(options)
    if (options.run / CLASSIFICATION_NAME).is_file():
        return evaluation_page(options)
    return build_run_page(options)


def few_labels_page(options: PageOptions) -> str:
    """Return the page about a folder with few-label results, such as one of recipes/transfer.py."""
    results, config = read_results(options.run)
    rows = [
        (
            Path(r.init).name,
            r.method,
            str(r.labels_per_class),
            str(r.seed),
            accuracy_cell(r.top1, r.num_test),
            "" if r.start_top1 is None else percent(r.start_top1),
            "" if r.validation_top1 is None else percent(r.validation_top1),
            str(r.steps),
        )
        for r in results
    ]
    columns = (
        "start",
        "method",
        "labels per class",
        "seed",
        "accuracy (95 % interval)",
        "linear probe of its start",
        "validation",
        "steps",
    )
    sections = [
        leaks_section([str(leak) for leak in config.get("leaks", ())]),
        few_labels_section(results),
        Section("Each network", [Table(columns, rows, "Intervals: Wilson, over the test images.")]),
        _configuration(config, options),
    ]
    return render_page(
        options.title or f"Few labels: {options.run.resolve().name}", options.lead, sections, FOOTER
    )


def pipeline_page(options: PageOptions) -> str:
    """Return the page about a folder of recipes/pipeline.py: every stage, and the runs behind it."""
    path = options.run / ABLATION_NAME
    try:
        content = parse_json(path.read_bytes())
        stages = [(str(row["stage"]), float(row["top1"])) for row in content["stages"]]
        config = dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a pipeline's result ({error}); run the pipeline again") from None
    blocks: list[Block] = []
    if stages:
        names, shares = zip(*stages, strict=True)
        blocks = [draw_steps(names, [100 * share for share in shares], "test accuracy, %")]
        gains = [share - before for share, before in zip(shares, (shares[0], *shares[:-1]), strict=True)]
        rows = [(n, percent(s), f"{100 * g:+.1f}") for n, s, g in zip(names, shares, gains, strict=True)]
        blocks.append(Table(("stage", "accuracy", "points gained"), rows))
    runs = sorted(path.parent for path in options.run.rglob("metrics.jsonl"))
    sections = [
        Section("Stages", blocks),
        _stage_maps(config, options),
        *compared_sections(runs, options.run),
        _configuration(config, options),
    ]
    return render_page(
        options.title or f"Pipeline: {options.run.resolve().name}", options.lead, sections, FOOTER
    )


def _stage_maps(config: dict[str, Any], options: PageOptions) -> Section:
    """Show feature maps of the first test image after each stage but scratch, or say why there are none.

    Source: figure 1 of Zhou, Wan, Li 2021.
    """
    starts = [options.run / name for name in _STAGE_FOLDERS if (options.run / name).is_dir()]
    try:
        pack = pack_of({"config": config}, options)
        first = pack.split(str(config["test_split"])).rows(np.arange(1)).tolist()
        seen = [look(start.name, start, pack, first) for start in starts]
    except (UserError, LoaderError, OSError, ValueError, KeyError) as error:
        return Section("Feature maps", [Paragraph(f"Not drawn: {one_line(str(error))}.")])
    return Section("Feature maps", [draw_maps(seen, 9, 0), sparseness_table(seen)] if seen else [])


def evaluation_page(options: PageOptions) -> str:
    """Return the page about a folder of recipes/evaluate.py: all images of a split, averaged over views.

    Raises:
        UserError: predictions are missing or damaged, the pack is missing or not the one evaluated, or
            `options.classes` holds an unknown class.
    """
    content, tested, classes = read_predictions(options.run)
    config = dict(content["config"])
    pack = pack_of({"config": config}, options)
    packed, now = content.get("pack"), pack_fingerprint(pack)  # older evaluations do not name their pack
    if packed not in (None, now):
        raise UserError(
            f"pack: expected that of the evaluation, {packed}, found one {now} at {pack.path}; give it by "
            "--pack, or evaluate again"
        )
    pack.classes = classes  # the pack may have gained classes since the evaluation
    check_classes(options.classes, classes)
    sections = [leaks_section([str(leak) for leak in config.get("leaks", ())])]
    known = tested.label >= 0
    if known.any():
        labelled = tested.only(known)
        found = content["mean_of_views"]
        sections.append(headline(found["top1"], found["num_images"], found["top5"], found["mean_class_top1"]))
        rows = [
            (name, percent(view["top1"]), percent(view["top5"])) for name, view in content["views"].items()
        ]
        views = (
            [Table(("view", "accuracy", "among five"), rows, "Each view by itself.")] if len(rows) > 1 else []
        )
        sections.append(Section("Views", views))
        sections += classifier_sections(labelled, pack, None, options.classes)
    else:
        ranks = RankPages(pack, tested, classes)
        sections += [ranks.sheets(options.classes), ranks.imbalance(None, np.full(len(classes), np.nan))]
    sections.append(_configuration(config, options))
    title = options.title or f"Evaluation: {options.run.resolve().name}"
    return render_page(title, options.lead, sections, FOOTER)


def read_predictions(out: Path) -> tuple[dict[str, Any], Tested, tuple[str, ...]]:
    """Read the files of recipes/evaluate.py: the content of classification.json, predictions and classes.

    Raises:
        UserError: files are missing, damaged, or of an older version.
    """
    path = out / PREDICTIONS_NAME
    if not path.is_file():
        raise UserError(f"predictions: expected {path}, found none; evaluate again with --predictions")
    try:
        content = dict(parse_json((out / CLASSIFICATION_NAME).read_bytes()))
        split = str(content["config"]["split"])
        with np.load(path, allow_pickle=False) as arrays:
            row, label, scores = (arrays[name] for name in ("row", "label", "probabilities"))
            classes = tuple(str(name) for name in arrays["classes"])
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"{out} is not an evaluation's result ({error}); evaluate again") from None
    nothing = np.zeros(0, np.int64)
    features = np.zeros((0, 0), np.float32)
    tested = Tested(split, len(row), row, label, torch.from_numpy(scores), nothing, features)
    return content, tested, classes


def compare_page(runs: Sequence[Path], title: str | None = None, lead: str = "") -> str:
    """Return a page with several runs side by side.

    Raises:
        UserError: one of the folders is no run.
    """
    for run in runs:
        read_run(run)
    names = ", ".join(names_of(runs))
    return render_page(title or f"{len(runs)} runs", lead or names, compared_sections(runs), FOOTER)


def compared_sections(runs: Sequence[Path], below: Path | None = None) -> list[Section]:
    """Return results, curves and differing options of runs, whose names are relative to `below` if given."""
    found = []
    missing: list[Block] = []
    names = names_of(runs) if below is None else [run.relative_to(below).as_posix() for run in runs]
    for name, run in zip(names, runs, strict=True):
        try:
            found.append((name, run, read_run(run), read_accuracy(run), read_metrics(run / "metrics.jsonl")))
        except UserError as error:
            missing.append(Paragraph(f"{name}: {one_line(str(error))}"))
    curves, rows = [], []
    for name, run, described, accuracy, records in found:
        last, best = (records[-1] if records else {}), accuracy.get("ema", accuracy.get("raw"))
        speeds = sorted(r["img_per_s"] for r in records if r.get("img_per_s"))
        rows.append(
            (
                name,
                str(described["recipe"]),
                "" if best is None else accuracy_cell(best.top1, best.num_images),
                _figure(last.get("loss")),
                _figure(last.get("step")),
                f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
            )
        )
        curves += curves_of([*records, *read_probe(run)], name)
        if not records:
            missing.append(Paragraph(f"{name}: curves: metrics.jsonl has no line that can be read"))
    columns = ("run", "recipe", "accuracy (95 % interval)", "last loss", "steps", "images/s")
    sections = [Section("Runs", [Table(columns, rows)] if rows else [])]
    sections.append(Section("Curves", [draw_curves(curves)] if curves else []))
    configs = [described["config"] for _, _, described, _, _ in found]
    differing = sorted(
        key
        for key in {k for c in configs for k in c} - {"out"}
        if len({repr(c.get(key)) for c in configs}) > 1
    )
    options = [(key, *(_short(config.get(key)) for config in configs)) for key in differing]
    if options and len(found) > 1:
        table = Table(("option", *(name for name, *_ in found)), options, numeric=False)
        sections.append(Section("Where their options differ", [table]))
    return [*sections, Section("What is missing", missing)]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else f"{value:,}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _configuration(config: Any, options: PageOptions) -> Section:
    pairs = [(str(name), _short(value)) for name, value in dict(config).items() if name != "leaks"]
    return Section("How to repeat it", [*commands_of(options), Facts(pairs)])
