"""Inspection of a finished pack: figures in the terminal, the page, and the faults that --fail-on names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from loaders.common.command_line import describe_system_error
from loaders.common.cores import available_cores
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.findings import Findings, find_copies
from loaders.packs.manifest import WARNINGS_NAME
from loaders.packs.quarantine import quarantined
from loaders.packs.reasons import Reason
from loaders.packs.sources.naming import is_image_name
from tools.packing.judged import judge
from tools.packing.names import PAGE_NAME
from tools.packing.pack_page import write_page
from tools.packing.warned import read_warnings

Fault = Literal["leak", "duplicates", "corrupt"]
_SHOWN_REASONS = 5
_SHOWN_DOUBTS = 8


@dataclass(frozen=True)
class Quarantine:
    """The content of a pack's quarantine.

    Attributes:
        reasons: number of quarantined inputs per reason.
        num_corrupt: number of inputs that are damaged or cannot be read.
    """

    reasons: Counter[str]
    num_corrupt: int


def inspect_pack(
    pack: Pack,
    near: bool,
    workers: int,
    console: Console,
    page: Path | None = None,
    features: Sequence[Path] = (),
) -> tuple[Findings, Quarantine]:
    """Find copies and leaks, print the findings, and write the page.

    Args:
        near: also search for images that look the same but have different bytes.
        workers: threads that decode, 0 for one per core.
        page: file of the page; None writes `report.html` into the pack.
        features: folders with features of the pack's images, by which labels are judged.
    """
    findings = find_copies(pack, near, workers or available_cores())
    quarantine = read_quarantine(pack)
    console.print(
        f"{findings.num_copies:,} exact copies within a split, {findings.num_leaks:,} in two splits"
    )
    for (a, b), count in findings.leaks.items():
        console.print(f"  {count:,} images of {a} are also in {b}")
    if findings.num_near is not None:
        console.print(f"{findings.num_near:,} pairs look the same with different bytes")
    for reason, count in quarantine.reasons.most_common(_SHOWN_REASONS):
        console.print(f"  {count:,} quarantined: {reason}", markup=False)
    if (hidden := len(quarantine.reasons) - _SHOWN_REASONS) > 0:
        rest = quarantine.reasons.total() - sum(n for _, n in quarantine.reasons.most_common(_SHOWN_REASONS))
        console.print(f"  {rest:,} quarantined for {hidden:,} more reasons: see quarantine.jsonl")
    warnings = read_warnings(pack)
    if warnings.num_warned:
        repaired = f"{warnings.num_repaired:,} of them repaired; " if warnings.num_repaired else ""
        console.print(
            f"{warnings.num_warned:,} images with decoder warnings, {repaired}listed in {WARNINGS_NAME}"
        )
    judged = judge(pack, features)
    if judged is not None:
        console.print(judged.said_of_labels, soft_wrap=True)
        for row, guess in zip(judged.doubted[:_SHOWN_DOUBTS].tolist(), judged.guess.tolist(), strict=False):
            console.print(
                f"  {pack.key(row)}: neighbours say {pack.classes[guess]}", markup=False, soft_wrap=True
            )
        if judged.num_others:
            console.print(judged.said_of_others, soft_wrap=True)
    path = page or pack.path / PAGE_NAME
    try:
        write_page(pack, findings, quarantine.reasons, warnings, path, judged)
    except OSError as error:
        # The user may have no right to write into the pack; the figures have been printed anyway.
        line = describe_system_error(error)
        if line is None:
            raise
        console.print(f"page: not written, {line}", markup=False, soft_wrap=True)
    else:
        console.print(f"page: {path}")
    return findings, quarantine


def read_quarantine(pack: Pack) -> Quarantine:
    """Count the quarantined inputs of a pack."""
    reasons: Counter[str] = Counter()
    num_corrupt = 0
    for entry in quarantined(pack.path):
        reasons[entry["reason"]] += 1
        num_corrupt += _is_corrupt(entry)
    return Quarantine(reasons, num_corrupt)


def _is_corrupt(entry: dict[str, str]) -> bool:
    reason = Reason(entry["code"])
    if reason == Reason.NOT_AN_IMAGE:
        # An input is damaged only if it should be an image: its name has an image's suffix, or is a number,
        # as for a row of a table. Other files, such as notes, may lie beside the images.
        return is_image_name(entry["name"]) or entry["name"].rpartition("/")[2].isdigit()
    return reason.is_damage


def parse_faults(texts: Sequence[str]) -> tuple[Fault, ...]:
    """Parse names of faults; each text may hold several, separated by commas.

    Raises:
        UserError: a name is unknown.
    """
    names = [name for text in texts for name in text.split(",") if name]
    known = get_args(Fault)
    for name in names:
        if name not in known:
            raise UserError(f"--fail-on {name}: expected {', '.join(known)}")
    return tuple(fault for fault in known if fault in names)


def faults_found(findings: Findings, quarantine: Quarantine, fail_on: Sequence[Fault]) -> list[str]:
    """Return one line for each fault of `fail_on` that the pack has."""
    counts: dict[Fault, tuple[int, str]] = {
        "leak": (findings.num_leaks, "images are in two splits"),
        "duplicates": (findings.num_copies, "images are exact copies of another"),
        "corrupt": (quarantine.num_corrupt, "inputs are damaged or cannot be read"),
    }
    return [f"{fault}: {counts[fault][0]:,} {counts[fault][1]}" for fault in fail_on if counts[fault][0]]
