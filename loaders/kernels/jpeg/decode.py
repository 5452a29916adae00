"""Decode many rows of a pack into channel planes in one call.

Our own decoder takes JPEGs of the usual kind; libjpeg-turbo takes all others and those that may be damaged.
Both give the same bytes. Rows stored as raw pixels are only split into channels.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.kernels.jpeg.baseline import decode_baseline
from loaders.kernels.jpeg.huffman import SLACK
from loaders.kernels.jpeg.turbojpeg import AHEAD, IMAGE_HEIGHT, IMAGE_WIDTH, RGB
from loaders.kernels.jpeg.turbojpeg_calls import (
    copy_bytes,
    decompress,
    get_parameter,
    read_header,
    set_region,
)
from loaders.kernels.memory import bytes_at

FOUND_DAMAGE, FOUND_SIZE, FOUND_BYTES, FOUND_ENCODING, FOUND_ALTERED = range(1, 6)


@inlined
def _ends(data):
    """Tell whether the bytes end with the end-of-image marker, so that the file has not been cut short."""
    return len(data) >= 2 and data[-2] == 0xFF and data[-1] == 0xD9


@inlined
def split_channels(pixels, count, planes):
    """Split `count` RGB pixels into three planes, one after the other."""
    red, green, blue = planes[:count], planes[count : 2 * count], planes[2 * count : 3 * count]
    for i in range(count):
        red[i] = pixels[3 * i]
        green[i] = pixels[3 * i + 1]
        blue[i] = pixels[3 * i + 2]


@inlined
def _decode_jpeg(jpeg, data, height, width, region, copy, pixels, found):
    """Decode an image to `pixels` by libjpeg-turbo; write the part decoded to `region`, errors to `found`."""
    address, size = np.uintp(data.ctypes.data), len(data)
    if read_header(jpeg, address, np.uintp(size)) != 0:
        found[0] = FOUND_DAMAGE
        return
    found[1], found[2] = (
        get_parameter(jpeg, np.int32(IMAGE_HEIGHT)),
        get_parameter(jpeg, np.int32(IMAGE_WIDTH)),
    )
    if found[1] != height or found[2] != width:
        found[0] = FOUND_SIZE
        return
    whole = _ends(data)
    is_part = region[2] * region[3] < height * width and whole
    if is_part:
        place = np.uint64(region[1]) | np.uint64(region[0]) << np.uint64(32)
        extent = np.uint64(region[3]) | np.uint64(region[2]) << np.uint64(32)
        is_part = set_region(jpeg, place, extent) == 0  # images of unusual sampling can only be decoded whole
    if not is_part:
        set_region(jpeg, np.uint64(0), np.uint64(0))
        region[0], region[1], region[2], region[3] = 0, 0, height, width
    if whole and size + AHEAD <= len(copy):
        copy_bytes(np.uintp(copy.ctypes.data), address, np.uintp(size))
        copy[size : size + AHEAD] = 0
        address, size = np.uintp(copy.ctypes.data), size + AHEAD
    target = np.uintp(pixels.ctypes.data)
    if decompress(jpeg, address, np.uintp(size), target, np.int32(0), np.int32(RGB)) != 0:
        found[0] = FOUND_DAMAGE


@kernel
def decode_all(
    handle,
    addresses,
    sizes,
    encodings,
    heights,
    widths,
    regions,
    whole,
    first,
    starts,
    base,
    scan,
    copy,
    pixels,
    planes,
    found,
):
    """Decode rows `first` .. K - 1 one after the other; see `loaders.backends.decoding.Decoder.decode`.

    Args:
        handle: handle of a `Decompressor`.
        addresses, sizes, encodings, heights, widths, regions, whole: as in
            `loaders.backends.decoding.EncodedRows`.
        starts: int64 [K], where each row begins in `planes`; entries after `first` are written.
        base: `BASELINE` [1].
        scan: uint8, scratch for the entropy-coded data of the largest JPEG (`scan_bytes`).
        copy: uint8, scratch for a small JPEG and `AHEAD` bytes more.
        pixels: uint8, scratch for the samples of the largest image (`sample_bytes`).
        planes: uint8, out.
        found: int64 [3], out: if a row fails, a value of FOUND_... and the values found.

    Returns:
        The index of the row that failed, or K.
    """
    jpeg = np.uintp(handle)
    for i in range(first, len(addresses)):
        data, length = bytes_at(addresses[i], sizes[i]), 3 * heights[i] * widths[i]
        found[:] = 0
        is_done = False
        if not whole[i]:
            found[0] = FOUND_ALTERED
        elif starts[i] + length > len(planes) or length > len(pixels):  # cannot happen: the caller makes room
            found[0] = FOUND_SIZE
        elif encodings[i] == ENCODING_JPEG:
            is_done = len(data) <= len(scan) - SLACK and decode_baseline(
                data, heights[i], widths[i], regions[i], base[0], scan, pixels, planes[starts[i] :]
            )
            if not is_done:
                _decode_jpeg(jpeg, data, heights[i], widths[i], regions[i], copy, pixels, found)
        elif encodings[i] != ENCODING_RAW:
            found[0], found[1] = FOUND_ENCODING, encodings[i]
        elif len(data) != length:
            found[0], found[1] = FOUND_BYTES, len(data)
        else:
            regions[i, 0], regions[i, 1], regions[i, 2], regions[i, 3] = 0, 0, heights[i], widths[i]
        if found[0] != 0:
            return i
        count = regions[i, 2] * regions[i, 3]
        if not is_done:
            split_channels(pixels if encodings[i] == ENCODING_JPEG else data, count, planes[starts[i] :])
        if i + 1 < len(starts):
            starts[i + 1] = starts[i] + 3 * count
    return len(addresses)
