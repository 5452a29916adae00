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

    The number of ranks is left out, because the global batches do not depend on it. They do with a batch
    transform, whose entry names the number (`loaders.transform.transform_facts`).

    Args:
        splits: splits; they count by their rows and by the manifests of their packs, which hold checksums of
            the index and the true labels. The location of a pack does not count.
        tables: label tables; None stands for the true labels.
        views: policies, whose `repr` is complete.
        options: everything else that the batches depend on; it counts by its `str`.

    Returns:
        Readable texts of at most a line; a digest at the end of a text stands for what does not fit.
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
    """Return a text that identifies a pack's content, regardless of its location and its notes."""
    options = {name: value for name, value in pack.manifest.options.items() if name != SOURCES_DIGEST}
    return f"of {len(pack)} images {_digest(replace(pack.manifest, options=options, notes=()))}"


def _table(table: LabelTable) -> str:
    digest = hashlib.sha256(table.row.tobytes())
    digest.update(table.label.tobytes())
    return f"{len(table)} of a table {digest.hexdigest()[:16]}"


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
