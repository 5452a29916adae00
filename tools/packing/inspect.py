"""Looking at a finished pack: the figures in the terminal, the page, and what a pipeline fails on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from loaders.cores import available_cores
from loaders.packs import Pack
from loaders.packs.findings import Findings, find_copies
from loaders.packs.manifest import QUARANTINE_NAME
from tools.packing.page import write_page

Fault = Literal["leak", "duplicates", "corrupt"]
_SHOWN_REASONS = 5
_NOT_CORRUPT = (
    "not an image",
    "a later member of the archive has the same name",
    "the same file was given before",
)


def inspect_pack(pack: Pack, near: bool, workers: int, console: Console) -> Findings:
    """Find copies and leaks, print what was found, and write the page into the pack.

    Args:
        pack: the pack.
        near: also look for images that look the same.
        workers: threads that decode, 0 for one per core.
        console: where the figures go.
    """
    findings = find_copies(pack, near, workers or available_cores())
    reasons = quarantine_reasons(pack)
    console.print(
        f"{findings.num_copies:,} exact copies within a split, {findings.num_leaks:,} in two splits"
    )
    for (a, b), count in findings.leaks.items():
        console.print(f"  {count:,} images of {a} are also in {b}")
    if findings.num_near is not None:
        console.print(f"{findings.num_near:,} pairs look the same with different bytes")
    for reason, count in reasons.most_common(_SHOWN_REASONS):
        console.print(f"  {count:,} quarantined: {reason}", markup=False)
    console.print(f"page: {write_page(pack, findings, reasons)}")
    return findings


def quarantine_reasons(pack: Pack) -> Counter[str]:
    """Return how many inputs were quarantined for each reason."""
    with open(pack.path / QUARANTINE_NAME, encoding="utf-8") as file:
        return Counter(json.loads(line)["reason"] for line in file)


def faults_found(pack: Pack, findings: Findings, fail_on: Sequence[Fault]) -> list[str]:
    """Return one line for each fault of `fail_on` that the pack has."""
    corrupt = sum(count for reason, count in quarantine_reasons(pack).items() if reason not in _NOT_CORRUPT)
    counts: dict[Fault, tuple[int, str]] = {
        "leak": (findings.num_leaks, "images stand in two splits"),
        "duplicates": (findings.num_copies, "images are exact copies of another"),
        "corrupt": (corrupt, "inputs are damaged or cannot be read"),
    }
    return [f"{fault}: {counts[fault][0]:,} {counts[fault][1]}" for fault in fail_on if counts[fault][0]]
