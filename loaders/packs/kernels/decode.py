"""Decoding rows of a pack in one call: JPEGs by libjpeg-turbo, pixels by a copy."""

from __future__ import annotations

import numpy as np

from loaders.packs.columns import ENCODING_JPEG, ENCODING_RAW
from loaders.packs.kernels.memory import copy_bytes, kernel
from loaders.turbojpeg import HEIGHT, RGB, WIDTH, decompress, get_parameter, read_header

FOUND_DAMAGE, FOUND_SIZE, FOUND_BYTES, FOUND_ENCODING, FOUND_ALTERED = range(1, 6)


@kernel
def decode_all(handle, addresses, sizes, encodings, heights, widths, whole, first, starts, out, found):
    """Decode rows `first` .. K one behind the other; see `loaders.decode.Decoder.decode`.

    Args:
        handle: of a decompressor.
        addresses, sizes, encodings, heights, widths, whole: as `loaders.decode.EncodedRows` has them, [K].
        first: row to begin with.
        starts: int64 [K], where each begins in `out`; those behind `first` are written.
        out: uint8.
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
        elif starts[i] + length > len(out):  # never: the caller has made room
            found[0] = FOUND_SIZE
        elif encodings[i] == ENCODING_JPEG:
            if read_header(jpeg, data, np.uintp(size)) != 0:
                found[0] = FOUND_DAMAGE
                return i
            found[1], found[2] = get_parameter(jpeg, np.int32(HEIGHT)), get_parameter(jpeg, np.int32(WIDTH))
            if found[1] != heights[i] or found[2] != widths[i]:
                found[0] = FOUND_SIZE
            elif decompress(jpeg, data, np.uintp(size), target, np.int32(0), np.int32(RGB)) != 0:
                found[0] = FOUND_DAMAGE
        elif encodings[i] != ENCODING_RAW:
            found[0], found[1] = FOUND_ENCODING, encodings[i]
        elif size != length:
            found[0], found[1] = FOUND_BYTES, size
        else:
            copy_bytes(target, data, np.uintp(length))
        if found[0] != 0:
            return i
        if i + 1 < len(starts):
            starts[i + 1] = starts[i] + length
    return len(addresses)
