"""Whether an image is copied, re-encoded or refused."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from loaders.packs.image import Action, ImagePolicy, dct_factor, prepare_image
from loaders.packs.images.jpeg_header import parse_jpeg_header
from loaders.packs.images.resize import fit_inside, resize_antialiased
from loaders.packs.reasons import BadImage, Reason
from tests.loaders.packs.inputs import encoded, jpeg, pixels

COPY = ImagePolicy()
PICTURE = Image.fromarray(pixels(3))


def exif_jpeg(orientation: int, order: str = "<") -> bytes:
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    tiff = head + struct.pack(order + "H", 1) + entry + bytes(4)
    return encoded(PICTURE, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0" + tiff)


def test_plain_jpeg_is_copied() -> None:
    for data in (jpeg(1), encoded(PICTURE.convert("L"), "JPEG"), jpeg(2) + b"trailing bytes"):
        image = prepare_image(data, COPY)
        assert image.data == data
        assert (image.height, image.width, image.action) == (24, 32, Action(0))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, order: str) -> None:
    data = exif_jpeg(orientation, order)
    assert parse_jpeg_header(data).orientation == orientation
    image = prepare_image(data, COPY)
    assert bool(image.action & Action.ROTATED) == (orientation != 1)
    stored = Image.open(io.BytesIO(data))
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(stored))
    got = simplejpeg.decode_jpeg(image.data)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < 2
    assert parse_jpeg_header(image.data).orientation == 1


@pytest.mark.parametrize(
    ("data", "action"),
    [
        (encoded(PICTURE, "PNG"), Action.CONVERTED),
        (encoded(PICTURE, "BMP"), Action.CONVERTED),
        (encoded(PICTURE, "WEBP", lossless=True), Action.CONVERTED),
        (encoded(PICTURE, "TIFF"), Action.CONVERTED),
        (encoded(PICTURE.convert("RGBA"), "PNG"), Action.CONVERTED),
        (encoded(PICTURE, "JPEG", progressive=True, quality=95, subsampling=0), Action(0)),
    ],
)
def test_other_formats_become_jpeg(data: bytes, action: Action) -> None:
    image = prepare_image(data, COPY)
    assert image.action == Action.REENCODED | action
    header = parse_jpeg_header(image.data)
    assert (header.is_plain, header.height, header.width) == (True, 24, 32)
    difference = simplejpeg.decode_jpeg(image.data).astype(int) - pixels(3)
    assert np.abs(difference).mean() < 3


def test_cmyk_palette_alpha_16_bit_and_animation() -> None:
    cmyk = prepare_image(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), COPY)
    assert cmyk.action == Action.REENCODED | Action.CONVERTED
    assert np.abs(simplejpeg.decode_jpeg(cmyk.data).astype(int) - pixels(3)).mean() < 5
    clear = Image.fromarray(np.zeros((8, 8, 4), np.uint8))
    assert simplejpeg.decode_jpeg(prepare_image(encoded(clear, "PNG"), COPY).data).min() > 250
    deep = Image.fromarray(np.full((8, 8), 32_896, np.uint16))
    values = simplejpeg.decode_jpeg(prepare_image(encoded(deep, "PNG"), COPY).data)
    assert abs(int(values.mean()) - 128) <= 1
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    moving = prepare_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), COPY)
    assert moving.action == Action.REENCODED | Action.CONVERTED | Action.FIRST_FRAME


def with_flipped_bytes(data: bytes, first: int, count: int) -> bytes:
    first %= len(data)
    return data[:first] + bytes(b ^ 0x5A for b in data[first : first + count]) + data[first + count :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"hello", "not an image"),
        (jpeg(1)[:-60], "truncated"),
        (jpeg(1)[:100], "truncated"),
        (jpeg(1)[:3], "truncated"),
        (encoded(PICTURE, "PNG")[:-40], "truncated|damaged"),
        (with_flipped_bytes(jpeg(1), jpeg(1).index(b"\xff\xc4") + 5, 16), "damaged"),  # in a Huffman table
        (with_flipped_bytes(encoded(PICTURE, "JPEG", progressive=True), -120, 60), "damaged|truncated"),
        (jpeg(1).replace(b"\xff\xc0\x00\x11\x08\x00\x18", b"\xff\xc0\x00\x11\x08\x00\x00"), "pixels"),
    ],
)
def test_bad_images_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    for policy in (COPY, ImagePolicy(max_side=16, quality=80)):
        with pytest.raises(BadImage, match=reason):
            prepare_image(data, policy)


def test_every_cut_of_a_jpeg_is_noticed() -> None:
    """Truncated files are refused, unless only the last bytes are missing, which contain no pixels."""
    data = jpeg(7)
    whole = simplejpeg.decode_jpeg(data).astype(int)
    for length in range(len(data)):
        if length < len(data) - 2:
            with pytest.raises(BadImage) as caught:
                prepare_image(data[:length], COPY)
            assert caught.value.reason in (Reason.TRUNCATED, Reason.EMPTY, Reason.NOT_AN_IMAGE)
            continue
        image = prepare_image(data[:length], COPY)
        assert image.action == Action.REENCODED | Action.REPAIRED
        assert np.abs(simplejpeg.decode_jpeg(image.data) - whole).mean() < 2
    for length in range(1, len(data)):
        with pytest.raises(BadImage):
            prepare_image(data[:length], ImagePolicy(damaged="quarantine"))


def test_the_check_finds_what_a_full_decode_finds() -> None:
    rng = np.random.default_rng(0)
    data = jpeg(4, 64, 64)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(2, len(data))] ^= 1 << rng.integers(8)
        try:
            simplejpeg.decode_jpeg(bytes(damaged))
            good = True
        except ValueError:
            good = False
        try:
            image = prepare_image(bytes(damaged), COPY)
        except BadImage:
            continue
        # Copied images decode without a warning; all others have been re-encoded.
        assert good or image.action & Action.REENCODED


def test_bombs_are_refused_before_they_are_decoded() -> None:
    wide = jpeg(1).replace(b"\x08\x00\x18\x00\x20", b"\x08\xff\xff\xff\xff")
    with pytest.raises(BadImage, match="65535x65535 pixels, over the limit"):
        prepare_image(wide, COPY)
    with pytest.raises(BadImage, match="32x24 pixels, over the limit of 700"):
        prepare_image(encoded(PICTURE, "PNG"), ImagePolicy(max_pixels=700))


def test_resize_keeps_the_mean_and_the_ratio() -> None:
    large = pixels(5, 300, 451)
    assert fit_inside(300, 451, 100) == (67, 100)
    assert fit_inside(1, 60_000, 64) == (1, 64)
    assert fit_inside(80, 64, 80) == (80, 64)
    small = resize_antialiased(large, 67, 100)
    assert np.abs(small.mean((0, 1)) - large.mean((0, 1))).max() < 1
    image = prepare_image(jpeg(5, 300, 451), ImagePolicy(max_side=100, quality=95))
    assert (image.height, image.width) == (67, 100)
    assert image.action == Action.REENCODED | Action.RESIZED
    reference = resize_antialiased(simplejpeg.decode_jpeg(jpeg(5, 300, 451)), 67, 100)
    assert np.abs(simplejpeg.decode_jpeg(image.data).astype(int) - reference).mean() < 2


def test_a_given_quality_encodes_everything_anew() -> None:
    image = prepare_image(jpeg(1), ImagePolicy(quality=30))
    assert image.action == Action.REENCODED
    assert len(image.data) < len(jpeg(1))


def test_short_side_and_square() -> None:
    data = jpeg(5, 300, 451)
    cases = [
        (ImagePolicy(short_side=100), (100, 150), Action.RESIZED),
        (ImagePolicy(short_side=100, max_side=120), (80, 120), Action.RESIZED),
        (ImagePolicy(crop_square=True), (300, 300), Action.CROPPED),
        (ImagePolicy(crop_square=True, short_side=64), (64, 64), Action.CROPPED | Action.RESIZED),
        (ImagePolicy(crop_square=True, max_side=64), (64, 64), Action.CROPPED | Action.RESIZED),
    ]
    for policy, size, action in cases:
        image = prepare_image(data, policy)
        assert (image.height, image.width) == size == simplejpeg.decode_jpeg(image.data).shape[:2]
        assert image.action == Action.REENCODED | action
    assert prepare_image(jpeg(1), ImagePolicy(short_side=24)).action == 0
    assert prepare_image(jpeg(1, 24, 24), ImagePolicy(crop_square=True)).action == 0
    # The centre, as Pillow crops it: scaled decoding must not shift it.
    whole = Image.fromarray(simplejpeg.decode_jpeg(data))
    reference = whole.crop((75, 0, 375, 300)).resize((64, 64), Image.Resampling.HAMMING)
    got = simplejpeg.decode_jpeg(prepare_image(data, ImagePolicy(crop_square=True, short_side=64)).data)
    assert np.abs(got.astype(int) - np.asarray(reference)).mean() < 3


def test_raw_is_the_pixels() -> None:
    image = prepare_image(jpeg(1), ImagePolicy(encoding="raw"))
    assert image.is_raw
    assert image.action == Action.DECODED
    assert image.data == simplejpeg.decode_jpeg(jpeg(1)).tobytes()
    png = prepare_image(encoded(PICTURE, "PNG"), ImagePolicy(encoding="raw", crop_square=True))
    assert png.action == Action.DECODED | Action.CROPPED | Action.CONVERTED
    assert png.data == pixels(3)[:, 4:28].tobytes()
    gray = prepare_image(encoded(PICTURE.convert("L"), "JPEG"), ImagePolicy(encoding="raw"))
    assert len(gray.data) == 24 * 32 * 3


def test_decoding_leaves_twice_the_target_to_the_resize() -> None:
    for side, to, factor in [(375, 256, 1), (1023, 256, 1), (1024, 256, 2), (2048, 256, 4), (9000, 256, 8)]:
        assert dct_factor(side, side, to, to) == factor
        assert dct_factor(side, 4 * side, to, 4 * to) == factor
    assert dct_factor(8, 8, 1, 1) == 4


@pytest.mark.parametrize("short_side", [255, 128, 96, 64, 40, 20])
def test_scaled_decoding_costs_no_quality(short_side: int) -> None:
    noise = np.random.default_rng(0).normal(0, 40, (480, 640, 3))
    detailed = np.clip(pixels(9, 480, 640) + noise, 0, 255).astype(np.uint8)
    data = simplejpeg.encode_jpeg(detailed, 95, "rgb", "444")
    image = prepare_image(data, ImagePolicy(short_side=short_side, encoding="raw"))
    got = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    reference = resize_antialiased(simplejpeg.decode_jpeg(data), image.height, image.width)
    error = np.square(got.astype(float) - reference).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-3)) > 38
