"""Our decoder of baseline JPEGs gives the same bytes as libjpeg-turbo, or leaves the file to it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray
from PIL import Image

from loaders.backends.decoding import EncodedRows
from loaders.kernels.jpeg import idct
from loaders.kernels.jpeg.baseline import make_baseline, sample_bytes, scan_bytes
from loaders.kernels.jpeg.decode import FOUND_DAMAGE, decode_all
from loaders.kernels.jpeg.entropy import PLACES
from loaders.kernels.jpeg.turbojpeg import AHEAD
from tests.loaders.kernels.jpeg.harm import harm
from tests.loaders.packs.inputs import pixels

SUBSAMPLINGS = ["444", "422", "420", "440", "gray"]
EDGE = 64


BASE = make_baseline()
NO_DECOMPRESSOR = 0  # so that files left to libjpeg-turbo fail


def decoded(
    data: bytes, height: int, width: int, region: tuple[int, ...] | None = None
) -> NDArray[np.uint8] | None:
    """Decode a region to uint8 [3, H, W]; None if the file is left to libjpeg-turbo."""
    place = region or (0, 0, height, width)
    size, whole = 3 * place[2] * place[3], 3 * height * width
    planes = np.full(EDGE + whole + EDGE, 7, np.uint8)
    rows = EncodedRows.of_jpegs([np.frombuffer(data, np.uint8)], np.array([height]), np.array([width]))
    rows.regions[0] = place
    found = np.zeros(3, np.int64)
    done = decode_all(
        NO_DECOMPRESSOR, rows.addresses, rows.sizes, rows.encodings, rows.heights, rows.widths, rows.regions,
        rows.whole, 0, np.zeros(1, np.int64), BASE, np.empty(scan_bytes(len(data)), np.uint8),
        np.empty(AHEAD, np.uint8), np.empty(int(sample_bytes(height, width)), np.uint8),
        planes[EDGE : EDGE + whole], found,
    )  # fmt: skip
    assert done or found[0] == FOUND_DAMAGE
    assert (planes[:EDGE] == 7).all()
    assert (planes[EDGE + size :] == 7).all()
    return planes[EDGE : EDGE + size].reshape(3, place[2], place[3]) if done else None


def expected(data: bytes) -> NDArray[np.uint8]:
    """Decode a whole file with libjpeg-turbo to uint8 [3, H, W]."""
    return simplejpeg.decode_jpeg(data, "RGB").transpose(2, 0, 1)


def encoded(picture: NDArray[np.uint8], quality: int, subsampling: str) -> bytes:
    picture = np.ascontiguousarray(picture[..., :1] if subsampling == "gray" else picture)
    if subsampling == "gray":
        return simplejpeg.encode_jpeg(picture, quality, colorspace="gray")
    return simplejpeg.encode_jpeg(picture, quality, colorsubsampling=subsampling)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [5, 50, 90, 100])
def test_every_size_and_sampling_has_the_pixels_of_libjpeg_turbo(subsampling: str, quality: int) -> None:
    for height in (1, 2, 3, 7, 8, 9, 15, 16, 17, 33):
        for width in (5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50):
            for picture in (noise(height, width), pixels(height, height, width)):
                data = encoded(picture, quality, subsampling)
                found = decoded(data, height, width)
                assert found is not None
                np.testing.assert_array_equal(found, expected(data))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_region_has_the_pixels_of_the_whole(subsampling: str) -> None:
    data = encoded(np.asarray(Image.fromarray(noise(40, 50)).resize((211, 163))), 92, subsampling)
    whole, rng = expected(data), np.random.default_rng(1)
    for _ in range(300):
        top, left = int(rng.integers(0, 163)), int(rng.integers(0, 211))
        height, width = int(rng.integers(1, 164 - top)), int(rng.integers(1, 212 - left))
        found = decoded(data, 163, 211, (top, left, height, width))
        assert found is not None
        np.testing.assert_array_equal(found, whole[:, top : top + height, left : left + width])


def test_tables_of_its_own_and_many_coefficients() -> None:
    """Codes of 16 bits, magnitudes beyond the look-up table, and blocks without an end-of-block code."""
    for seed, picture in enumerate([noise(64, 80), pixels(1, 200, 300), noise(31, 45) // 128 * 255]):
        for quality in (30, 95, 100):
            file = io.BytesIO()
            Image.fromarray(picture).save(
                file, "JPEG", quality=quality, optimize=True, subsampling=2 * (seed == 1)
            )
            found = decoded(file.getvalue(), *picture.shape[:2])
            assert found is not None
            np.testing.assert_array_equal(found, expected(file.getvalue()))


def saved(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def test_what_is_not_of_the_usual_kind_is_left_to_libjpeg_turbo() -> None:
    picture = Image.fromarray(pixels(2, 40, 56))
    usual = saved(picture)
    assert decoded(usual, 40, 56) is not None
    scan = usual.index(b"\xff\xda")
    for name, data in {
        "progressive": saved(picture, progressive=True),
        "four colours": saved(picture.convert("CMYK")),
        "red, green and blue": saved(picture, keep_rgb=True),
        "restart intervals": saved(picture, restart_marker_blocks=2),
        "cut": usual[:-300],
        "more behind it": usual + b"\0",
        "a marker inside": usual[: scan + 60] + b"\xff\xd5" + usual[scan + 62 :],
        "codes left over": usual[:-2] + b"\x12\x34" + usual[-2:],
        "no image": b"no image",
        "nothing": b"",
    }.items():
        assert decoded(data, 40, 56) is None, name
    assert decoded(usual, 40, 55) is None
    assert decoded(usual, 41, 56) is None
    assert decoded(saved(picture.resize((4, 40))), 40, 4) is None


def warns(data: bytes) -> bool:
    """Return whether libjpeg-turbo warns about a file."""
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return True
    return False


@settings(max_examples=300)
@given(st.data())
def test_of_a_damaged_file_either_the_pixels_are_those_of_libjpeg_turbo_or_it_is_left_to_it(
    data: st.DataObject,
) -> None:
    subsampling = data.draw(st.sampled_from(["444", "420"]))
    file = bytearray(encoded(pixels(data.draw(st.integers(0, 20)), 40, 56), 85, subsampling))
    tables = [bytes(part[:67]) for part in file.split(b"\xff\xdb")[1:]]
    harm(data, file)
    found = decoded(bytes(file), 40, 56)
    if found is not None:
        assert not warns(bytes(file))
        if all(table in file for table in tables):  # larger quantisation steps would overflow 16 bits
            np.testing.assert_array_equal(found, expected(bytes(file)))


def test_the_order_of_coefficients_is_that_of_the_standard() -> None:
    assert PLACES[:16].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]
    assert PLACES[63] == 63
    assert sorted(PLACES[:64]) == list(range(64))


def plain_transform(coefficients: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the inverse cosine transform of [8, 8] plus 128, in float64."""
    x, u = np.arange(8)[:, None], np.arange(8)[None]
    basis = np.cos((2 * x + 1) * u * np.pi / 16) * np.where(u == 0, np.sqrt(0.125), 0.5)
    return basis @ coefficients @ basis.T + 128


@pytest.mark.parametrize("has_avx2", [True, False])
def test_the_transform_is_the_cosine_transform(has_avx2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_avx2 and not idct.HAS_AVX2:
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(idct, "HAS_AVX2", has_avx2)

    @njit
    def transform(coefficients, factors, out):
        idct.transform_block(coefficients, factors, 0, out, 0, 8)

    rng, outs = np.random.default_rng(3), []
    for number in range(50):
        coefficients = np.zeros(80, np.int16)
        coefficients[: 1 + number] = rng.integers(-20, 21, 1 + number)
        coefficients = coefficients[:64].copy()
        factors = rng.integers(1, 12, 64).astype(np.int16)
        out = np.zeros(64, np.uint8)
        transform(coefficients, factors, out)
        exact = plain_transform((coefficients.astype(np.int64) * factors).reshape(8, 8))
        assert np.abs(out.reshape(8, 8) - np.clip(exact, 0, 255)).max() < 1
        outs.append(out)
    assert len({out.tobytes() for out in outs}) > 40
