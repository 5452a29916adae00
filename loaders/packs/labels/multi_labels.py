"""Several labels per image, in a table of their own that no recipe reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import atomic_file
from loaders.packs.manifest import MULTI_LABELS_NAME, FileInfo
from loaders.packs.sources.numbers import list_text, names_of

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class MultiLabels:
    """The labels of the rows that have a list of labels, in increasing order of row.

    Attributes:
        row: int64 [M], rows of the pack.
        first: int64 [M + 1], where the labels of each row begin in `label`, and the end.
        label: int64 [K], indices of classes of the pack; the list of a row may be empty.
    """

    row: NDArray[np.int64]
    first: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def read(cls, pack: Path, num_classes: int) -> MultiLabels:
        """Read the table of a pack with `num_classes` classes.

        Raises:
            UserError: there is no such table, or it is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = pack / MULTI_LABELS_NAME
        try:
            table = pq.ParquetFile(path, pre_buffer=False).read(["row", "labels"], use_threads=False)
            lists = table.column("labels").combine_chunks().cast(pa.large_list(pa.int64()))
            first, label = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
            row = table.column("row").to_numpy()
            if table.column("row").null_count or (np.diff(row) <= 0).any() or lists.null_count:
                raise ValueError("rows out of order or without labels")
            if label.dtype != np.int64 or (len(label) and not 0 <= label.min() <= label.max() < num_classes):
                raise ValueError(f"labels out of the range 0 to {num_classes - 1}")
            return cls(row, first, label)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read ({reason}): restore it or pack again") from None

    def of_row(self, row: int) -> NDArray[np.int64] | None:
        """Return int64 [K], the labels of a row; None if the row has no list of labels."""
        place = int(np.searchsorted(self.row, row))
        if place == len(self.row) or self.row[place] != row:
            return None
        return self.label[self.first[place] : self.first[place + 1]]

    def as_text(self, row: int, classes: tuple[str, ...]) -> str | None:
        """Return the labels of a row in the form of sources, a JSON list of names; None as in `of_row`."""
        labels = self.of_row(row)
        return None if labels is None else list_text([classes[label] for label in labels.tolist()])


def write_multi_labels(
    target: Path,
    given: Iterable[tuple[int, str]],
    classes: tuple[str, ...],
    base: MultiLabels | None,
) -> FileInfo:
    """Write the table of a pack.

    Args:
        given: rows in increasing order, each with the label text from its source, see `names_of`.
        base: labels of the pack to which rows are appended; they come before `given`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number_of = {name: number for number, name in enumerate(classes)}
    schema = pa.schema([("row", pa.int64()), ("labels", pa.list_(pa.int64()))])
    final = target / MULTI_LABELS_NAME
    final.parent.mkdir(exist_ok=True)

    def entries() -> Iterator[tuple[int, list[int]]]:
        for place, row in enumerate(() if base is None else base.row.tolist()):
            yield row, base.label[base.first[place] : base.first[place + 1]].tolist()  # type: ignore[union-attr]
        for row, text in given:
            yield row, [number_of[name] for name in names_of(text)]

    with atomic_file(final) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        rows: list[int] = []
        labels: list[list[int]] = []
        for row, several in entries():
            rows.append(row)
            labels.append(several)
            if len(rows) == _ROWS_AT_ONCE:
                writer.write_table(pa.table([rows, labels], schema=schema))
                rows, labels = [], []
        writer.write_table(pa.table([rows, labels], schema=schema))
    return FileInfo.of(target, MULTI_LABELS_NAME)
