"""What decides a loader's batches, as a short text that ranks compare before they start."""

from __future__ import annotations

import hashlib

from loaders.packs import LabelTable, Split


def fingerprint(splits: tuple[Split, ...], tables: tuple[LabelTable | None, ...], *options: object) -> str:
    """Return a digest of packs, splits, label tables and options.

    Args:
        splits: by the manifests of their packs, which hold the checksums of index and true labels, and by
            their rows; where a pack lies plays no part.
        tables: label tables besides the true labels.
        options: whatever else the batches depend on, each with a `repr` that says all of it.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr((split.pack.manifest, split.name)).encode())
        digest.update(repr(split.row_ranges).encode())
    for table in tables:
        if table is not None:
            for column in (table.row, table.label):
                digest.update(column.tobytes())
    digest.update(repr(options).encode())
    return digest.hexdigest()[:32]
