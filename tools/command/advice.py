"""The table of docs/choosing.md on which method to choose, as `sluice train` prints it."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from loaders.common.tables import print_table


class Advice(NamedTuple):
    """One row of the table.

    Attributes:
        topic: labels, images, device or time.
        have: what the user has.
        take: methods to choose, by the names of their files in recipes/, or options.
        why: the reason, such as a measurement or a result of the 2021 report.
    """

    topic: str
    have: str
    take: str
    why: str


ADVICE = (
    Advice(
        "labels",
        "none yet",
        "`vicreg`, then `active --strategy k_centre`",
        "no label is read; k_centre asks for images that cover the features",
    ),
    Advice(
        "labels",
        "1 to 16 per class",
        "`vicreg`, then `transfer`",
        "measured: 24.3 and 30.9 % at 4 and 16; from scratch 19.7 and 26.9 %",
    ),
    Advice(
        "labels",
        "tens per class",
        "the same, then `self_training` and `fixmatch`",
        "minutes with `--guesses average --adaptive-threshold --align`, else hours; pseudo-labels do not "
        "help if the network is right only a quarter of the time",
    ),
    Advice(
        "labels",
        "hundreds per class",
        "`supervised`",
        "measured: 43.6 % at 400; `fixmatch` 34.5 % and `mean_teacher` 35.2 % in the same half minute",
    ),
    Advice(
        "images",
        "unlabelled ones of the same kind",
        "`vicreg`, `simclr` or `barlow`, then `transfer`",
        "measured: one minute brought 4.6, 3.9 and 2.5 points at 4 labels per class",
    ),
    Advice(
        "images",
        "of 32 pixels or less",
        "not `jigsaw` or `patches`",
        "measured: their tiles become a few pixels wide, features no better than an untrained network's",
    ),
    Advice(
        "images",
        "left and right carry meaning",
        "`--flip-p 0`, and not `rotnet`",
        "digits, letters: a mirrored one may be another, and which way is up may be unclear",
    ),
    Advice(
        "device",
        "a processor",
        "`--preset cpu` with any method but `transfer` and `active`",
        "the network is tiny_resnet; most of what was measured here used it and took minutes of one core",
    ),
    Advice(
        "device",
        "a GPU",
        "`--backbone resnet50 --resolution 96`",
        "2021 report: 800 classes at 96 pixels",
    ),
    Advice(
        "time",
        "minutes",
        "`supervised`, or a minute of `vicreg` and then `transfer`",
        "measured: none of eight other methods beat `supervised` in half a minute at 25 and 400 labels per "
        "class",
    ),
    Advice(
        "time",
        "hours",
        "100 epochs of `vicreg` or `barlow`, then `fixmatch --init`",
        "2021 report: 46.6 % fine-tuned, 54.5 % after pseudo-labels and FixMatch",
    ),
    Advice("time", "days", "`pipeline`", "2021 report: 57.5 % at its end"),
)


def print_advice(console: Console) -> None:
    """Print the table."""
    title = "which method to take (docs/choosing.md; measured on CIFAR-10)"
    table = Table("by", "you have", "take", "why", title=title)
    before = ""
    for row in ADVICE:
        if before and row.topic != before:
            table.add_section()
        table.add_row(row.topic if row.topic != before else "", *(text.replace("`", "") for text in row[1:]))
        before = row.topic
    print_table(console, table)
