"""What every image source gives: items in a fixed order, and their bytes on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError, one_line
from loaders.packs.reasons import BadImage as BadImage
from loaders.packs.reasons import Reason

# A larger file is no image for training, and is not read into memory to find out.
MAX_FILE_BYTES = 1 << 28


class SourceItem(NamedTuple):
    """One file of a source, listed but not read.

    Attributes:
        name: path inside the source, "/" between folders; names that are no UTF-8 are surrogate-escaped.
        key: the same path as a unique name that every shard format takes (`loaders.packs.sources.naming`).
        label: name of its class, None where the source gives none.
        size_bytes: size of the file.
        position: where the source finds it (a tar: offset of its bytes); -1 where the name says it.
        problem: why it cannot be packed, known from listing alone; None otherwise.
        reason: which of the enumeration a problem is.
    """

    name: str
    key: str
    label: str | None
    size_bytes: int
    position: int = -1
    problem: str | None = None
    reason: Reason = Reason.UNREADABLE


def is_hidden(item: SourceItem) -> bool:
    """Tell whether an item is one that programs keep for themselves, and nobody meant."""
    return item.problem is not None and item.reason is Reason.HIDDEN


class ImageSource(Protocol):
    """An adapter for one kind of source.

    Attributes:
        labels_are_folders: labels are names of folders; then only a folder with a file that is called like
            an image is a class.
    """

    labels_are_folders: bool

    def items(self) -> Iterator[SourceItem]:
        """Yield every file once, in an order that depends on nothing but the source's content."""

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of an item; safe to call from several threads.

        Raises:
            UnreadableItem: this item alone cannot be read (it goes to the quarantine).
            UserError: the source vanished or changed since it was listed (packing stops).
        """

    def class_names(self) -> tuple[str, ...] | None:
        """Return the classes in the order of the source's own numbers, once it has been listed.

        None where labels are names alone, which are then numbered in the order of the alphabet.
        """

    def close(self) -> None:
        """Close what the source holds open."""


@runtime_checkable
class BulkSource(Protocol):
    """A source that reads many small items faster in one call."""

    def read_many(
        self, items: Sequence[SourceItem]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
        """Read items behind each other; safe to call from several threads.

        Returns:
            uint8 [total], the bytes; int64 [N + 1], where each item begins; bool [N], whether it was read
            as it was listed. Where it is False, `read` says why it was not.
        """


@runtime_checkable
class NotingSource(Protocol):
    """A source that has something to say in the summary, such as a column that it did not use."""

    def notes(self) -> list[str]:
        """Return one line for each, once the source has been listed."""


@runtime_checkable
class ColumnSource(Protocol):
    """A source whose labels are in a column, a field or a list.

    Attributes:
        has_labels: whether it has found them, once it has been listed.
    """

    has_labels: bool


class UnreadableItem(Exception):
    """One item that cannot be read while its source is in order.

    Attributes:
        reason: which of the enumeration.
    """

    def __init__(self, text: str, reason: Reason = Reason.UNREADABLE) -> None:
        """Say why.

        Args:
            text: for people, as it stands in the quarantine.
            reason: which of the enumeration.
        """
        super().__init__(text)
        self.reason = reason


def check_size(source: str, item: SourceItem, num_bytes: int) -> None:
    """Raise `UserError` when an item no longer has the size that it had when it was listed."""
    if num_bytes != item.size_bytes:
        raise UserError(
            f"{source}: {printable(item.name)} had {item.size_bytes} bytes when it was listed and gives "
            f"{num_bytes} now: the source changed while packing; pack again into a new --out"
        )


def printable(name: str) -> str:
    """Return a name that can be printed and stored as UTF-8: stray bytes and control characters escaped."""
    return one_line(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
