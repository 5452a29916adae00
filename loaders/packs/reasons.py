"""The reasons why inputs are not packed: one enumeration for the quarantine, its readers and `--fail-on`."""

from __future__ import annotations

from enum import StrEnum

MAX_PIXELS = 89_478_485
"""Default limit of pixels per image; larger images are refused before decoding, as decompression bombs."""


class Reason(StrEnum):
    """Why an input is in the quarantine; the value of a reason is the field `code` of the entry."""

    EMPTY = "empty"  # a file or a table cell of 0 bytes
    TRUNCATED = "truncated"  # a cut-off PNG; a JPEG that lost over 1 % of its pixels (`quarantine`: any)
    DAMAGED = "damaged"  # its decoder refuses it, or `--damaged quarantine` does
    NOT_AN_IMAGE = "not_an_image"  # its first bytes belong to no known format
    UNSUPPORTED = "unsupported"  # of a known format, but of a kind or a bit depth that is not read
    MISSING_DECODER = "missing_decoder"  # the package for its format is not installed
    TOO_LARGE = "too_large"  # over the limit of pixels, of a side's length or of the file's size
    DUPLICATE = "duplicate"  # the same file again, or an archive member that a later one replaces
    NOT_A_FILE = "not_a_file"  # a link, a device, a pipe
    UNREADABLE = "unreadable"  # its bytes or its label cannot be read from the source
    NO_IMAGE = "no_image"  # a WebDataset sample without an image
    HIDDEN = "hidden"  # in a program's own folder, such as `.ipynb_checkpoints`, or a macOS resource fork
    UNKNOWN = "unknown"  # from an older pack, which recorded no codes

    @property
    def is_damage(self) -> bool:
        """Tell whether the reason counts as damage: all but DUPLICATE, NOT_AN_IMAGE and HIDDEN do."""
        return self not in (Reason.DUPLICATE, Reason.NOT_AN_IMAGE, Reason.HIDDEN)


class BadImage(Exception):
    """Raised for an input that cannot be packed; its `reason` says why."""

    def __init__(self, reason: Reason, text: str) -> None:
        """Note the reason, and the text for people that the quarantine shows."""
        super().__init__(text)
        self.reason = reason
