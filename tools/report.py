"""Write the report of a run, or of several runs side by side: one HTML page that needs no other file.

Recipes that train or evaluate write such a page at their end. This script writes the page again, with other
options. The page needs no network.

Examples:
    python tools/report.py --run runs/barlow --few-labels runs/transfer --out runs/barlow/report.html
    python tools/report.py --run runs/barlow --beside runs/vicreg runs/simclr --out three.html
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from engine.train.run_config import is_usual
from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file
from loaders.common.program import check_command_line, command_line

_OF_ONE_RUN = ("few_labels", "pack", "commands", "num_images", "num_tested", "classes")


@dataclass(frozen=True)
class Config:
    """Write the report of a run folder as a single HTML file."""

    run: Path
    """Folder that a recipe wrote: a training, evaluate.py's or transfer.py's results, or a pipeline."""
    beside: tuple[Path, ...] = ()
    """Trainings to compare with --run: the page shows figures, curves, and the options that differ."""
    out: Path | None = None
    """File to write; by default report.html in the run folder, or compared.html with --beside."""
    few_labels: Path | None = None
    """Folder of recipes/transfer.py, tools/label_sweep.py or tools/few_labels.py, to show its accuracies."""
    pack: Path | None = None
    """Pack that the run was trained on; by default the one that the run's config.json names."""
    title: str | None = None
    """Heading; by default one made from the folder, or with --beside the number of runs."""
    lead: str = ""
    """A sentence below the heading."""
    commands: Path | None = None
    """Text file with the commands that led to the run; the page shows them, to repeat the run."""
    num_images: Count = 12
    """Images on the sheet of views."""
    num_tested: int = 4000
    """Test images to classify at most, for the confusion matrix and the example images; 0 for none."""
    classes: tuple[str, ...] = ()
    """Classes to show right and wrong images of; by default the two best and the two worst."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, a file that cannot be written, and options that --beside ignores."""
        check_numbers(self)
        check_file(self.page)
        ignored = [option for option in _OF_ONE_RUN if self.beside and not is_usual(self, option)]
        if ignored:
            raise UserError(
                f"{ignored[0]}: expected none with --beside, whose page does not show it, found "
                f"{getattr(self, ignored[0])}; leave out one of them"
            )

    @property
    def page(self) -> Path:
        """File to write."""
        return self.out or self.run / ("compared.html" if self.beside else "report.html")

    def check_places(self) -> None:
        """Refuse missing run folders, before anything is loaded."""
        for run in (self.run, *self.beside):
            if not run.is_dir():
                option = "run" if run == self.run else "beside"
                raise UserError(f"{option}: expected a run folder, found none at {run}; check the path")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from engine.report.other_pages import CLASSIFICATION_NAME, build_page, compare_page
from engine.report.run_page import PageOptions
from engine.train.run_folder import say_next_of_run
from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json


def build_report(config: Config) -> str:
    """Return the page as HTML text."""
    if config.beside:
        return compare_page((config.run, *config.beside), config.title, config.lead)
    options = {f.name: getattr(config, f.name) for f in fields(PageOptions)}
    return build_page(PageOptions(**{**options, "commands": _commands(config.commands)}))


def _commands(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not path.is_file():
        raise UserError(f"commands: expected a text file at {path}, found none; leave out --commands")
    try:
        return tuple(path.read_text("utf-8").splitlines())
    except ValueError as error:
        raise UserError(
            f"commands: expected UTF-8 text in {path}, found other bytes ({error}); give its commands"
        ) from None


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    page = build_report(config)
    config.page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.page, page.encode("utf-8", "replace"))
    print(f"report: {len(page) / 1e6:.1f} MB -> {config.page}")
    evaluated, run = config.run / CLASSIFICATION_NAME, config.run
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is no evaluation, or it is damaged
        run = Path(parse_json(evaluated.read_bytes())["config"]["run"])
    say_next_of_run(run)


if __name__ == "__main__":
    run_command(main)
