"""A finished pack and its splits, as the loaders read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs.columns import IndexColumns, open_columns
from loaders.packs.labels.class_names import joined_class_names
from loaders.packs.labels.tables import LabelTable, label_table_path
from loaders.packs.manifest import (
    BUILD_FOLDER,
    MANIFEST_NAME,
    SHARDS_FOLDER,
    TRUE_LABELS,
    Manifest,
    read_manifest,
)
from loaders.packs.mapped import map_file
from loaders.packs.stores.connect import as_url, connect, store_errors
from loaders.packs.stores.store import StoreOptions

LabelTables = LabelTable | tuple[LabelTable, ...] | None
"""One label table; several tables, for images with several classes; or None for the true labels."""


class Split:
    """Some rows of a pack, kept as contiguous ranges, so that a large split opens as fast as a small one."""

    def __init__(self, pack: Pack, name: str, row_ranges: tuple[tuple[int, int], ...]) -> None:
        """Store the ranges (first row, stop row); callers use `Pack.split` instead."""
        self.pack = pack
        self.name = name
        self.row_ranges = row_ranges
        sizes = np.array([stop - first for first, stop in self.row_ranges], np.int64)
        self._stops = np.cumsum(sizes)
        # For a position in range i, the row is position + self._shifts[i].
        self._shifts = np.array([first for first, _ in self.row_ranges], np.int64) - (self._stops - sizes)

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._stops[-1])

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Convert positions in the split to rows of the pack.

        Args:
            positions: int64 of any shape, in [0, len(self)).

        Returns:
            int64 of the same shape.

        Raises:
            IndexError: a position outside the split.
        """
        positions = np.asarray(positions, np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            raise IndexError(f"position outside split {self.name!r} of {len(self)} images")
        shifts: NDArray[np.int64] = self._shifts
        if len(shifts) > 1:
            shifts = shifts[np.searchsorted(self._stops, positions, "right")]
        rows: NDArray[np.int64] = positions + shifts
        return rows

    def take(self, positions: NDArray[np.int64]) -> Split:
        """Return a split of only the rows at these positions, such as a few labelled images of each class.

        Args:
            positions: int64 [K], strictly increasing, in [0, len(self)); K at least 1.

        Returns:
            A split of the same name with K images, in the same order.

        Raises:
            IndexError: a position outside the split.
            ValueError: no positions, or positions that are not strictly increasing.
        """
        positions = np.asarray(positions, np.int64)
        if len(positions) == 0 or (np.diff(positions) <= 0).any():
            raise ValueError(
                f"take: expected strictly increasing positions, at least 1; got {len(positions)}"
            )
        rows = self.rows(positions)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts = rows[np.concatenate([[0], breaks])]
        stops = rows[np.concatenate([breaks - 1, [len(rows) - 1]])] + 1
        return Split(self.pack, self.name, tuple(zip(firsts.tolist(), stops.tolist(), strict=True)))

    def repeat(self, times: int) -> Split:
        """Return a split in which every row is repeated `times` (at least 1) times, side by side."""
        rows = self.rows(np.arange(len(self))).tolist()
        return Split(self.pack, self.name, tuple((row, row + 1) for row in rows for _ in range(times)))

    def labeled_by(self, table: LabelTables = None) -> Split:
        """Return a split of only those rows that have a label.

        Args:
            table: label table to look up; the true labels by default. With several tables, a row occurs once
                for every table that labels it, unless the split repeats rows already.

        Raises:
            UserError: no row of the split has a label, `table` does not fit the pack, or images have several
                true labels.
        """
        if table is None:
            self.pack.require_one_label()
        if isinstance(table, tuple) and (self._occurrences() == 0).all():
            rows = self.rows(np.arange(len(self)))
            times = sum((self.labels(one) >= 0).astype(np.int64) for one in table)
            repeated = np.repeat(rows, times).tolist()
            if repeated:
                return Split(self.pack, self.name, tuple((row, row + 1) for row in repeated))
        positions = np.flatnonzero(self.labels(table) >= 0)
        if len(positions) == 0:
            raise UserError(
                f"split {self.name!r}: expected rows with a label, found none in the label table; give the "
                "labelled split, or a table of its rows"
            )
        return self if len(positions) == len(self) else self.take(positions)

    def _occurrences(self) -> NDArray[np.int64]:
        """Return int64 [len(self)]: how many positions directly before each position hold the same row."""
        rows = self.rows(np.arange(len(self)))
        places = np.arange(len(rows))
        starts = np.concatenate([[True], rows[1:] != rows[:-1]])
        occurrences: NDArray[np.int64] = places - np.maximum.accumulate(np.where(starts, places, 0))
        return occurrences

    def labels(self, table: LabelTables = None) -> NDArray[np.int64]:
        """Return int64 [len(self)], the label of each position, -1 where there is none.

        Args:
            table: label table to look up; the true labels by default. With several tables, the copies of a
                repeated row take their labels in turn from the tables that label the row.

        Raises:
            UserError: `table` is no label table, or belongs to another pack.
        """
        if isinstance(table, tuple):
            labels = np.stack([self.labels(one) for one in table])
            known = labels >= 0
            turn = self._occurrences() % np.maximum(1, known.sum(0))
            place = np.argmax(known & (np.cumsum(known, 0) == turn + 1), 0)  # 0 where no table has a label
            of_turn: NDArray[np.int64] = labels[place, np.arange(len(self))]
            return of_turn
        dense = self.pack.checked_labels(table).dense(len(self.pack))
        return np.concatenate([dense[first:stop] for first, stop in self.row_ranges])


class Pack:
    """A finished pack, opened read-only; images and labels are read only when they are needed."""

    def __init__(self, path: Path, manifest: Manifest, columns: IndexColumns) -> None:
        """Keep the parts of an opened pack; callers use `open_pack` instead."""
        self.path = path
        self.manifest = manifest
        self.columns = columns
        self.splits = tuple(split.name for split in manifest.splits)
        self.classes = joined_class_names(path, manifest.classes)
        self.num_shards = manifest.num_shards
        self._maps: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        """Return the number of images (rows)."""
        return self.manifest.num_images

    def split(self, name: str) -> Split:
        """Return the split `name`.

        Raises:
            UserError: the pack has no such split.
        """
        for info in self.manifest.splits:
            if info.name == name:
                return Split(self, name, tuple((rows.first_row, rows.stop_row) for rows in info.ranges))
        names = ", ".join(self.splits)
        raise UserError(f"the pack {self.path} has no split {name!r}; it has: {names}; give one of them")

    def pool(self, names: Sequence[str]) -> Split:
        """Return several splits as one, in the order of their rows.

        Raises:
            UserError: no name, or a name that the pack does not have.
        """
        if not names:
            raise UserError(f"pool: expected one or more of {', '.join(self.splits)}, found none")
        distinct = tuple(dict.fromkeys(names))
        ranges = sorted(r for name in distinct for r in self.split(name).row_ranges)
        return Split(self, "+".join(distinct), tuple(ranges))

    @cached_property
    def labels(self) -> LabelTable:
        """The table of the true labels, which came with the images."""
        table = LabelTable.read(self.path / label_table_path(TRUE_LABELS), len(self))
        return self.widened(table)

    def widened(self, table: LabelTable) -> LabelTable:
        """Return the table, with the pack's number of classes if it was written before classes were added."""
        is_older = len(self.manifest.classes) <= table.num_classes < len(self.classes)
        return replace(table, num_classes=len(self.classes)) if is_older else table

    def signed(self, table: LabelTable) -> LabelTable:
        """Return a label table with the digest of its images, so that packs of other images refuse it."""
        return replace(table, images=table.digest(self.columns.content_hash))

    def check_images(self, table: LabelTable, what: str) -> None:
        """Refuse a label table that was made for other images.

        Args:
            table: if the table has no digest of its images, only its rows are checked.
            what: beginning of the error message.

        Raises:
            UserError: the table has the digest of other images, or rows that this pack does not have.
        """
        if len(table) and table.row[-1] >= len(self):
            raise UserError(
                f"{what}: expected rows below {len(self)} as in the pack {self.path}, found row "
                f"{table.row[-1]}; it belongs to another pack"
            )
        if table.images and table.images != table.digest(self.columns.content_hash):
            raise UserError(
                f"{what}: expected labels of the images of the pack {self.path}, found those of other images "
                "in the same rows; it belongs to another pack: `tools/labels.py export` there and `import` "
                "here carry labels over by name"
            )

    @property
    def is_multi_label(self) -> bool:
        """Whether images have several labels; `MultiLabels` then holds these, and `labels` is empty."""
        return bool(self.manifest.options.get("multi_label"))

    def require_one_label(self) -> None:
        """Raise `UserError` if images have several labels, for callers that need one class per image."""
        self.manifest.require_one_label(self.path)

    def checked_labels(self, table: LabelTable | None) -> LabelTable:
        """Check that a label table fits this pack, and return it; None stands for the true labels.

        A pack without class names accepts any number of classes.

        Raises:
            UserError: `table` is no label table, has another number of classes, or belongs to other images.
        """
        table = self.labels if table is None else table
        if not isinstance(table, LabelTable):
            raise UserError(
                f"labels: expected a LabelTable, found {type(table).__name__}; make one with LabelTable.of "
                "or LabelTable.read"
            )
        table = self.widened(table)
        if self.classes and table.num_classes != len(self.classes):
            raise UserError(
                f"labels: expected a table of the {len(self.classes)} classes of the pack {self.path}, found "
                f"one of {table.num_classes}; it belongs to another pack"
            )
        self.check_images(table, "labels")
        return table

    def key(self, row: int) -> str:
        """Return the key of `row`: its split, folders and name, unique in the pack."""
        return self.columns.key(self._checked(row))

    def shard_path(self, shard: int) -> Path:
        """Return the path of shard number `shard`."""
        return self.path / SHARDS_FOLDER / self.manifest.shard_name(shard)

    def shard_map(self, shard: int) -> NDArray[np.uint8]:
        """Return shard `shard` as a read-only uint8 memory map, opened on first use."""
        mapped = self._maps.get(shard)
        if mapped is None:
            path = self.shard_path(shard)
            try:
                mapped = self._maps[shard] = map_file(path)
            except (OSError, ValueError) as error:
                raise UserError(f"shard {path} cannot be read ({error}); restore it or pack again") from None
        return mapped

    def view(self, row: int) -> NDArray[np.uint8]:
        """Return the encoded bytes of `row` without a copy, as a uint8 slice of its shard's memory map.

        Raises:
            UserError: the shard cannot be read or is shorter than the index says, or the index is damaged.
        """
        row = self._checked(row)
        shard = int(self.columns.shard[row])
        if shard >= self.num_shards:
            raise UserError(
                f"row {row} of {self.path} is in shard {shard} of {self.num_shards}: its index is damaged, "
                f"run tools/verify_pack.py and restore the column"
            )
        shard_bytes = self.shard_map(shard)
        first, size = int(self.columns.offset[row]), int(self.columns.size[row])
        if first + size > len(shard_bytes):
            path = self.shard_path(shard)
            raise UserError(
                f"shard {path} has {len(shard_bytes)} bytes, row {row} ({self.key(row)}) ends at "
                f"{first + size}: run tools/verify_pack.py and restore the shard"
            )
        return shard_bytes[first : first + size]

    def locate(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], list[NDArray[np.uint8]]]:
        """Find the encoded bytes of several rows in memory, for compiled code.

        Args:
            rows: int64 [K].

        Returns:
            uint64 [K] addresses, int64 [K] sizes in bytes, and the memory maps that hold the bytes; keep a
            reference to these maps for as long as the addresses are used.

        Raises:
            UserError: a shard cannot be read or is shorter than the index says, or the index is damaged.
        """
        columns = self.columns
        shards = columns.shard[rows].tolist()
        numbers = {shard: number for number, shard in enumerate(dict.fromkeys(shards))}
        if max(numbers, default=0) >= self.num_shards:
            self.view(int(rows[np.argmax(shards)]))  # raises the error that says what is wrong
        maps = [self.shard_map(shard) for shard in numbers]
        which = np.array([numbers[shard] for shard in shards], np.intp)
        begins = np.array([mapped.ctypes.data for mapped in maps], np.uint64)[which]
        room = np.array([len(mapped) for mapped in maps], np.uint64)[which]
        first, sizes = columns.offset[rows], columns.size[rows].astype(np.uint64)
        outside = (sizes > room) | (first > room - sizes)
        if outside.any():
            self.view(int(rows[outside.argmax()]))
        return begins + first, sizes.astype(np.int64), maps

    def read(self, row: int) -> bytes:
        """Return a copy of the encoded bytes of `row`."""
        return self.view(row).tobytes()

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a pack with {len(self)} rows")
        return row


def is_pack(path: str, store: StoreOptions | None = None) -> bool:
    """Tell whether a folder or a URL holds the manifest of a pack.

    Raises:
        UserError: fsspec cannot open the URL, or its file system raises an error of the store; some file
            systems say False instead if the store does not answer.
    """
    url = as_url(path)
    if url is None:
        return (Path(path).expanduser() / MANIFEST_NAME).is_file()
    fs, root = connect(url, store.filesystem if store else None)
    with store_errors(url):
        return bool(fs.exists(f"{root.rstrip('/')}/{MANIFEST_NAME}"))


def open_pack(path: str | os.PathLike[str], store: StoreOptions | None = None) -> Pack:
    """Open a finished pack; for a local one, this takes the same time for any number of images.

    Args:
        path: folder that `tools/pack_dataset.py` wrote, or the URL of a copy of it in a store that fsspec
            knows, such as "s3://bucket/packs/mine" or "https://host/packs/mine".
        store: how to read from a URL.

    Returns:
        The pack; its columns are memory-mapped, and no shard has been opened.

    Raises:
        UserError: there is no pack, or it is unfinished, damaged, of another format version or unreadable;
            for a URL also if fsspec cannot open it, or the cache folder cannot be written.
        StoreError: the store did not deliver the manifest, the index, the labels or the list of shards.
    """
    url = as_url(os.fspath(path))
    if url is not None:
        from loaders.packs.stores.remote_pack import open_remote_pack

        return open_remote_pack(url, store or StoreOptions())
    folder = Path(path).expanduser().absolute()  # absolute, so that the working folder may change
    manifest = read_manifest(folder)
    try:
        return Pack(folder, manifest, open_columns(folder, manifest.num_images))
    except UserError:
        # An append was killed while it moved files into place; the same command finishes it.
        if (folder / BUILD_FOLDER / "next" / MANIFEST_NAME).exists():
            raise UserError(
                f"appending to {folder} is not finished: start the same --append command again"
            ) from None
        raise
