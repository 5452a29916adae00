"""The interface of image sources: items in a fixed order, and their bytes on request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError, one_line
from loaders.packs.reasons import BadImage, Reason

# A larger file is no image for training, so it is not even read into memory.
MAX_FILE_BYTES = 1 << 28
UNKNOWN_BYTES = -1  # the `size_bytes` of a file whose server reports no size
_USUAL_BYTES = 100_000


class SourceItem(NamedTuple):
    """One file of a source, listed but not read.

    Attributes:
        name: path inside the source, with "/" between folders; bytes that are not UTF-8 are
            surrogate-escaped.
        key: the item's name in its split of the pack, escaped as `loaders.packs.sources.naming` says.
        label: name or number of the file's class, or with --multi-label a JSON list of these; None if the
            source gives none.
        size_bytes: size of the file; `UNKNOWN_BYTES` if its server does not report it.
        position: where the source finds the item (in a tar the offset of its bytes); -1 if the name is
            enough.
        problem: why the item cannot be packed, if the listing shows that already; else None.
        reason: kind of the problem; without a problem it has no meaning.
    """

    name: str
    key: str
    label: str | None
    size_bytes: int
    position: int = -1
    problem: str | None = None
    reason: Reason = Reason.UNREADABLE


def likely_size(size_bytes: int) -> int:
    """Return a size to plan with: the given one, or that of a usual photograph if it is unknown."""
    return _USUAL_BYTES if size_bytes == UNKNOWN_BYTES else size_bytes


def is_hidden(item: SourceItem) -> bool:
    """Tell whether an item is a file that a program keeps for itself."""
    return item.problem is not None and item.reason is Reason.HIDDEN


class Source(ABC):
    """Base of the adapters, one for each kind of source.

    Attributes:
        labels_are_folders: whether labels are names of folders; `FolderClasses` then decides on the classes.
        has_labels: whether the source has labels in a list, a table or samples of WebDataset; final after the
            listing. None for folders, archives and betons; always True for packs and with a label file.
    """

    labels_are_folders = False
    has_labels: bool | None = None

    @abstractmethod
    def items(self) -> Iterator[SourceItem]:
        """Yield every file once, in an order that depends only on the content of the source."""

    @abstractmethod
    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of an item; may be called from several threads.

        Raises:
            UnreadableItem: this one item cannot be read (it goes to the quarantine).
            UserError: the source vanished or changed since it was listed (packing stops).
        """

    def read_many(
        self, items: Sequence[SourceItem]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
        """Read several items at once, or none if that is not faster; may be called from several threads.

        Returns:
            uint8 [total], the bytes; int64 [N + 1], where each item begins, and the end; bool [N], whether an
            item was read and has the listed size. The other items are left to `read`.
        """
        return np.zeros(0, np.uint8), np.zeros(len(items) + 1, np.int64), np.zeros(len(items), np.bool_)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the classes in the order of the source's own numbers; valid after the listing.

        None if the source has no numbers; its classes are then numbered in alphabetical order.
        """
        return None

    def notes(self) -> list[str]:
        """Return notes for the summary, one line each; valid after the listing."""
        return []

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Close everything that the source holds open."""


class UnreadableItem(BadImage):
    """Raised if a single item cannot be read, although its source is in order."""

    def __init__(self, text: str, reason: Reason = Reason.UNREADABLE) -> None:
        """Note the text for people that the quarantine shows, and the reason."""
        super().__init__(reason, text)


def check_size(source: str, item: SourceItem, num_bytes: int) -> None:
    """Raise `UserError` if the size of an item has changed since the listing."""
    if item.size_bytes not in (UNKNOWN_BYTES, num_bytes):
        raise UserError(
            f"{source}: {printable(item.name)} had {item.size_bytes} bytes when it was listed and gives "
            f"{num_bytes} now: the source changed while packing; pack again into a new --out"
        )


def printable(name: str) -> str:
    """Return a name in printable UTF-8, with stray bytes and control characters escaped."""
    return one_line(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
