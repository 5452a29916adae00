"""The reasons why inputs are not packed: one enumeration for the quarantine, its readers and `--fail-on`."""

from __future__ import annotations

from enum import StrEnum

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded, unless told otherwise: decompression bombs."""


class Reason(StrEnum):
    """Why an input stands in the quarantine; its value is the field `code` of the entry."""

    EMPTY = "empty"  # a file or a cell without a byte
    TRUNCATED = "truncated"  # cut off: more than a hundredth of its rows are lost
    DAMAGED = "damaged"  # its decoder refuses it, or `--damaged quarantine` does
    NOT_AN_IMAGE = "not_an_image"  # its first bytes are of no known format
    UNSUPPORTED = "unsupported"  # of a known format or depth that is not read
    MISSING_DECODER = "missing_decoder"  # the package for its format is not installed
    TOO_LARGE = "too_large"  # over --max-pixels, the largest side or the largest file
    DUPLICATE = "duplicate"  # the same file again, or a member that a later one replaces
    NOT_A_FILE = "not_a_file"  # a link, a device, a pipe
    UNREADABLE = "unreadable"  # its source does not give the bytes or the label
    NO_IMAGE = "no_image"  # a sample of a shard without an image
    HIDDEN = "hidden"  # in a folder that programs keep for themselves, such as `.ipynb_checkpoints`
    UNKNOWN = "unknown"  # of a pack from before there were codes

    @property
    def is_damage(self) -> bool:
        """Tell whether the reason means that an input is damaged or unreadable."""
        return self not in (Reason.DUPLICATE, Reason.NOT_AN_IMAGE, Reason.HIDDEN)


class BadImage(Exception):
    """An input that is not packed.

    Attributes:
        reason: which of the enumeration.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        """Say why.

        Args:
            reason: which of the enumeration.
            text: text for people, as in the quarantine.
        """
        super().__init__(text)
        self.reason = reason
