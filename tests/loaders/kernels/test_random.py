import numpy as np
import pytest

from loaders.kernels.random import philox, uniform4

FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox(*(np.uint64(word) for word in counter + key))
    assert tuple(int(word) for word in words) == expected


def test_every_part_of_the_address_counts():
    base = (1, 2, 3, 4, 5, 6)
    seen = {uniform4(*base)}
    for place in range(6):
        for change in (1, 1 << 15):
            other = list(base)
            other[place] += change
            seen.add(uniform4(*other))
    assert len(seen) == 13


def test_negative_and_large_seeds_are_allowed():
    assert uniform4(np.int64(-1), 0, 0, 0, 0, 0) != uniform4(np.int64(2**63 - 1), 0, 0, 0, 0, 0)
