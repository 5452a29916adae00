"""What the fault tests met, one JSON line per test, for the table in docs/guarantees.md."""

from __future__ import annotations

import json
import os
from pathlib import Path


def record(fault: str, tries: int, survived: int, note: str) -> None:
    """Check that nothing was lost, and note the outcome where SLUICE_FAULT_RECORDS names a file.

    Args:
        fault: what was done.
        tries: how often.
        survived: how often it ended as `note` says.
        note: what surviving means for this fault.
    """
    path = os.environ.get("SLUICE_FAULT_RECORDS")
    if path:
        line = {"fault": fault, "tries": tries, "survived": survived, "note": note}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert tries > 0
    assert survived == tries, f"{fault}: {tries - survived} of {tries} lost"
