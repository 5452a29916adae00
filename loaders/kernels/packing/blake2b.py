"""BLAKE2b of many short messages at once: eight lanes of one vector hash eight images.

Source: RFC 7693. The values are those of `hashlib.blake2b(data, digest_size=16)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loaders.kernels.memory import entry, inner, load_le64

_LANES = 8
_BLOCK_BYTES = 128
_DIGEST_BYTES = 16
_INITIAL = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
# Parameters: a digest of 16 bytes, no key, fan-out and depth 1.
_START = np.array([_INITIAL[0] ^ 0x01010000 ^ _DIGEST_BYTES, *_INITIAL[1:]], np.uint64)
_ORDERS = tuple(
    tuple(int(digit, 16) for digit in text)
    for text in (
        "0123456789abcdef",
        "ea489fd61c02b753",
        "b8c052fdae367194",
        "7931dcbe265a40f8",
        "905724afe1bc683d",
        "2c6a0b834d75fe19",
        "c51fed4a0763928b",
        "db7ec13950f4862a",
        "6fe9b308c2d714a5",
        "a2847615fb9e3cd0",
    )
)
_QUARTERS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
_ROUNDS = 12
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, _LANES)


def _rotated(builder: Any, value: Any, bits: int) -> Any:
    right = builder.lshr(value, ir.Constant(_VECTOR, [bits] * _LANES))
    return builder.or_(right, builder.shl(value, ir.Constant(_VECTOR, [64 - bits] * _LANES)))


def _quarter(builder: Any, v: list[Any], places: tuple[int, ...], x: Any, y: Any) -> None:
    """Mix four words of the state with two of the message."""
    a, b, c, d = places
    for word, first, second in ((x, 32, 24), (y, 16, 63)):
        v[a] = builder.add(builder.add(v[a], v[b]), word)
        v[d] = _rotated(builder, builder.xor(v[d], v[a]), first)
        v[c] = builder.add(v[c], v[d])
        v[b] = _rotated(builder, builder.xor(v[b], v[c]), second)


@intrinsic
def _compress(typing_context: Any, state: Any, block: Any) -> Any:
    """Compress one block in every lane.

    Args:
        typing_context: numba's.
        state: uint64 [8 * 8], eight words of eight lanes.
        block: uint64 [18 * 8], sixteen words of the message, bytes so far, and all ones in a last block.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [
            builder.bitcast(context.make_array(kind)(context, builder, value).data, _VECTOR.as_pointer())
            for kind, value in zip(signature.args, args, strict=True)
        ]

        def place(pointer: Any, row: int) -> Any:
            return builder.gep(pointer, [ir.Constant(_WORD, row)])

        def row_of(pointer: Any, row: int) -> Any:
            value = builder.load(place(pointer, row))
            value.align = 8
            return value

        before = [row_of(pointers[0], row) for row in range(8)]
        words = [row_of(pointers[1], row) for row in range(18)]
        v = before + [ir.Constant(_VECTOR, [value] * _LANES) for value in _INITIAL]
        v[12], v[14] = builder.xor(v[12], words[16]), builder.xor(v[14], words[17])
        for number in range(_ROUNDS):
            order = _ORDERS[number % len(_ORDERS)]
            for index, places in enumerate(_QUARTERS):
                _quarter(builder, v, places, words[order[2 * index]], words[order[2 * index + 1]])
        for row in range(8):
            value = builder.xor(before[row], builder.xor(v[row], v[row + 8]))
            builder.store(value, place(pointers[0], row)).align = 8
        return context.get_dummy_value()

    return types.void(state, block), generate


@inner
def _load_lane(data, at, count, words, lane):
    """Put up to 128 bytes, filled up with zeros, into one lane of a block."""
    whole = count >> 3
    for row in range(whole):
        words[np.uint64(row * _LANES + lane)] = load_le64(data, at + 8 * row)
    for row in range(whole, 16):
        words[np.uint64(row * _LANES + lane)] = 0
    for i in range(8 * whole, count):
        place = np.uint64((i >> 3) * _LANES + lane)
        words[place] |= np.uint64(data[at + i]) << np.uint64(8 * (i & 7))


@inner
def _start_lane(state, lane):
    for row in range(8):
        state[np.uint64(row * _LANES + lane)] = _START[row]


@entry
def hash_all(data, starts, stops, digests, lanes, state, words):
    """Keep the lanes busy: one whose message is finished begins the next.

    Args:
        data: as in `loaders.packs.stored.blake2b.hash_all`.
        starts: as in `loaders.packs.stored.blake2b.hash_all`.
        stops: as in `loaders.packs.stored.blake2b.hash_all`.
        digests: uint64 [N, 2], result.
        lanes: int64 [8, 2], the message of each lane, -1 for none, and the bytes taken of it.
        state: uint64 [8 * 8].
        words: uint64 [18 * 8].
    """
    num_messages = len(digests)
    num_begun = min(_LANES, num_messages)
    for lane in range(_LANES):
        lanes[lane, 0], lanes[lane, 1] = (lane if lane < num_begun else -1), 0
        _start_lane(state, lane)
    num_busy = num_begun
    while num_busy:
        for lane in range(_LANES):
            message = lanes[lane, 0]
            if message < 0:
                continue
            taken, size = lanes[lane, 1], stops[message] - starts[message]
            count = min(_BLOCK_BYTES, size - taken)
            _load_lane(data, starts[message] + taken, count, words, lane)
            lanes[lane, 1] = taken + count
            words[16 * _LANES + lane] = taken + count
            words[17 * _LANES + lane] = ~np.uint64(0) if taken + count == size else np.uint64(0)
        _compress(state, words)
        for lane in range(_LANES):
            message = lanes[lane, 0]
            if message < 0 or lanes[lane, 1] < stops[message] - starts[message]:
                continue
            digests[message, 0], digests[message, 1] = state[lane], state[_LANES + lane]
            _start_lane(state, lane)
            is_more = num_begun < num_messages
            lanes[lane, 0], lanes[lane, 1] = (num_begun if is_more else -1), 0
            num_begun += is_more
            num_busy -= not is_more
