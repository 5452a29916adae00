"""The compiled decoding of a chunk: pixels, damage, and continuing after a damaged row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import simplejpeg
import torch

from loaders import LoaderOptions, build_loader
from loaders.backends.decoding import Decoder, regions_of
from loaders.kernels.encodings import ENCODING_RAW
from loaders.views import presets
from tests.loaders.encoded_rows import encoded_rows, pixels_of
from tests.loaders.packs.inputs import jpeg, pack, pixels, write_tree


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
    for one, begin in zip(images, starts, strict=True):
        found = pixels_of(out, begin, one.height, one.width)
        np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(one.jpeg, "RGB"))


def damaged(one: Image) -> dict[str, tuple[tuple[bytes, int, int], str]]:
    scan, table = one.jpeg.index(b"\xff\xda"), one.jpeg.index(b"\xff\xc4") + 5
    counts = bytes(255 - b for b in one.jpeg[table : table + 16])
    return {
        "cut": ((one.jpeg[: scan + 40], one.height, one.width), "[Pp]remature end"),
        "no image": ((b"no image", one.height, one.width), "Not a JPEG|Could not determine"),
        "empty": ((b"", one.height, one.width), "."),
        "another size": ((one.jpeg, one.height, one.width + 1), "expected 40 x 49 pixels .* found 40 x 48"),
        "heading": (
            (one.jpeg[:table] + counts + one.jpeg[table + 16 :], one.height, one.width),
            "Bogus Huffman table",
        ),
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
    starts[2] = starts[1]  # the damaged row gets no room
    assert decoder.decode(rows, 2, starts, out) == 3
    for start in (0, 3 * 20 * 20):
        np.testing.assert_array_equal(pixels_of(out, start, 20, 20), simplejpeg.decode_jpeg(good.jpeg, "RGB"))


def test_nothing_is_written_outside_the_memory() -> None:
    rows = encoded_rows(image(5, 30, 30).row)
    memory = np.full(30 * 30 * 3 + 200, 7, np.uint8)
    assert Decoder().decode(rows, 0, np.array([100]), memory[: 100 + 2699]) == 0  # one byte too few
    assert (memory == 7).all()
    assert Decoder().decode(rows, 0, np.array([100]), memory[:-100]) == 1
    assert (memory[:100] == 7).all()
    assert (memory[-100:] == 7).all()


def test_pixels_are_taken_as_they_are_and_other_encodings_refused() -> None:
    decoder, starts, out = Decoder(), np.zeros(1, np.int64), np.zeros(12, np.uint8)
    stored = bytes(range(12))
    assert decoder.decode(encoded_rows((stored, 2, 2), encoding=ENCODING_RAW), 0, starts, out) == 1
    assert pixels_of(out, 0, 2, 2).tobytes() == stored
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


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "gray"])
def test_a_region_has_the_pixels_of_the_whole(subsampling: str) -> None:
    """This holds for any bounds, although the decoder's upsampling reads pixels around the region."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = np.asarray(PIL.Image.fromarray(noise).resize((211, 163)))
    if subsampling == "gray":
        jpeg = simplejpeg.encode_jpeg(picture[..., :1].copy(), 95, colorspace="gray")
    else:
        jpeg = simplejpeg.encode_jpeg(picture.copy(), 95, colorsubsampling=subsampling)
    whole, decoder, rng = simplejpeg.decode_jpeg(jpeg, "RGB"), Decoder(), np.random.default_rng(1)
    out = np.zeros(whole.size, np.uint8)
    for _ in range(200):
        top, left = int(rng.integers(0, 162)), int(rng.integers(0, 210))
        bottom, right = int(rng.integers(top + 1, 164)), int(rng.integers(left + 1, 212))
        rows = encoded_rows((jpeg, 163, 211))
        window = np.array([[top, left, bottom, right]], np.int32)
        rows.regions[:] = regions_of([window], rows.heights, rows.widths)
        wanted = rows.regions[0].tolist()
        assert decoder.decode(rows, 0, np.zeros(1, np.int64), out) == 1
        assert rows.regions[0].tolist() == wanted
        y, x, height, width = wanted
        found = pixels_of(out, 0, height, width)
        np.testing.assert_array_equal(
            found[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right]
        )


def test_a_region_spans_all_windows_and_small_images_are_decoded_whole() -> None:
    windows = [np.array([[50, 100, 60, 120]] * 2, np.int32), np.array([[40, 110, 55, 130]] * 2, np.int32)]
    regions = regions_of(windows, np.array([300, 70]), np.array([400, 140]))
    assert regions.tolist() == [[36, 96, 28, 38], [0, 0, 70, 140]]


def test_a_cut_image_is_noticed_whatever_is_wanted_of_it() -> None:
    cut = image(7, 200, 200).jpeg[:-300]
    rows = encoded_rows((cut, 200, 200))
    rows.regions[:] = 0, 0, 16, 16
    assert Decoder().decode(rows, 0, np.zeros(1, np.int64), np.zeros(120_000, np.uint8)) == 0


def test_a_batch_is_the_same_whatever_else_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(
        tmp_path / "p",
        f"train={write_tree(tmp_path / 'in', {f'{i}.jpg': jpeg(i, 260, 310) for i in range(8)})}",
    )
    sizes: list[int] = []

    def batch() -> list[torch.Tensor]:
        views = (presets.barlow_a(32), presets.crop_flip(40))
        with build_loader(packed.split("train"), views, 8, options=LoaderOptions(num_threads=1)) as loader:
            return list(next(iter(loader.epoch(0))).views)

    def watched(*args: Any) -> Any:
        regions = regions_of(*args)
        sizes.append(int((regions[:, 2] * regions[:, 3]).sum()))
        return regions

    def all_of_it(windows: Any, heights: Any, widths: Any) -> Any:
        return np.stack([0 * heights, 0 * heights, heights, widths], axis=1)

    monkeypatch.setattr("loaders.backends.cpu.regions_of", watched)
    parts = batch()
    assert sum(sizes) < 0.85 * 8 * 260 * 310
    monkeypatch.setattr("loaders.backends.cpu.regions_of", all_of_it)
    assert all(torch.equal(a, b) for a, b in zip(parts, batch(), strict=True))
