"""Compiled loops of packing against what they stand for: hashlib, libjpeg-turbo, the operating system."""

import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.packs.resize import MIN_WIDTH_PX
from loaders.packs.stored.blake2b import hash_all
from loaders.packs.stored.crc32 import crc32_all
from loaders.packs.stored.jpeg_scan import ScanTables, scan_jpegs
from loaders.packs.stored.read_files import read_files
from loaders.packs.stored.shrink import shrink_hamming
from loaders.packs.stored.sizes import CLEAN, HAS_EXIF, HEIGHT, WIDTH
from tests.loaders.kernels.jpeg.harm import harm
from tests.loaders.packs.inputs import encoded, jpeg, pixels
from tools.draw_images import NUM_DAMAGES, damage


def joined(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def scanned(files: list[bytes], tables: ScanTables | None = None) -> np.ndarray:
    return scan_jpegs(*joined(files), tables or ScanTables())


def is_whole(data: bytes) -> bool:
    """libjpeg-turbo's word: no error and no warning."""
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 200])
def test_hashes_are_those_of_hashlib(count: int) -> None:
    rng = np.random.default_rng(count)
    sizes = [0, 1, 127, 128, 129, 256, *rng.integers(0, 900, 200).tolist()][:count]
    files = [rng.bytes(size) for size in sizes]
    expected = [hashlib.blake2b(file, digest_size=16).digest() for file in files]
    data, starts = joined(files)
    assert [row.tobytes() for row in hash_all(data, starts[:-1], starts[1:])] == expected


@pytest.mark.parametrize("first", [0, 1, 9])  # on a machine word, and not
def test_crc32_is_that_of_zlib(first: int) -> None:
    """Below 64 bytes tables do it; above, 16-byte lanes fold by four, by one, and tables do what is left."""
    sizes = np.array([*range(300), 4093, 65_536, 1_000_003])
    data = np.frombuffer(np.random.default_rng(first).bytes(first + int(sizes.sum())), np.uint8)
    starts = first + np.cumsum(sizes) - sizes
    found = crc32_all(np.uint64(data.ctypes.data) + starts.astype(np.uint64), sizes)
    assert found.tolist() == [zlib.crc32(data[a : a + n].data) for a, n in zip(starts, sizes, strict=True)]


def test_usual_files_are_clean() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 47, 3), dtype=np.uint8)
    files = [jpeg(0)]
    for quality in (5, 50, 75, 90, 95, 100):
        for subsampling in ("444", "422", "420", "440"):
            for image in (pixels(quality, 33, 50), noise):
                files.append(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "rgb", subsampling))
    files += [encoded(Image.fromarray(pixels(i)), "JPEG") for i in range(3)]
    files += [simplejpeg.encode_jpeg(noise[:, :, :1].copy(), 90, "gray", "gray") for _ in range(2)]
    tables = ScanTables()
    scanned(files, tables)  # the first sight of a Huffman table only notes it
    facts = scanned(files, tables)
    assert (facts[:, CLEAN] == 1).all()
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    assert [(w, h) for h, w in facts[:, [HEIGHT, WIDTH]].tolist()] == sizes


def test_huffman_tables_of_their_own() -> None:
    files = [encoded(Image.fromarray(pixels(i, 90, 90)), "JPEG", optimize=True) for i in range(4)]
    tables = ScanTables()
    for file in files:
        assert scanned([file], tables)[0, CLEAN] == 0  # never seen before, and small: left to libjpeg
        assert scanned([file], tables)[0, CLEAN] == 1
    assert scanned([file[:-40] + b"\xff\xd9"], tables)[0, CLEAN] == 0
    large = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert scanned([encoded(Image.fromarray(large), "JPEG", optimize=True, quality=95)])[0, CLEAN] == 1


def test_left_to_libjpeg() -> None:
    image = Image.fromarray(pixels(0, 64, 64))
    good = jpeg(0)
    files = [
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG", restart_marker_blocks=2),
        encoded(image, "PNG"),
        good[:-2],
        good[: len(good) // 2],
        good[:2],
        b"",
        good[:-2] + b"\0\0\xff\xd9",
        good[:-2] + b"\xff\xd0\xff\xd9",
    ]
    tables = ScanTables()
    for _ in range(2):
        assert not scanned(files, tables)[:, CLEAN].any()
    assert scanned([good + b"behind the end", good], tables)[:, CLEAN].tolist() == [1, 1]
    exif = Image.Exif()
    exif[0x0112] = 6
    assert scanned([encoded(image, "JPEG", exif=exif)] * 2, tables)[1, HAS_EXIF] == 1


@pytest.mark.parametrize("way", range(NUM_DAMAGES))
def test_damaged_files_are_not_clean(way: int) -> None:
    tables = ScanTables()
    scanned([jpeg(0), jpeg(0)], tables)
    assert scanned([damage(jpeg(0, 96, 96), way)], tables)[0, CLEAN] == 0


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_clean_decodes_without_a_warning(data: st.DataObject) -> None:
    file = bytearray(jpeg(data.draw(st.integers(0, 20)), 40, 56))
    harm(data, file)
    tables = ScanTables()
    scanned([bytes(file)], tables)
    if scanned([bytes(file)], tables)[0, CLEAN]:
        assert is_whole(bytes(file))


def test_files_are_read_as_they_were_listed(tmp_path: Path) -> None:
    contents = {"a": b"", "b": b"x" * 5000, "ü c": b"yz", "grown": b"1234", "cut": b"12", "gone": b"1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone").unlink()
    sizes = [len(content) for content in contents.values()]
    sizes[3], sizes[4] = 3, 3
    paths = [os.fsencode(tmp_path / name) for name in contents]
    starts = np.cumsum([0, *(len(path) + 1 for path in paths)])[:-1]
    data, places, good = read_files(b"\0".join([*paths, b""]), starts, np.array(sizes))
    assert good.tolist() == [True, True, True, False, False, False]
    for i, content in enumerate(list(contents.values())[:3]):
        assert data[places[i] : places[i + 1]].tobytes() == content


def hamming_matrix(length: int, size: int) -> np.ndarray:
    """Return float64 [size, length], Pillow's Hamming filter written out."""
    scale = length / size
    matrix = np.zeros((size, length))
    for place in range(size):
        center = (place + 0.5) * scale
        for source in range(int(max(0, center - scale + 0.5)), min(length, int(center + scale + 0.5))):
            x = (source + 0.5 - center) / scale
            if abs(x) < 1:
                matrix[place, source] = np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((300, 451), (100, 150)),
        ((375, 500), (256, 341)),
        ((97, MIN_WIDTH_PX), (96, 5)),
        ((1, 4000), (1, 3)),
        ((700, 7), (1, 1)),
        ((33, 48), (33, 47)),
        ((64, 64), (32, 64)),
    ],
)
def test_shrinking_is_the_filter_and_rounds_once(size: tuple[int, int], to: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = shrink_hamming(noise, *to)
    rows, columns = hamming_matrix(size[0], to[0]), hamming_matrix(size[1], to[1])
    exact = np.einsum("yh,hwc,xw->yxc", rows, noise.astype(float), columns, optimize=True)
    assert np.abs(got - exact).max() < 0.55  # a weight is a multiple of 2^-16
    pillow = np.asarray(Image.fromarray(noise).resize(to[::-1], Image.Resampling.HAMMING))
    assert np.abs(got.astype(int) - pillow).max() <= 1
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, shrink_hamming(noise, *to))


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_shrinking_keeps_a_flat_image(value: int) -> None:
    flat = np.full((61, 83, 3), value, np.uint8)
    assert (shrink_hamming(flat, 17, 29) == value).all()
