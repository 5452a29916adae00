"""The compiled decoding of a chunk: pixels, damage, and going on behind a damaged row."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import simplejpeg

from loaders.decode import Decoder
from loaders.packs.columns import ENCODING_RAW
from tests.loaders.encoded_rows import encoded_rows
from tests.loaders.packs.inputs import pixels


@dataclass
class Image:
    """A small picture and its JPEG."""

    jpeg: bytes
    height: int
    width: int

    @property
    def row(self) -> tuple[bytes, int, int]:
        return self.jpeg, self.height, self.width


def image(number: int, height: int, width: int, subsampling: str = "444") -> Image:
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels(number, height, width)), 90, colorsubsampling=subsampling
    )
    return Image(encoded, height, width)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "gray"])
def test_pixels_are_those_of_another_binding(subsampling: str) -> None:
    if subsampling == "gray":
        jpegs = [
            simplejpeg.encode_jpeg(pixels(i, 17, 33)[..., :1].copy(), colorspace="gray") for i in range(3)
        ]
        images = [Image(jpeg, 17, 33) for jpeg in jpegs]
    else:
        images = [image(0, 17, 33, subsampling), image(1, 1, 1, subsampling), image(2, 50, 16, subsampling)]
    rows = encoded_rows(*(one.row for one in images))
    starts, out = np.zeros(3, np.int64), np.zeros(int(rows.pixel_bytes.sum()), np.uint8)
    assert Decoder().decode(rows, 0, starts, out) == 3
    assert starts.tolist() == [0, *np.cumsum(rows.pixel_bytes)[:-1].tolist()]
    for one, begin, size in zip(images, starts, rows.pixel_bytes, strict=True):
        found = out[begin : begin + size].reshape(one.height, one.width, 3)
        np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(one.jpeg, "RGB"))


def damaged(one: Image) -> dict[str, tuple[tuple[bytes, int, int], str]]:
    scan = one.jpeg.index(b"\xff\xda")
    return {
        "cut": ((one.jpeg[: scan + 40], one.height, one.width), "[Pp]remature end"),
        "no image": ((b"no image", one.height, one.width), "Not a JPEG|Could not determine"),
        "empty": ((b"", one.height, one.width), "."),
        "another size": ((one.jpeg, one.height, one.width + 1), "expected 40 x 49 pixels .* found 40 x 48"),
        "marker inside": (
            (one.jpeg[: scan + 60] + b"\xff\xd5" + one.jpeg[scan + 62 :], one.height, one.width),
            "[Cc]orrupt|[Pp]remature|marker",
        ),
    }


@pytest.mark.parametrize("damage", damaged(image(3, 40, 48)))
def test_damage_stops_at_its_row_and_the_rest_can_follow(damage: str) -> None:
    good = image(4, 20, 20)
    bad, message = damaged(image(3, 40, 48))[damage]
    rows = encoded_rows(good.row, bad, good.row)
    starts, out = np.zeros(3, np.int64), np.zeros(int(rows.pixel_bytes.sum()), np.uint8)
    decoder = Decoder()
    assert decoder.decode(rows, 0, starts, out) == 1
    assert re.search(message, decoder.reason(rows, 1))
    starts[2] = starts[1]  # without room for the damaged one
    assert decoder.decode(rows, 2, starts, out) == 3
    whole = simplejpeg.decode_jpeg(good.jpeg, "RGB").ravel()
    np.testing.assert_array_equal(out[: 2 * len(whole)], np.tile(whole, 2))


def test_nothing_is_written_outside_the_memory() -> None:
    rows = encoded_rows(image(5, 30, 30).row)
    memory = np.full(30 * 30 * 3 + 200, 7, np.uint8)
    assert Decoder().decode(rows, 0, np.array([100]), memory[: 100 + 2699]) == 0  # a byte too little
    assert (memory == 7).all()
    assert Decoder().decode(rows, 0, np.array([100]), memory[:-100]) == 1
    assert (memory[:100] == 7).all()
    assert (memory[-100:] == 7).all()


def test_pixels_are_copied_and_other_encodings_refused() -> None:
    decoder, starts, out = Decoder(), np.zeros(1, np.int64), np.zeros(12, np.uint8)
    stored = bytes(range(12))
    assert decoder.decode(encoded_rows((stored, 2, 2), encoding=ENCODING_RAW), 0, starts, out) == 1
    assert out.tobytes() == stored
    short = encoded_rows((stored[:11], 2, 2), encoding=ENCODING_RAW)
    assert decoder.decode(short, 0, starts, out) == 0
    assert decoder.reason(short, 0) == "11 bytes, expected 2 x 2 pixels of 3"
    unknown = encoded_rows((stored, 2, 2), encoding=7)
    assert decoder.decode(unknown, 0, starts, out) == 0
    assert decoder.reason(unknown, 0) == "encoding 7, expected 0 or 1"


def test_a_row_whose_checksum_failed_is_not_decoded() -> None:
    decoder, rows = Decoder(), encoded_rows(image(6, 8, 8).row)
    rows.whole[0] = False
    assert decoder.decode(rows, 0, np.zeros(1, np.int64), np.zeros(192, np.uint8)) == 0
    assert decoder.reason(rows, 0) == "its bytes differ from the CRC-32 in the index"
