"""Labels in a file of their own: a tensor, an array, a text of numbers, or a list of paths and labels."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs.sources.hugging_face import class_names_of
from loaders.packs.sources.item import Source, SourceItem, printable
from loaders.packs.sources.list_rows import LIST_SUFFIXES, column_names, first_rows, read_rows
from loaders.packs.sources.naming import file_stem, is_image_name, unwanted
from loaders.packs.sources.numbers import NumberedClasses, NumberLabels
from loaders.packs.sources.table_columns import (
    PATH_COLUMNS,
    ColumnOptions,
    find_column,
    find_labels,
    unused_labels,
)

_LOOKED_AT = 4096
_NUMBER = re.compile(r"([0-9]+)")
_IMAGE_COLUMNS = (*PATH_COLUMNS, "id", "key", "name")


class LabeledSource(NumberLabels):
    """A source with labels from a file.

    A list names files by their paths below the root. All of these paths may lack folders or suffixes if they
    stay unique, or begin with the root's own name. A tensor, an array or a text of numbers has one label per
    image. If the images are named 0 to N - 1, image `17.png` takes entry 17; otherwise the i-th image in the
    order of names takes entry i. Names such as `10.png` and `2.png`, whose order by name differs from the
    order by number, are refused, since either order might be that of the labels.
    """

    has_labels = True

    def __init__(self, images: Source, name: str, labels: Path, options: ColumnOptions | None = None) -> None:
        """Label the items of `images`.

        Args:
            images: a folder or an archive.
            name: the source as the user gave it.
        """
        self._images, self._name, self._labels = images, name, labels
        self._options = options or ColumnOptions()
        self._classes = NumberedClasses()
        root = name.partition("#")[0]
        self._root_name = os.path.basename(root.rstrip("/"))
        # A label file inside the folder is not an input.
        self._own = os.path.relpath(labels, root) if os.path.isdir(root) else None

    def items(self) -> Iterator[SourceItem]:
        """Yield the items of the images, with their labels from the file."""
        suffix = self._labels.suffix.lower()
        if suffix in (".pt", ".pth", ".npy"):
            yield from self._by_number(read_label_array(self._labels))
        elif suffix == ".txt" and all(
            list(row) == ["path"] and row["path"].isdigit() for row in first_rows(self._labels, 100)
        ):
            yield from self._by_number(_read_numbers(self._labels))
        elif suffix in LIST_SUFFIXES:
            yield from self._by_name(self._read_names())
        else:
            raise UserError(f"{self._labels}: expected labels in .pt, .npy, {', '.join(LIST_SUFFIXES)}")

    def _inputs(self) -> Iterator[SourceItem]:
        for item in self._images.items():
            if item.name != self._own:
                yield item

    def _by_number(self, labels: NDArray[np.int64]) -> Iterator[SourceItem]:
        # Two passes over the listing: only after the first is it known whether all names are numbers.
        names = [item.name for item in self._inputs() if _is_wanted(item)]
        if len(names) != len(labels):
            raise UserError(
                f"{self._labels} has {len(labels)} labels, the source has {len(names)} images: expected one "
                f"label per image"
            )
        stems = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
        numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
        are_numbers = len(numbers) == len(stems) and sorted(numbers) == list(range(len(stems)))
        if not are_numbers:
            self._refuse_two_orders(names)
        order = iter(numbers if are_numbers else range(len(names)))
        for item in self._inputs():
            label = None
            if _is_wanted(item):
                place = next(order)
                label = self._classes.label(int(labels[place]), f"{self._labels}, label {place}")
            yield item._replace(label=label)

    def _refuse_two_orders(self, names: list[str]) -> None:
        for first, second in pairwise(names):
            if _falls(first, second):
                raise UserError(
                    f"{self._labels}: {printable(first)} comes before {printable(second)} by name and after "
                    f"it by number, so the order of its labels is ambiguous: give a list of path and "
                    f"label, or name the images 0 to {len(names) - 1}"
                )

    def _by_name(self, labels: dict[str, Any]) -> Iterator[SourceItem]:
        call = self._calling(labels)
        named: dict[str, str] = {}
        rows = {name: number for number, name in enumerate(labels, 1)}
        for item in self._inputs():
            name = call(item.name)
            if name not in labels or unwanted(item.name):
                yield item._replace(label=None)
                continue
            if named.get(name, item.name) != item.name:
                raise UserError(
                    f"{self._labels}: {printable(name)} matches both {printable(named[name])} and "
                    f"{printable(item.name)}: give paths below the root"
                )
            named[name] = item.name
            where = f"{self._labels}, row {rows[name]}"
            yield item._replace(label=self._classes.label(labels[name], where))
        if len(named) < len(labels):
            left = [name for name in labels if name not in named]
            raise UserError(
                f"{self._labels} labels {len(left)} files that are not in the source, e.g. "
                f"{', '.join(map(printable, left[:3]))}: expected paths below its root"
            )

    def _calling(self, labels: dict[str, Any]) -> Callable[[str], str]:
        """Return the function that turns the path of a file into its name in the list.

        Of several functions, the one that finds the most files is taken, the first of them on a tie.
        """
        ways: tuple[Callable[[str], str], ...] = (
            _plain,
            lambda name: file_stem(_plain(name)),
            lambda name: f"{self._root_name}/{_plain(name)}",
            lambda name: _plain(name).rpartition("/")[2],
            lambda name: file_stem(_plain(name).rpartition("/")[2]),
        )
        counts = [0] * len(ways)
        for item in self._inputs():
            for place, way in enumerate(ways):
                counts[place] += way(item.name) in labels
            if counts[0] == len(labels):
                break
        return ways[counts.index(max(counts))]

    def _read_names(self) -> dict[str, Any]:
        """Return the label of every name in a list."""
        path, labels, columns = self._labels, dict[str, Any](), None
        for number, row in enumerate(read_rows(path), 1):
            if columns is None:
                columns = self._columns(column_names(first_rows(path, _LOOKED_AT)))
            cell = row.get(columns[0])
            name = "" if cell is None else _plain(str(cell))
            if not name:
                raise UserError(f"{path}, row {number}: no file in column {columns[0]!r}; fill it")
            if name in labels:
                raise UserError(f"{path} labels {printable(name)} twice: expected one row per file")
            labels[name] = row.get(columns[1])
        if columns is None:
            raise UserError(f"{path} labels no file: expected a heading and one row per file")
        self._classes = NumberedClasses(class_names_of(path).get(columns[1]), self._options.multi_label)
        return labels

    def _columns(self, names: list[str]) -> tuple[str, str]:
        """Return the names of the column of files and of the column of labels."""
        options, where = self._options, str(self._labels)
        image = find_column(names, _IMAGE_COLUMNS if options.image_column is None else
                            (options.image_column.strip().lower(),))  # fmt: skip
        rest = [name for name in names if name != image]
        declared = [name for name in class_names_of(self._labels) if name in rest]
        label = find_labels(where, rest, options.label_column, declared)
        if label is None and options.label_column is None and len(rest) == 1 and image is not None:
            label = rest[0] if _holds_names(self._labels, rest[0]) else None
        if image is None or label is None:
            raise UserError(
                f"{where} has the columns {', '.join(names)}: name the column of files with "
                f"--image-column and the column of labels with --label-column"
            )
        return image, label

    def notes(self) -> list[str]:
        """Return the notes on images and labels for the summary."""
        return self._images.notes() + self._classes.notes()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of an image."""
        return self._images.read(item)

    def close(self) -> None:
        """Close the source of the images."""
        self._images.close()


def _is_wanted(item: SourceItem) -> bool:
    return is_image_name(item.name) and unwanted(item.name) is None


def _holds_names(path: Path, column: str) -> bool:
    """Tell whether a column looks like class names; numbers do not, since they may mean anything."""
    rows = first_rows(path, _LOOKED_AT)
    texts = [str(row.get(column) or "") for row in rows]
    return column in unused_labels(rows, ()) and not all(text.replace(".", "").isdigit() for text in texts)


def _plain(name: str) -> str:
    r"""Return a path to compare: without surrounding blanks and "./", with "/" for "\", in Unicode's NFC."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


def _falls(first: str, second: str) -> bool:
    """Tell whether two names first differ in a number, and this number is larger in the first name."""
    parts = zip(_NUMBER.split(first), _NUMBER.split(second), strict=False)
    for place, (one, other) in enumerate(parts):
        if one != other:
            return place % 2 == 1 and int(one) > int(other)
    return False


def read_label_array(path: Path) -> NDArray[np.int64]:
    """Read labels from a .npy, .pt or .pth file, without running code that the file may hold.

    Returns:
        int64 [N].

    Raises:
        UserError: an unreadable file, a pickle with code, or anything but N whole numbers that fit int64.
    """
    values: Any
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: expected a .npy of integers, found another file ({error})") from None
    else:
        values = _read_tensor(path)
    # An array [N, 1] or [1, N] is taken as [N].
    values = values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds {values.dtype} {list(values.shape)}: expected one integer label per image"
        )
    numbers = values.astype(np.int64)
    if (numbers != values).any():  # an unsigned number that does not fit int64
        raise UserError(f"{path}: label {values[numbers != values][0]} is out of range; correct it")
    return np.asarray(numbers)


def _read_tensor(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on untrusted files does not help here
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds of errors for a file that is no tensor
        raise UserError(
            f"{path} is not a tensor that can be read without running code in it: save it again "
            f"with torch.save of a tensor alone"
        ) from None
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{path} holds a {type(tensor).__name__}: expected a tensor of labels")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UserError(
            f"{path} holds a tensor of layout {tensor.layout} on {tensor.device}: expected a label per image"
        )
    if tensor.is_floating_point() and bool((tensor == tensor.long()).all()):
        tensor = tensor.long()
    return tensor.numpy()


def _read_numbers(path: Path) -> NDArray[np.int64]:
    """Read a file of one number per line, the format of ImageNet's ground truth."""
    try:
        return np.array([int(row["path"]) for row in read_rows(path)], np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: expected one whole number per line ({error}); correct it") from None
