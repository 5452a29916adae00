"""The page about a run folder, made from its files; the page lists the sections that cannot be made."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluate.few_labels import FewLabelResult, read_results
from engine.evaluate.online_probe import read_probe
from engine.evaluate.results import Evaluation, read_evaluation
from engine.labels.shared_images import not_set_aside
from engine.report.names import check_classes, natural
from engine.report.page import Block, Command, Paragraph, Section, Table, Tile, Tiles, render_page
from engine.report.sections import (
    configuration_section,
    curves_section,
    few_labels_section,
    frozen_section,
    key_figures,
    leaks_section,
    percent,
)
from engine.report.sheets import contact_sheet, to_pixels
from engine.report.tested import MOST_TESTED, Tested, look_at_split
from engine.train.advice import no_better_than_start
from engine.train.bad_rows import read_bad_rows
from engine.train.classifier_recipe import read_accuracy
from engine.train.metrics import read_metrics
from engine.train.run_folder import read_run
from engine.train.samples import SAMPLES_NAME, load_samples, normalization_of
from loaders.classification import build_rows_loader
from loaders.common.errors import LoaderError, UserError, one_line
from loaders.common.files import write_atomic
from loaders.common.next_step import as_called
from loaders.common.notice import tell
from loaders.options import LoaderOptions
from loaders.packs import Pack, open_pack
from loaders.packs.labels.subsample import training_labels
from loaders.views.evaluation import EvaluationView

PAGE_NAME, COMMAND_NAME, METRICS_NAME = "report.html", "command.txt", "metrics.jsonl"
FOOTER = "Written by Sluice from the folder's own records."
_SHOWN_BAD_ROWS = 20


@dataclass(frozen=True)
class PageOptions:
    """The options of tools/report.py for the page of one folder; `commands` holds lines, not a file."""

    run: Path
    few_labels: Path | None = None
    pack: Path | None = None
    title: str | None = None
    lead: str = ""
    commands: tuple[str, ...] = ()
    num_images: int = 12
    num_tested: int = MOST_TESTED
    classes: tuple[str, ...] = ()


class _Sections:
    """Collects the sections of a page in order; a section that cannot be made is named as missing."""

    def __init__(self) -> None:
        self.found: list[Section] = []
        self.missing: list[str] = []

    def add(self, what: str, make: Callable[[], Section | Sequence[Section]]) -> None:
        """Add the section from `make`, or a line on why it failed."""
        try:
            made = make()
        except (UserError, LoaderError, OSError, ValueError) as error:  # ValueError: such as features of NaN
            self.missing.append(f"{what}: {one_line(str(error))}")
            return
        self.found += [made] if isinstance(made, Section) else made

    def get(self, what: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`; if it fails, add a line and return None."""
        made: list[Any] = [None]

        def kept() -> list[Section]:
            made[0] = make()
            return []

        self.add(what, kept)
        return made[0]

    def all(self) -> list[Section]:
        """Print what is missing, and return the sections, the last of which lists the same."""
        for line in self.missing:
            tell(f"report: without {line}")
        return [*self.found, Section("What is missing", [Paragraph(line) for line in self.missing])]


def build_run_page(options: PageOptions) -> str:
    """Return the page of a run folder as HTML text.

    Raises:
        UserError: there is no run, or an option asks for something that does not exist.
    """
    described, run = read_run(options.run), options.run
    results = [] if options.few_labels is None else read_results(options.few_labels)[0]
    page = _Sections()
    evaluation = page.get("frozen features", lambda: read_evaluation(run))
    page.add("accuracy", lambda: accuracy_section(run, evaluation, results))
    page.add("leaks", lambda: leaks_section(leaks_of(described, options.few_labels, evaluation)))
    phases = phases_of(run)
    records = page.get("curves", lambda: read_logs(phases or [run])) or []
    if not records:
        page.missing.append(
            "curves: metrics.jsonl has no line, so the run has not reached its first log step"
        )
    probes = page.get("probe", lambda: read_probe(run)) or []
    if phases:
        page.add("phases", lambda: phases_section(phases))
    page.add("curves", lambda: curves_section([*records, *probes]))
    if results:
        page.add("few labels", lambda: few_labels_section(results))
    if evaluation is not None:
        page.add("frozen features", lambda: frozen_section(evaluation))
    pack = page.get("pack", lambda: pack_of(described, options))
    if pack is not None:
        check_classes(options.classes, pack.classes)
        page.add("views", lambda: views_section([run, *phases], pack, options.num_images))
        page.add("feature maps", lambda: feature_maps([run, *phases], pack))
        if options.num_tested:
            page.add("test images", lambda: network_sections(described, pack, options))
    page.add("speed", lambda: speed_section(records))
    page.add("bad rows", lambda: bad_rows_section(run, pack))
    page.add("how to repeat it", lambda: configuration_section(described, commands_of(options)))
    title = options.title or f"{described['recipe']}: {run.resolve().name}"
    return render_page(title, options.lead, page.all(), footer=FOOTER)


def accuracy_section(
    run: Path, evaluation: Evaluation | None, results: Sequence[FewLabelResult]
) -> list[Section]:
    """Return the headline figures: of the classifier, of frozen features and of few labels."""
    from engine.report.classifier_sections import headline

    found = read_accuracy(run)
    best = found.get("ema", found.get("raw"))
    shown = []
    if best is not None:
        first = headline(best.top1, best.num_images, best.top5, getattr(best, "mean_class_top1", None))
        said = None if phases_of(run) else no_better_than_start(read_metrics(run / METRICS_NAME))
        shown.append(first if said is None else Section(first.title, [*first.blocks, Paragraph(said)]))
    return [*shown, key_figures(evaluation, results)]


def leaks_of(described: dict[str, Any], few_labels: Path | None, evaluation: Evaluation | None) -> list[str]:
    """Return the leaks of everything that the page shows; each text once."""
    shown = [described["config"], {} if evaluation is None else evaluation.config]
    if few_labels is not None:
        shown.append(read_results(few_labels)[1])
    return list(dict.fromkeys(str(leak) for found in shown for leak in found.get("leaks", ())))


def pack_of(described: dict[str, Any], options: PageOptions) -> Pack:
    """Open the pack that the options name, or else the pack of the run.

    Raises:
        UserError: no pack is named, or it cannot be opened.
    """
    trained_on = options.pack or described["config"].get("pack")
    if not isinstance(trained_on, str | Path):
        raise UserError(f"expected one in {options.run / 'config.json'}, found none; give its --pack")
    return open_pack(trained_on)


def network_sections(described: dict[str, Any], pack: Pack, options: PageOptions) -> list[Section]:
    """Return the sections on the network's predictions for test images, and a map of its features."""
    from engine.report.embedding import embedding_section

    config = described["config"]
    split = config.get("test_split", "test")
    if not split or (split not in pack.splits and "test_split" not in config):
        return []  # the run was not meant to be tested, so nothing is missing
    tested: Tested | None = look_at_split(options.run, pack, str(split), options.num_tested)
    if tested is None:
        return []
    sections: list[Section] = []
    if tested.probabilities is not None:
        sections += classifier_sections(
            tested, pack, training_counts(options.run, config, pack), options.classes
        )
    return [*sections, embedding_section(tested, pack.classes)]


def classifier_sections(
    tested: Tested, pack: Pack, training: NDArray[np.int64] | None, classes: Sequence[str]
) -> list[Section]:
    """Return the sections on a classifier's predictions for labelled images.

    Args:
        tested: the predictions.
        pack: pack that holds the images.
        training: int64 [C], number of labels of each class that were trained on; None if unknown.
        classes: names of classes whose right and wrong images are shown; by default, those of the best and
            the worst R-precision.
    """
    from engine.report.classifier_sections import ClassifierPages
    from engine.report.rank_sections import RankPages

    shown, ranks = ClassifierPages(pack, tested), RankPages(pack, tested, pack.classes)
    first = [shown.confusion(), shown.images(), ranks.sheets(classes), shown.per_class(training)]
    imbalance = ranks.imbalance(training, shown.report.per_class)
    return [*first, shown.confidence_section(), ranks.precision(), imbalance]


def training_counts(run: Path, config: dict[str, Any], pack: Pack) -> NDArray[np.int64] | None:
    """Return the number of labels of each class that a run trained on, int64 [C]; None if unknown."""
    if "labeled_split" not in config:
        return None
    try:
        few = (config.get("labels_per_class"), int(config.get("label_seed", 0)))
        extra = [Path(text) for text in config.get("extra_labels", ())]
        table = training_labels(pack, str(config["labeled_split"]), *few, extra)
        table = table.of_rows(not_set_aside(run, table))
    except (UserError, OSError, ValueError, TypeError):  # the run is of another version, or a table is gone
        return None
    return np.bincount(table.label, minlength=len(pack.classes))


def original_pixels(pack: Pack, rows: Tensor, resolution: int) -> Tensor:
    """Return uint8 [N, 3, H, W], the centred squares of the images in `rows` of a pack, in that order."""
    wanted = rows.tolist()
    order = sorted(set(wanted))
    if not 0 <= order[0] <= order[-1] < len(pack):
        raise UserError(
            f"views: expected rows 0 to {len(pack) - 1}, found {order[0]} to {order[-1]}; give the run's own "
            "pack with --pack"
        )
    view = EvaluationView.usual(resolution)
    options = LoaderOptions(num_threads=1)
    with build_rows_loader(pack, np.array(order), view, options, batch_size=len(order)) as loader:
        (batch,) = loader.epoch(0)
    return to_pixels(batch.views[0], view.mean, view.std)[[order.index(row) for row in wanted]]


def _shown(runs: Sequence[Path]) -> Path:
    """Return the first folder of a run that recorded its first views, or the first folder if none did."""
    return next((run for run in runs if (run / SAMPLES_NAME).is_file()), runs[0])


def views_section(runs: Sequence[Path], pack: Pack, num_images: int) -> Section:
    """Return a sheet of training images, each above its views, from the first run that recorded them."""
    run = _shown(runs)
    views, rows = load_samples(run)
    views, rows = tuple(view[:num_images] for view in views), rows[:num_images]
    originals = original_pixels(pack, rows, views[0].shape[-1])
    mean, std = normalization_of(run)
    names = [f"view {chr(ord('a') + i)}" for i in range(len(views))]
    sheet = contact_sheet(
        [("image", originals), *((n, to_pixels(v, mean, std)) for n, v in zip(names, views, strict=True))],
        caption=f"The first {len(rows)} images of the first batch, and what the network saw of each.",
    )
    return Section("Views", [sheet])


def feature_maps(runs: Sequence[Path], pack: Pack) -> Section:
    """Return the first run's feature maps for recorded training images, or for the pack's first images."""
    from engine.report.feature_maps import maps_section

    try:
        rows = [row for row in load_samples(_shown(runs))[1].tolist() if row < len(pack)]
    except UserError:  # a run that was stopped before its first step, or an older one
        rows = []
    return maps_section(runs[0], pack, rows or range(len(pack)))


def phases_of(run: Path) -> list[Path]:
    """Return the folders of a command's training phases, in order; none if the command trains only once."""
    if (run / METRICS_NAME).is_file():
        return []
    phases = (path.parent for path in run.glob(f"*/{METRICS_NAME}"))
    return sorted(phases, key=lambda phase: (phase.name != "start", natural(phase.name)))


def read_logs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the records of successive trainings, with the steps of each counted on from the one before."""
    joined: list[dict[str, Any]] = []
    for run in runs:
        first = joined[-1]["step"] if joined else 0
        joined += [{**record, "step": record["step"] + first} for record in read_metrics(run / METRICS_NAME)]
    return joined


def phases_section(phases: Sequence[Path]) -> Section:
    """Return a table of the training phases of a command."""
    rows = []
    for phase in phases:
        records, accuracy = read_metrics(phase / METRICS_NAME), read_accuracy(phase)
        best = accuracy.get("ema", accuracy.get("raw"))
        held = [record["validation_top1"] for record in records if "validation_top1" in record]
        steps = records[-1]["step"] if records else 0
        rows.append(
            (
                phase.name,
                "-" if best is None else accuracy_cell(best.top1, best.num_images),
                percent(held[-1]) if held else "-",
                f"{steps:,}",
            )
        )
    columns = ("phase", "accuracy (95 % interval)", "validation", "steps")
    caption = "Each phase continues an earlier one; the curves join them."
    return Section("Phases", [Table(columns, rows, caption)])


def speed_section(records: Sequence[dict[str, Any]]) -> Section:
    """Return the speed of the run, and whether it waited for data or for the network."""
    timed = [r for r in records if r.get("img_per_s")]
    if not timed:
        return Section("Speed", [])
    # The first log window includes compiling and warming up, so it is left out if there are others.
    timed = timed[1:] or timed
    rate = len(timed) / sum(1 / r["img_per_s"] for r in timed)
    wait = sum(r.get("wait_share", 0.0) for r in timed) / len(timed)
    tiles = [
        Tile(f"{rate:,.0f}", "images per second", "without the first log window"),
        Tile(f"{100 * wait:.1f} %", "of the time waiting for data", ""),
    ]
    bound = (
        "The run waited for data: tools/doctor.py says for what, and what would help."
        if wait > 0.1
        else "The network was the bottleneck: faster loading would change little."
    )
    return Section("Speed", [Tiles(tiles), Paragraph(bound)])


def bad_rows_section(run: Path, pack: Pack | None) -> Section:
    """Return a table of the first images that could not be read."""
    bad = read_bad_rows(run)
    if not bad:
        return Section("Images that could not be read", [])
    rows = [
        (str(row), pack.key(row) if pack is not None and row < len(pack) else "", reason)
        for row, reason in list(bad.items())[:_SHOWN_BAD_ROWS]
    ]
    caption = f"{len(bad):,} in all; another image took the place of each in training. See bad_rows.jsonl."
    table = Table(("row", "key", "reason"), rows, caption, numeric=False)
    return Section("Images that could not be read", [table])


def commands_of(options: PageOptions) -> list[Block]:
    """Return the commands that led to the run: those in `options`, or else the one kept in the folder."""
    path = options.run / COMMAND_NAME
    lines = options.commands
    if not lines and path.is_file():
        lines = tuple(path.read_text("utf-8", errors="replace").splitlines())
    if not lines:
        return []
    return [Paragraph("The commands, in order:" if len(lines) > 1 else "The command:"), Command(lines)]


def leave_page(run: Path, build: Callable[[], str] | None = None) -> None:
    """Write the page of a finished run, on rank 0; a failure prints a line and raises no error.

    Args:
        run: folder of the run; the command line of this process is written there, too.
        build: makes the page; `build_run_page` by default.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    page = run / PAGE_NAME
    try:
        command = ("python", *sys.argv) if sys.argv[0].endswith(".py") else tuple(sys.argv)
        write_atomic(run / COMMAND_NAME, (shlex.join(command) + "\n").encode("utf-8", "surrogateescape"))
        text = build_run_page(PageOptions(run)) if build is None else build()
        write_atomic(page, text.encode("utf-8", "replace"))
    except (UserError, OSError, ValueError, RuntimeError) as error:
        # The training is done and saved, so an error of the page must not look like a failed training.
        said = f"report: not written ({one_line(str(error))}); try python tools/report.py --run {run}"
        print(as_called(said))
        return
    print(f"report: {page}")


def accuracy_cell(top1: float, count: int) -> str:
    """Return an accuracy with its interval for a table, such as "93.1 % (91.2 to 94.6)"."""
    from engine.report.classifier_sections import interval

    low, high = interval(round(top1 * count), count)
    return f"{percent(top1)} ({100 * low:.1f} to {100 * high:.1f})"
