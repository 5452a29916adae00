"""Decoding rows of a pack in one call: JPEGs by libjpeg-turbo, pixels by a copy."""

from __future__ import annotations

import numpy as np

from loaders.packs.columns import ENCODING_JPEG, ENCODING_RAW
from loaders.packs.kernels.memory import copy_bytes, kernel
from loaders.turbojpeg import HEIGHT, RGB, WIDTH, decompress, get_parameter, read_header, set_region

FOUND_DAMAGE, FOUND_SIZE, FOUND_BYTES, FOUND_ENCODING, FOUND_ALTERED = range(1, 6)


@kernel
def _ends(data, size, last):
    """Whether the bytes end in the marker that ends a JPEG, and so have not been cut."""
    if size < len(last):
        return False
    copy_bytes(np.uintp(last.ctypes.data), data + np.uintp(size - len(last)), np.uintp(len(last)))
    return last[0] == 0xFF and last[1] == 0xD9


@kernel
def _decode_jpeg(jpeg, data, size, height, width, region, target, last, found):
    """Decode one image and write into `region` what of it was decoded."""
    if read_header(jpeg, data, np.uintp(size)) != 0:
        found[0] = FOUND_DAMAGE
        return
    found[1], found[2] = get_parameter(jpeg, np.int32(HEIGHT)), get_parameter(jpeg, np.int32(WIDTH))
    if found[1] != height or found[2] != width:
        found[0] = FOUND_SIZE
        return
    is_part = region[2] * region[3] < height * width and _ends(data, size, last)
    if is_part:
        place = np.uint64(region[1]) | np.uint64(region[0]) << np.uint64(32)
        extent = np.uint64(region[3]) | np.uint64(region[2]) << np.uint64(32)
        is_part = set_region(jpeg, place, extent) == 0  # unusual sampling can only be decoded whole
    if not is_part:
        set_region(jpeg, np.uint64(0), np.uint64(0))
        region[0], region[1], region[2], region[3] = 0, 0, height, width
    if decompress(jpeg, data, np.uintp(size), target, np.int32(0), np.int32(RGB)) != 0:
        found[0] = FOUND_DAMAGE


@kernel
def decode_all(
    handle, addresses, sizes, encodings, heights, widths, regions, whole, first, starts, out, last, found
):
    """Decode rows `first` .. K one behind the other; see `loaders.decode.Decoder.decode`.

    Args:
        handle: of a decompressor.
        addresses, sizes, encodings, heights, widths, regions, whole: as in `loaders.decode.EncodedRows`.
        first: row to begin with.
        starts: int64 [K], where each begins in `out`; those behind `first` are written.
        out: uint8.
        last: uint8 [2], scratch.
        found: int64 [3], written where a row fails: a value of FOUND_..., and what was found.

    Returns:
        The row that failed, or K.
    """
    jpeg = np.uintp(handle)
    for i in range(first, len(addresses)):
        data, size, length = np.uintp(addresses[i]), sizes[i], 3 * heights[i] * widths[i]
        target = np.uintp(out.ctypes.data) + np.uintp(starts[i])
        found[:] = 0
        if not whole[i]:
            found[0] = FOUND_ALTERED
        elif starts[i] + length > len(out):  # never: the caller has made room for whole images
            found[0] = FOUND_SIZE
        elif encodings[i] == ENCODING_JPEG:
            _decode_jpeg(jpeg, data, size, heights[i], widths[i], regions[i], target, last, found)
        elif encodings[i] != ENCODING_RAW:
            found[0], found[1] = FOUND_ENCODING, encodings[i]
        elif size != length:
            found[0], found[1] = FOUND_BYTES, size
        else:
            regions[i, 0], regions[i, 1], regions[i, 2], regions[i, 3] = 0, 0, heights[i], widths[i]
            copy_bytes(target, data, np.uintp(length))
        if found[0] != 0:
            return i
        if i + 1 < len(starts):
            starts[i + 1] = starts[i] + 3 * regions[i, 2] * regions[i, 3]
    return len(addresses)
