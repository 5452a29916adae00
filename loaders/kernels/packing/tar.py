"""Members of a tar for many images: see `loaders.packs.stored.tar_members`."""

from __future__ import annotations

import numpy as np

from loaders.kernels.memory import entry, inner

_BLOCK = 512
_NAME_BYTES = 100
_SIZE_AT, _SIZE_DIGITS, _CHECKSUM_AT = 124, 11, 148
_JPG = np.frombuffer(b".jpg", np.uint8)
_CLS = np.frombuffer(b".cls", np.uint8)
_LABEL_BYTES = 20


@entry
def add_members(out, data, starts, keys, key_starts, labels, headers, sums, name, digits, places):
    """Write all members; see `loaders.packs.stored.tar_members`."""
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


@inner
def _write_digits(digits, value):
    """Write a number at the end of `digits`; return where it begins."""
    first = _LABEL_BYTES
    while True:
        first -= 1
        digits[first] = 48 + value % 10
        value //= 10
        if value == 0:
            return first


@inner
def _add_header(out, at, name, name_size, size, headers, sums):
    """Write a member's header, after that of a long name where it needs one; return the place behind it."""
    if name_size > _NAME_BYTES:
        at = _one_header(out, at, headers[1], sums[1], headers[1], 0, name_size + 1)
        for j in range(name_size):
            out[at + j] = name[j]
        filled = (name_size + _BLOCK) // _BLOCK * _BLOCK
        for j in range(name_size, filled):
            out[at + j] = 0
        at += filled
    return _one_header(out, at, headers[0], sums[0], name, min(name_size, _NAME_BYTES), size)


@inner
def _one_header(out, at, header, total, name, name_size, size):
    for j in range(_BLOCK):
        out[at + j] = header[j]
    for j in range(name_size):
        out[at + j] = name[j]
        total += np.int64(name[j])
    for j in range(_SIZE_DIGITS):
        digit = 48 + (size >> (3 * (_SIZE_DIGITS - 1 - j)) & 7)
        out[at + _SIZE_AT + j] = digit
        total += digit
    for j in range(6):
        out[at + _CHECKSUM_AT + j] = 48 + (total >> (3 * (5 - j)) & 7)
    out[at + _CHECKSUM_AT + 6] = 0
    out[at + _CHECKSUM_AT + 7] = 32
    return at + _BLOCK


@inner
def _add_data(out, at, data, first, size):
    """Copy a member's bytes and fill its last block with zeros; return the place behind it."""
    for j in range(size):
        out[at + j] = data[first + j]
    filled = (size + _BLOCK - 1) // _BLOCK * _BLOCK
    for j in range(size, filled):
        out[at + j] = 0
    return at + filled
