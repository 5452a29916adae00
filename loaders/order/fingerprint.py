"""The fingerprint of a loader: short texts for everything that decides its batches."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from loaders.packs import LabelTable, Pack, Split
from loaders.packs.manifest import SOURCES_DIGEST


def fingerprint(
    splits: tuple[Split, ...], tables: tuple[LabelTable | None, ...], views: object, **options: object
) -> dict[str, str]:
    """Return everything that a loader's batches depend on, by name.

    The number of ranks is not part of it: any number of them shares the same global batches.

    Args:
        splits: by the manifests of their packs, which hold the checksums of index and true labels, and by
            their rows; where a pack lies plays no part.
        tables: label tables besides the true labels.
        views: policies, whose `repr` says all of them.
        options: whatever else the batches depend on, likewise.

    Returns:
        Values that say what they stand for as far as a line allows, and end in a digest where it does not.
    """
    rows = (f"{len(split)} of {split.name} {_digest(split.row_ranges)}" for split in splits)
    facts = {
        "pack": ", ".join(dict.fromkeys(pack_fingerprint(split.pack) for split in splits)),
        "rows": ", ".join(rows),
        "labels": ", ".join("those of the pack" if table is None else _table(table) for table in tables),
        "views": _digest(views),
    }
    return facts | {name.replace("_", " "): str(value) for name, value in options.items()}


def pack_fingerprint(pack: Pack) -> str:
    """Return what tells a pack from others, wherever it lies and whatever its summary said."""
    options = {name: value for name, value in pack.manifest.options.items() if name != SOURCES_DIGEST}
    return f"of {len(pack)} images {_digest(replace(pack.manifest, options=options, notes=()))}"


def _table(table: LabelTable) -> str:
    digest = hashlib.sha256(table.row.tobytes())
    digest.update(table.label.tobytes())
    return f"{len(table)} of a table {digest.hexdigest()[:16]}"


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
