"""Labels in a file beside the images: a tensor (.pt), an array (.npy), or a list of paths and labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.errors import UserError
from loaders.packs.sources.item import ImageSource, SourceItem, printable
from loaders.packs.sources.naming import is_image_name
from loaders.packs.sources.numbers import NumberedClasses
from loaders.packs.sources.path_list import LABEL_COLUMNS, LIST_SUFFIXES, PATH_COLUMNS, read_rows

_NUMBER = re.compile(r"([0-9]+)")


class LabeledSource:
    """Another source whose labels come from a file.

    A list names files. A tensor has one label per image: image `17.png` has label 17 where all images are
    called by the numbers 0 to N - 1, and otherwise the i-th image in the order of the names has label i,
    unless that puts `10.png` before `2.png`, where nobody can tell which order the tensor has.
    """

    labels_are_folders = False

    def __init__(self, images: ImageSource, name: str, labels: Path) -> None:
        """Label the items of `images`.

        Args:
            images: a folder or an archive.
            name: the source as the user gave it.
            labels: the file of labels.
        """
        self._images, self._name, self._labels = images, name, labels
        self._classes = NumberedClasses()

    def items(self) -> Iterator[SourceItem]:
        """Yield the items of the images with the labels of the file."""
        suffix = self._labels.suffix.lower()
        if suffix in (".pt", ".pth", ".npy"):
            yield from self._by_number(read_label_array(self._labels))
        elif suffix in LIST_SUFFIXES:
            yield from self._by_name(_read_names(self._labels))
        else:
            raise UserError(f"{self._labels}: expected labels in .pt, .npy, {', '.join(LIST_SUFFIXES)}")

    def _by_number(self, labels: NDArray[np.int64]) -> Iterator[SourceItem]:
        # Two passes over the listing: whether names are numbers is known at the end of the first.
        names = [item.name for item in self._images.items() if is_image_name(item.name)]
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
        for item in self._images.items():
            label = self._classes.label(int(labels[next(order)])) if is_image_name(item.name) else None
            yield item._replace(label=label)

    def _refuse_two_orders(self, names: list[str]) -> None:
        for first, second in pairwise(names):
            if _falls(first, second):
                raise UserError(
                    f"{self._labels}: {printable(first)} comes before {printable(second)} by name and after "
                    f"it by number, so the order of its labels cannot be told: give a list of path and "
                    f"label, or call the images 0 to {len(names) - 1}"
                )

    def _by_name(self, labels: dict[str, Any]) -> Iterator[SourceItem]:
        left = dict(labels)
        for item in self._images.items():
            yield item._replace(label=self._classes.label(left.pop(item.name, None)))
        if left:
            missing = ", ".join(printable(name) for name in list(left)[:3])
            raise UserError(
                f"{self._labels} labels {len(left)} files that are not in the source, e.g. {missing}: "
                f"expected paths below its root"
            )

    def class_names(self) -> tuple[str, ...] | None:
        """Return 0, 1, ... where all labels are numbers."""
        return self._classes.names()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of an image."""
        return self._images.read(item)

    def close(self) -> None:
        """Close the images."""
        self._images.close()


def _falls(first: str, second: str) -> bool:
    """Tell whether two names, alike up to a number, have the larger number first."""
    parts = zip(_NUMBER.split(first), _NUMBER.split(second), strict=False)
    for place, (one, other) in enumerate(parts):
        if one != other:
            return place % 2 == 1 and int(one) > int(other)
    return False


def read_label_array(path: Path) -> NDArray[np.int64]:
    """Read labels from a .npy or .pt file, without unpickling anything but tensors.

    Returns:
        int64 [N].

    Raises:
        UserError: no such file, code in it, or anything but one integer per image.
    """
    values: Any
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no array of labels ({error}): expected a .npy of integers") from None
    else:
        values = _read_tensor(path)
    # A column [N, 1] is as good as [N].
    values = values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds {values.dtype} {list(values.shape)}: expected one integer label per image"
        )
    numbers = values.astype(np.int64)
    if (numbers != values).any():  # beyond what an int64 holds
        raise UserError(f"{path}: label {values[numbers != values][0]} is out of range; correct it")
    return np.asarray(numbers)


def _read_tensor(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch advises on files of other origin is no line of ours
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch meets in a file that is no tensor
        raise UserError(
            f"{path} is no tensor that can be read without running its code: save it again with torch.save "
            f"of a tensor alone"
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


def _read_names(path: Path) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for row in read_rows(path):
        lower = {name.strip().lower(): value for name, value in row.items()}
        name_column, label_column = (
            next((column for column in known if column in lower), None)
            for known in (PATH_COLUMNS, LABEL_COLUMNS)
        )
        if name_column is None or label_column is None:
            raise UserError(
                f"{path} has the columns {', '.join(row)}: expected one of {', '.join(PATH_COLUMNS)} and one "
                f"of {', '.join(LABEL_COLUMNS)}"
            )
        name = str(lower[name_column])
        if name in labels:
            raise UserError(f"{path} labels {printable(name)} twice: expected one row per file")
        labels[name] = lower[label_column]
    if not labels:
        raise UserError(f"{path} labels no file: expected a heading and one row per file")
    return labels
