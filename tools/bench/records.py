"""Records of measurements: lines of JSON, appended to a file that is checked before the measurement."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.common.checks import check_numbers
from loaders.common.errors import UserError
from loaders.common.files import check_file
from loaders.packs.manifest import read_manifest
from loaders.packs.stores.connect import as_url


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The option --json of most benchmarks, and checks of their options."""

    json: Path | None = None
    """Also append records to this file."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a file to which no record can be appended."""
        check_numbers(self)
        check_records(self.json)

    def check_places(self) -> None:
        """Refuse a missing local pack before heavy imports; a pack in a store is checked on opening."""
        if (pack := getattr(self, "pack", None)) is not None and as_url(str(pack)) is None:
            read_manifest(pack)


def check_records(path: Path | None) -> None:
    """Refuse a file to which no record can be appended, before minutes of measuring.

    Raises:
        UserError: the path is a folder, one of its parents is a file, or the user may not write to it.
    """
    if path is None:
        return
    existing = path.exists() and not path.is_dir()  # appending needs no write permission on the folder
    check_file(path, "json", writable=not existing)
    if existing and not os.access(path, os.W_OK):
        raise UserError(f"json: {path} is read-only for this user; give another --json")


def append_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Append one record to a file; do nothing if the path is None.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(f"json: {path} cannot be written ({error.strerror}); give another --json") from None
