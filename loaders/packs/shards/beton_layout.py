"""FFCV's .beton layout, for the writer and the reader.

A file consists of a header, field descriptors, one metadata record per sample, padding to a page, pages of
image bytes (no image crosses a page), and the allocation table. All numbers are little-endian. The layout was
taken from FFCV 1.0.2 (format version 2); none of its code is used, and FFCV need not be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError

VERSION = 2
MIN_PAGE_BYTES = 1 << 21
MODE_JPEG, MODE_RAW = 0, 1
INT_FIELD, RGB_IMAGE_FIELD = 1, 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
# FFCV aligns records: 13 bytes of image, 3 of padding, 8 of label.
SAMPLE = np.dtype(
    {"names": ["image", "label"], "formats": [IMAGE, "<i8"], "offsets": [0, 16], "itemsize": 24}
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
METADATA_START = HEADER.itemsize + 2 * FIELD.itemsize


class BetonContent(NamedTuple):
    """Content of a beton: `samples` [N] of dtype `SAMPLE`, and `sizes` uint64 [N], bytes of each image."""

    samples: NDArray[np.void]
    sizes: NDArray[np.uint64]


def field_descriptors() -> bytes:
    """Return the descriptors of the fields `image` (RGB) and `label` (int)."""
    fields = np.zeros(2, FIELD)
    fields["type_id"] = RGB_IMAGE_FIELD, INT_FIELD
    fields["name"] = b"image", b"label"
    return fields.tobytes()


def read_beton(path: Path) -> BetonContent:
    """Read the metadata and the allocation table of a beton with the fields `image` and `label`.

    Raises:
        UserError: no beton, another version, other fields, or tables that contradict each other or point
            outside the file.
    """
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)

    def table(dtype: np.dtype[np.void], first: int, count: int) -> NDArray[np.void]:
        stop = first + count * dtype.itemsize
        if count < 0 or stop > len(data):
            raise UserError(f"{path} is a damaged beton: a table ends at byte {stop} of {len(data)}")
        return np.frombuffer(data[first:stop].tobytes(), dtype)

    header = table(HEADER, 0, 1)[0]
    if header["version"] != VERSION or header["num_fields"] != 2:
        raise UserError(
            f"{path}: version {header['version']} with {header['num_fields']} fields, expected a beton of "
            f"version {VERSION} with the fields image and label"
        )
    types = table(FIELD, HEADER.itemsize, 2)["type_id"].tolist()
    if types != [RGB_IMAGE_FIELD, INT_FIELD]:
        raise UserError(
            f"{path}: field types {types}, expected {[RGB_IMAGE_FIELD, INT_FIELD]} (image, label)"
        )
    samples = table(SAMPLE, METADATA_START, int(header["num_samples"]))
    first = int(header["alloc_table_ptr"])
    allocations = table(ALLOCATION, first, max(0, len(data) - first) // ALLOCATION.itemsize)
    problem = _contradiction(samples["image"]["data_ptr"], allocations, first)
    if problem:
        raise UserError(f"{path} is a damaged beton: {problem}")
    sizes = allocations["size"][np.argsort(allocations["sample_id"])]
    return BetonContent(samples, sizes)


def _contradiction(pointers: NDArray[np.uint64], allocations: NDArray[np.void], stop: int) -> str:
    """Return what is wrong with the places of the images in the file; "" if nothing is.

    A beton has no checksums. Damage to a place is noticed only if the metadata and the allocation table
    differ, if the place lies behind the pages, or if two images overlap.

    Args:
        pointers: uint64 [N], where each image begins according to the metadata.
        allocations: [M], the allocation table, of dtype `ALLOCATION`; an intact file has M = N.
        stop: where the allocation table begins, which is behind all images.
    """
    if len(allocations) != len(pointers):
        return f"{len(pointers)} samples, {len(allocations)} images"
    by_sample = allocations[np.argsort(allocations["sample_id"])]
    if (by_sample["sample_id"] != np.arange(len(pointers))).any() or (by_sample["ptr"] != pointers).any():
        return "samples and allocated images differ"
    if (pointers > stop).any() or (by_sample["size"] > np.uint64(stop) - pointers).any():
        return "an image lies outside the allocated pages"
    in_file = allocations[np.argsort(allocations["ptr"])]
    if (in_file["ptr"][:-1] + in_file["size"][:-1] > in_file["ptr"][1:]).any():
        return "two images overlap"
    return ""
