"""Records of measurements: lines of JSON, appended to a file that is checked before measuring."""

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
    """The options of every benchmark that writes records."""

    json: Path | None = None
    """Also append records to this file."""

    def __post_init__(self) -> None:
        """Refuse numbers that measure nothing, and a file that takes no records."""
        check_numbers(self)
        check_records(self.json)

    def check_places(self) -> None:
        """Refuse a pack that is not there, before anything is loaded; a store's pack is looked at later."""
        if (pack := getattr(self, "pack", None)) is not None and as_url(str(pack)) is None:
            read_manifest(pack)


def check_records(path: Path | None) -> None:
    """Refuse a file to which no record can be appended, before minutes of measuring.

    Raises:
        UserError: the path is a folder, or a file stands above it.
    """
    if path is None:
        return
    existing = path.exists() and not path.is_dir()  # to append to it takes no right on its folder
    check_file(path, "json", writable=not existing)
    if existing and not os.access(path, os.W_OK):
        raise UserError(f"json: {path} is read-only for this user; give another --json")


def append_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Append one record; do nothing without a path.

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
