"""Results of the fault tests, one JSON line per test, for the table in docs/guarantees.md."""

from __future__ import annotations

import json
import os
from pathlib import Path


def record(fault: str, tries: int, survived: int, note: str) -> None:
    """Check that every try survived, and append the result to the file SLUICE_FAULT_RECORDS, if it is set.

    Args:
        fault: description of the fault.
        tries: number of tries.
        survived: number of tries that ended as `note` says.
        note: what surviving means for this fault.
    """
    path = os.environ.get("SLUICE_FAULT_RECORDS")
    if path:
        line = {"fault": fault, "tries": tries, "survived": survived, "note": note}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert tries > 0
    assert survived == tries, f"{fault}: {tries - survived} of {tries} lost"
