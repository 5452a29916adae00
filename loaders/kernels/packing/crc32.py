"""CRC-32 of many images in one call of compiled code, without the interpreter's lock.

Sixteen bytes are a polynomial of 128 bits. Multiplied without carries by what its place is worth modulo the
checksum's own polynomial, it moves behind any distance of the message: so four of them fold over the whole
image, 64 bytes a turn, as in Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
Instruction". Where a processor has no such product, tables take eight bytes a turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from loaders.kernels.memory import bytes_at, entry, inner, load_le64

_POLYNOMIAL = 0xEDB88320  # of zlib, PNG and Ethernet, the highest power in the lowest bit
HAS_PRODUCT = bool(binding.get_host_cpu_features().get("pclmul"))
_LANE = 16  # bytes
_TURN = 4 * _LANE


def _power(exponent: int) -> int:
    """Return x to a power modulo the polynomial, shifted as the reflected product wants it."""
    value = 1 << 31  # x ** 0, reflected
    for _ in range(exponent):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value << 1


@entry
def crc32_all(addresses, sizes, tables, lane, found):
    """Compute the CRC-32 of all; see `loaders.packs.stored.crc32`."""
    for i in range(len(sizes)):
        data = bytes_at(addresses[i], sizes[i])
        crc, at = np.uint64(0xFFFFFFFF), np.int64(0)
        if HAS_PRODUCT and len(data) >= _TURN:
            at = len(data) - len(data) % np.int64(_LANE)
            _fold(data, at, lane)
            crc = _by_table(lane, np.int64(0), tables, np.uint64(0))
        found[i] = np.uint32(_by_table(data, at, tables, crc) ^ np.uint64(0xFFFFFFFF))


@inner
def _by_table(data, at, tables, crc):
    """Return `crc` after data[at:]."""
    while at + 8 <= len(data):
        word = load_le64(data, at) ^ crc
        crc = np.uint64(0)
        for k in range(8):
            crc ^= np.uint64(tables[7 - k, (word >> np.uint64(8 * k)) & np.uint64(255)])
        at += 8
    while at < len(data):
        crc = np.uint64(tables[0, (crc ^ np.uint64(data[at])) & np.uint64(255)]) ^ (crc >> np.uint64(8))
        at += 1
    return crc


@intrinsic
def _fold(typing_context: Any, data: Any, stop: Any, lane: Any) -> Any:
    """Write to `lane` sixteen bytes that have, from zero on, the checksum which data[:stop] has from ones on.

    `stop` is a multiple of 16, and 64 at least.
    """
    i64 = ir.IntType(64)
    kind = ir.VectorType(i64, 2)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.module.declare_intrinsic(
            "llvm.x86.pclmulqdq", fnty=ir.FunctionType(kind, (kind, kind, ir.IntType(8)))
        )
        base = context.make_array(signature.args[0])(context, builder, args[0]).data

        def load(at: Any) -> Any:
            value = builder.load(builder.bitcast(builder.gep(base, [at]), kind.as_pointer()))
            value.align = 1
            return value

        def moved(value: Any, distance: int) -> Any:
            """Return `value` as it counts `distance` bits further on."""
            factors = ir.Constant(kind, [_power(distance + 32), _power(distance - 32)])
            low, high = (
                builder.call(product, [value, factors, ir.Constant(ir.IntType(8), which)])
                for which in (0x00, 0x11)
            )
            return builder.xor(low, high)

        at = [ir.Constant(i64, _LANE * k) for k in range(4)]
        lanes = [cgutils.alloca_once_value(builder, load(place)) for place in at]
        ones = ir.Constant(kind, [0xFFFFFFFF, 0])
        builder.store(builder.xor(builder.load(lanes[0]), ones), lanes[0])
        # Whole turns of four lanes, then the lanes that are left one by one.
        whole = builder.and_(args[1], ir.Constant(i64, ~(_TURN - 1)))
        turn = ir.Constant(i64, _TURN)
        with cgutils.for_range_slice(builder, turn, whole, turn, i64) as (first, _):
            for place, one in zip(at, lanes, strict=True):
                further = moved(builder.load(one), 8 * _TURN)
                builder.store(builder.xor(further, load(builder.add(first, place))), one)
        last = lanes[0]
        for one in lanes[1:]:
            builder.store(builder.xor(moved(builder.load(last), 8 * _LANE), builder.load(one)), last)
        with cgutils.for_range_slice(builder, whole, args[1], ir.Constant(i64, _LANE), i64) as (first, _):
            builder.store(builder.xor(moved(builder.load(last), 8 * _LANE), load(first)), last)
        out = context.make_array(signature.args[2])(context, builder, args[2]).data
        builder.store(builder.load(last), builder.bitcast(out, kind.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(data, types.int64, lane), generate
