"""Write the tar members of many images in one call, with the same bytes as `TarShardWriter.add`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import inlined, kernel
from loaders.kernels.memory import read_only

_BLOCK = 512
_NAME_BYTES = 100
_SIZE_AT, _SIZE_DIGITS, _CHECKSUM_AT = 124, 11, 148
_JPG = np.frombuffer(b".jpg", np.uint8)
_CLS = np.frombuffer(b".cls", np.uint8)
_LABEL_BYTES = 20


def members_bound(num_data_bytes: int, num_name_bytes: int, num_images: int) -> int:
    """Return an upper bound, in bytes, for the tar members of `num_images` images."""
    # Per image: two headers, two long names with their headers, the label, and the padding of each part.
    return num_data_bytes + 2 * num_name_bytes + num_images * 10 * _BLOCK


def add_members(
    out: NDArray[np.uint8],
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    keys: NDArray[np.uint8],
    key_starts: NDArray[np.int64],
    labels: NDArray[np.int64],
    headers: NDArray[np.uint8],
) -> tuple[int, NDArray[np.int64]]:
    """Write `<key>.jpg` and, where there is a label, `<key>.cls` for each image.

    Args:
        out: uint8 [>= members_bound()], receives the members.
        data: uint8 [total], the images one after the other.
        starts: int64 [N + 1], where each image begins in `data`, and the end.
        keys: uint8 [total], the keys in UTF-8, one after the other.
        key_starts: int64 [N + 1], where each key begins in `keys`, and the end.
        labels: int64 [N], -1 for none.
        headers: uint8 [2, 512], the header of a file, without the file's name, and the header of a member
            that holds a long name; both without size and checksum.

    Returns:
        The number of bytes written, and int64 [N, 3]: offset of each image in `out`, offset of its label, and
        size of the label in bytes (0 for none).
    """
    places = np.zeros((len(labels), 3), np.int64)
    name = np.empty(int(np.diff(key_starts).max(initial=0)) + 5, np.uint8)  # with suffix and zero byte
    sums = headers.astype(np.int64).sum(axis=1) + 8 * ord(" ")
    digits = np.empty(_LABEL_BYTES, np.uint8)
    data, keys, headers = read_only(data), read_only(keys), read_only(headers)
    size = _add_all(out, data, starts, keys, key_starts, labels, headers, sums, name, digits, places)
    return int(size), places


@kernel
def _add_all(out, data, starts, keys, key_starts, labels, headers, sums, name, digits, places):
    at = 0
    for i in range(len(labels)):
        name_size = key_starts[i + 1] - key_starts[i] + 4
        for j in range(name_size - 4):
            name[j] = keys[key_starts[i] + j]
        for j in range(4):
            name[name_size - 4 + j] = _JPG[j]
        size = starts[i + 1] - starts[i]
        at = _add_header(out, at, name, name_size, size, headers, sums)
        places[i, 0] = at
        at = _add_data(out, at, data, starts[i], size)
        if labels[i] < 0:
            continue
        for j in range(4):
            name[name_size - 4 + j] = _CLS[j]
        first = _write_digits(digits, labels[i])
        at = _add_header(out, at, name, name_size, _LABEL_BYTES - first, headers, sums)
        places[i, 1], places[i, 2] = at, _LABEL_BYTES - first
        at = _add_data(out, at, digits, first, _LABEL_BYTES - first)
    return at


@inlined
def _write_digits(digits, value):
    """Write a number in decimal to the end of `digits`; return the index of its first digit."""
    first = _LABEL_BYTES
    while True:
        first -= 1
        digits[first] = 48 + value % 10
        value //= 10
        if value == 0:
            return first


@inlined
def _add_header(out, at, name, name_size, size, headers, sums):
    """Write a member's header, after a further member for the name if that is long; return where they end."""
    if name_size > _NAME_BYTES:
        at = _one_header(out, at, headers[1], sums[1], headers[1], 0, name_size + 1)
        name[name_size] = 0
        at = _add_data(out, at, name, 0, name_size + 1)
    return _one_header(out, at, headers[0], sums[0], name, min(name_size, _NAME_BYTES), size)


@inlined
def _one_header(out, at, header, total, name, name_size, size):
    block = out[at : at + _BLOCK]  # in a slice, numba knows that the loop's index is not negative
    for j in range(_BLOCK):
        block[j] = header[j]
    for j in range(name_size):
        block[j] = name[j]
        total += np.int64(name[j])
    for j in range(_SIZE_DIGITS):
        digit = 48 + (size >> (3 * (_SIZE_DIGITS - 1 - j)) & 7)
        block[_SIZE_AT + j] = digit
        total += digit
    for j in range(6):
        block[_CHECKSUM_AT + j] = 48 + (total >> (3 * (5 - j)) & 7)
    block[_CHECKSUM_AT + 6] = 0
    block[_CHECKSUM_AT + 7] = 32
    return at + _BLOCK


@inlined
def _add_data(out, at, data, first, size):
    """Copy a member's bytes and pad its last block with zeros; return the index after the block."""
    filled = (size + _BLOCK - 1) // _BLOCK * _BLOCK
    blocks, source = out[at : at + filled], data[first:]
    for j in range(size):
        blocks[j] = source[j]
    for j in range(size, filled):
        blocks[j] = 0
    return at + filled
