r"""Write a run's report: one HTML page with the views trained on, the curves, the accuracies and the options.

Example:
    python tools/report.py --run runs/barlow --few-labels runs/transfer --out runs/barlow/report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import check_numbers, run_command
from loaders.common.files import check_file
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Render a run folder as one HTML file that needs no other."""

    run: Path
    """Run folder."""
    out: Path | None = None
    """File to write; by default report.html in the run folder."""
    few_labels: Path | None = None
    """Folder that recipes/transfer.py wrote, for the accuracies with few labels."""
    pack: Path | None = None
    """Pack the run was trained on; by default where its configuration says."""
    title: str | None = None
    """Heading; by default the recipe and the run folder."""
    lead: str = ""
    """A sentence below the heading."""
    commands: Path | None = None
    """Text file with the command lines that led here, to show as the way to repeat them."""
    num_images: int = 12
    """Images on the sheet of views."""

    def __post_init__(self) -> None:
        """Refuse a sheet of nothing, and a file that cannot be written."""
        check_numbers(self)
        check_file(self.page)

    @property
    def page(self) -> Path:
        """File to write."""
        return self.out or self.run / "report.html"


if __name__ == "__main__":  # before the imports that take seconds
    check_command_line(Config, __doc__)


import numpy as np
from torch import Tensor

from engine.evaluate.few_labels import FewLabelResult, read_results
from engine.evaluate.results import Evaluation, read_evaluation
from engine.report.page import Command, Paragraph, Section, render_page
from engine.report.sections import (
    configuration_section,
    curves_section,
    few_labels_section,
    frozen_section,
    key_figures,
    leaks_section,
)
from engine.report.sheets import contact_sheet, to_pixels
from engine.train.metrics import read_metrics
from engine.train.run_folder import read_run
from engine.train.samples import load_samples
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.packs import Pack, Split
from loaders.views import presets


def original_pixels(pack: Pack, rows: Tensor, resolution: int) -> Tensor:
    """Return uint8 [N, 3, H, W], the centred squares of these rows of a pack, in their order."""
    wanted = rows.tolist()
    order = sorted(set(wanted))
    if not 0 <= order[0] <= order[-1] < len(pack):
        raise UserError(
            f"views: expected rows 0 to {len(pack) - 1}, found {order[0]} to {order[-1]}; give the run's own "
            "pack with --pack"
        )
    loader = build_loader(
        Split(pack, "shown", ((0, len(pack)),)).take(np.array(order)),
        options=LoaderOptions(num_threads=1, dtype="uint8"),
        views=(presets.evaluation(resolution),),
        batch_size=len(order),
        mode="eval",
    )
    try:
        (batch,) = loader.epoch(0)
    finally:
        loader.close()
    return batch.views[0][[order.index(row) for row in wanted]]


def views_section(run: Path, pack: Pack, num_images: int) -> Section:
    """Return the sheet of the first images a run was trained on, each above its views."""
    views, rows = load_samples(run)
    views, rows = tuple(view[:num_images] for view in views), rows[:num_images]
    mean, std = presets.IMAGENET.mean, presets.IMAGENET.std
    originals = original_pixels(pack, rows, views[0].shape[-1])
    names = [f"view {chr(ord('a') + i)}" for i in range(len(views))]
    sheet = contact_sheet(
        [("image", originals), *((n, to_pixels(v, mean, std)) for n, v in zip(names, views, strict=True))],
        caption=f"The first {len(rows)} images of the first batch, and what the network saw of each.",
    )
    return Section("Views", [sheet])


def few_label_results(config: Config) -> list[FewLabelResult]:
    """Return the few-label results to show, none where no folder was given."""
    return [] if config.few_labels is None else read_results(config.few_labels)[0]


def leaks_of(config: Config, evaluation: Evaluation | None) -> list[str]:
    """Return what was learned from and measured on at once, by whatever the page shows; each text once."""
    shown = [read_run(config.run)["config"], {} if evaluation is None else evaluation.config]
    if config.few_labels is not None:
        shown.append(read_results(config.few_labels)[1])
    return list(dict.fromkeys(str(leak) for described in shown for leak in described.get("leaks", ())))


def build_report(config: Config) -> str:
    """Return the page as HTML text."""
    described, commands = read_run(config.run), _commands(config.commands)
    evaluation, results = read_evaluation(config.run), few_label_results(config)
    sections: list[Section] = [key_figures(evaluation, results), leaks_section(leaks_of(config, evaluation))]
    if results:
        sections.append(few_labels_section(results))
    if evaluation is not None:
        sections.append(frozen_section(evaluation))
    trained_on = config.pack or described["config"].get("pack")
    if not isinstance(trained_on, str | Path):
        raise UserError(f"pack: expected one in {config.run / 'config.json'}, found none; give its --pack")
    pack = open_pack(trained_on)
    sections.append(views_section(config.run, pack, config.num_images))
    sections.append(curves_section(read_metrics(config.run / "metrics.jsonl")))
    sections.append(configuration_section(described, commands))
    title = config.title or f"{described['recipe']}: {config.run.name}"
    return render_page(
        title, config.lead, sections, footer="Written by Sluice from the run folder's own records."
    )


def _commands(path: Path | None) -> list[Paragraph | Command]:
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"commands: expected a text file at {path}, found none; leave out --commands")
    try:
        text = path.read_text("utf-8")
    except ValueError as error:
        raise UserError(
            f"commands: expected UTF-8 text in {path}, found other bytes ({error}); give its commands"
        ) from None
    return [Paragraph("The commands, in order:"), Command(text.splitlines())]


def main() -> None:
    """Run the command line."""
    config = command_line(Config, __doc__)
    page = build_report(config)
    config.page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.page, page.encode())
    print(f"report: {len(page) / 1e6:.1f} MB -> {config.page}")


if __name__ == "__main__":
    run_command(main)
