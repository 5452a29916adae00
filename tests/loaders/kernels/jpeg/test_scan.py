"""The check that a JPEG is certainly an intact baseline file, compared with libjpeg-turbo's verdict."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.kernels.jpeg.markers import CLEAN, HAS_EXIF, HEIGHT, WIDTH
from loaders.kernels.jpeg.scan import ScanTables, scan_jpegs
from tests.loaders.kernels.jpeg.harm import harm
from tests.loaders.packs.inputs import encoded, jpeg, pixels
from tools.draw_images import NUM_DAMAGES, damage


def joined(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def scanned(files: list[bytes], tables: ScanTables | None = None) -> np.ndarray:
    return scan_jpegs(*joined(files), tables or ScanTables())


def is_whole(data: bytes) -> bool:
    """Return libjpeg-turbo's verdict: whether it has neither errors nor warnings."""
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError:
        return False
    return True


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
    scanned(files, tables)  # the first time, Huffman tables are only noted
    facts = scanned(files, tables)
    assert (facts[:, CLEAN] == 1).all()
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    assert [(w, h) for h, w in facts[:, [HEIGHT, WIDTH]].tolist()] == sizes


def test_huffman_tables_of_their_own() -> None:
    files = [encoded(Image.fromarray(pixels(i, 90, 90)), "JPEG", optimize=True) for i in range(4)]
    tables = ScanTables()
    for file in files:
        assert scanned([file], tables)[0, CLEAN] == 0  # small, with new tables: left to libjpeg
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
