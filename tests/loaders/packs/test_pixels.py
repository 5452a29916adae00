"""Every format keeps its pixels: turned upright once, on white, with one scale, or refused by name."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from loaders.packs import packer
from loaders.packs.image import Action, ImagePolicy, prepare_image
from loaders.packs.images.odd_formats import FORMATS
from loaders.packs.reasons import BadImage, Reason
from tests.corpus.build import (
    NAMED,
    PICTURE,
    chunk,
    exif,
    ftyp,
    has,
    pillow,
    planar_tiff,
    png,
    tiff,
    transparent,
    xmp,
)
from tests.loaders.packs.inputs import encoded, pack, pixels, write_tree

RAW = ImagePolicy(encoding="raw")
ORIENTATIONS = range(1, 9)
# Files from bug reports of other projects, if such a folder is in the checkout or beside it.
ODD = [file for up in (3, 4) for file in Path(__file__).parents[up].glob("shared/data/odd/*")]


def packed(data: bytes) -> np.ndarray:
    image = prepare_image(data, RAW)
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    "codec", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "group3", "group4"]
)
def test_a_tiff_is_turned_once(codec: str, orientation: int) -> None:
    image = PICTURE.convert("1") if codec.startswith("group") else PICTURE
    data = encoded(image, "TIFF", compression=codec, tiffinfo={0x0112: orientation})
    prepared = prepare_image(data, RAW)
    assert bool(prepared.action & Action.ROTATED) == (orientation != 1)
    assert np.array_equal(packed(data), pillow(data))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO", "AVIF", "HEIF", "JXL"])
def test_other_formats_are_turned_once(kind: str, orientation: int) -> None:
    if not has(kind):
        pytest.skip(f"no {kind} here")
    options = {"append_images": [PICTURE], "save_all": True} if kind == "MPO" else {}
    data = encoded(PICTURE, kind, exif=exif(orientation), **options)
    assert prepare_image(data, RAW).height == (80 if orientation > 4 else 48)
    assert np.abs(packed(data).astype(int) - pillow(data)).max() <= 3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_xmp_turns_where_exif_does_not(orientation: int) -> None:
    data = encoded(PICTURE, "JPEG", quality=95, xmp=xmp(orientation))
    assert np.abs(packed(data).astype(int) - pillow(data)).max() <= 3
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    data = encoded(PICTURE, "PNG", pnginfo=text)
    assert np.array_equal(packed(data), pillow(data))


def test_images_that_are_copied_by_the_batch_are_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
    files = {f"c/xmp{i}.jpg": encoded(PICTURE, "JPEG", quality=95, xmp=xmp(i)) for i in (1, 6)}
    files |= {f"c/exif{i}.jpg": encoded(PICTURE, "JPEG", quality=95, exif=exif(i)) for i in (1, 6)}
    result = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', files)}")
    assert result.columns.height.tolist() == [48, 80, 48, 80]
    assert result.manifest.actions == {"copied": 2, "reencoded+rotated": 2}


def test_an_exif_orientation_of_another_type_counts() -> None:
    for kind, value in ((1, b"\6\0\0\0"), (3, struct.pack("<HH", 6, 0)), (4, struct.pack("<I", 6))):
        tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, kind, 1) + value + bytes(4)
        assert prepare_image(encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + tiff), RAW).height == 80
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHII", 0x0112, 4, 1, 6) + bytes(4)
    assert prepare_image(encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + tiff), RAW).height == 80


@pytest.mark.parametrize("way", transparent())
def test_transparent_parts_are_white(way: str) -> None:
    data = transparent()[way]
    assert np.array_equal(packed(data), pillow(data))
    if "key" in way:
        assert (packed(data)[:, :40] == 255).all()
        assert (packed(data)[:, 60:] != 255).any()


def test_transparent_colours_of_16_bits() -> None:
    gray = np.full((8, 8), 40_000)
    gray[:, :4] = 300
    assert packed(png(gray, 16, 0, struct.pack(">H", 300)))[0, :, 0].tolist() == [255] * 4 + [156] * 4
    rgb = np.full((8, 8, 3), 0x8040)
    rgb[:, :4] = (0x0102, 0x0304, 0x0506)
    key = struct.pack(">HHH", 0x0102, 0x0304, 0x0506)
    assert packed(png(rgb, 16, 2, key))[0, :, 0].tolist() == [255] * 4 + [0x80] * 4


@pytest.mark.parametrize("top", [200, 255, 256, 300, 40_000])
def test_16_bit_gray_has_one_scale(top: int) -> None:
    """The same value gives the same gray in every image, however bright the image is."""
    values = np.full((8, 8), 150)
    values[0, 0] = top
    for data in (
        png(values, 16, 0),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
        b"P5 8 8 65535\n" + values.astype(">u2").tobytes(),
    ):
        got = packed(data)
        assert (int(got[1, 1, 0]), int(got[0, 0, 0])) == (1, round(top / 257))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_depths_of_tiff(order: str) -> None:
    gray = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.floor(gray / 65_535 * 255 + 0.5)
    assert np.array_equal(packed(tiff(gray, {}, order))[:, :, 0], expected)
    if order == "<":  # Pillow supports inverted gray only here
        assert np.array_equal(packed(tiff(gray, {262: 0}))[:, :, 0], 255 - expected)
        twelve = np.frombuffer(b"\xff\xf0\x00" * 32, np.uint8).reshape(8, 12)
        got = packed(tiff(twelve, {256: 8, 258: 12}))
        assert np.array_equal(got[0, :2, 0], [255, 0])
    floats = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(packed(tiff(floats, {339: 3}, order))[:, :, 0], np.floor(floats * 255.0 + 0.5))


@pytest.mark.parametrize(
    ("samples", "tags", "text"),
    [
        (
            np.linspace(-3, 900, 64, dtype=np.float32).reshape(8, 8),
            {339: 3},
            "from -3 to 900, expected 0 to 1",
        ),
        (np.full((8, 8), np.nan, np.float32), {339: 3}, "expected 0 to 1"),
        (np.arange(64, dtype=np.int16).reshape(8, 8), {339: 2}, "32-bit or signed integers"),
        (np.arange(64, dtype=np.uint32).reshape(8, 8), {}, "32-bit or signed integers"),
        (np.arange(64, dtype=np.float64).reshape(8, 8), {339: 3}, "a TIFF of unusual samples"),
    ],
)
def test_samples_without_a_range_are_refused(samples: np.ndarray, tags: dict[int, int], text: str) -> None:
    with pytest.raises(BadImage, match=text) as caught:
        packed(tiff(samples, tags))
    assert caught.value.reason == Reason.UNSUPPORTED


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_the_modes_of_tiff(mode: str) -> None:
    image = PICTURE.convert(mode) if mode != "LAB" else Image.merge("LAB", PICTURE.split())
    data = encoded(image, "TIFF")
    if mode == "LAB":
        neutral = encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF")
        assert packed(neutral).min() >= 253
        assert packed(data).shape == (48, 80, 3)
    else:
        assert np.array_equal(packed(data), pillow(data))


def test_planes_one_behind_the_other() -> None:
    assert np.array_equal(packed(planar_tiff(pixels(3, 16, 24))), pixels(3, 16, 24))


def test_metadata_of_any_size_and_broken_metadata() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * (2 << 20), zip=True)
    text.add_itxt("prompt", "y" * (2 << 20), zip=True)
    assert np.array_equal(packed(encoded(PICTURE, "PNG", pnginfo=text)), np.asarray(PICTURE))
    profile = zlib.compress(bytes(3 << 20))
    whole = encoded(PICTURE, "PNG")
    bomb = whole[:33] + chunk(b"iCCP", b"x\0\0" + profile) + whole[33:]
    assert np.array_equal(packed(bomb), np.asarray(PICTURE))
    for broken in (b"Exif\0\0no exif", b"II*\0\xff\xff\xff\xff", b""):
        data = encoded(PICTURE, "WEBP", lossless=True, exif=broken)
        assert np.array_equal(packed(data), np.asarray(PICTURE))


@pytest.mark.parametrize("data", NAMED, ids=[text.split(",")[0] for text in NAMED.values()])
def test_what_is_not_read_is_named(data: bytes) -> None:
    with pytest.raises(BadImage, match=NAMED[data]) as caught:
        prepare_image(data, ImagePolicy())
    assert caught.value.reason == Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("data", "module", "text"),
    [
        (ftyp(b"heic", b"mif1"), "pillow_heif", "a HEIC photograph.*pip install pillow-heif"),
        (ftyp(b"mif1", b"heic"), "pillow_heif", "a HEIC photograph.*pip install pillow-heif"),
        (b"\xff\x0a" + bytes(40), "pillow_jxl", "a JPEG XL image.*pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "pillow_jxl", "pip install pillow-jxl-plugin"),
    ],
)
def test_an_absent_decoder_is_named(
    data: bytes, module: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(BadImage, match=text) as caught:
        prepare_image(data, ImagePolicy())
    assert caught.value.reason == Reason.MISSING_DECODER


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "AVIF"])
def test_a_damaged_photograph_is_called_damaged(kind: str) -> None:
    if not has(kind):
        pytest.skip(f"no {kind} here")
    with pytest.raises(BadImage, match="damaged") as caught:
        prepare_image(encoded(PICTURE, kind)[:-200], ImagePolicy())
    assert caught.value.reason == Reason.DAMAGED


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "DDS"])
def test_every_format_that_is_read(kind: str) -> None:
    options = {"sizes": [(80, 48)]} if kind == "ICO" else {}
    data = encoded(PICTURE, kind, **options)
    assert np.abs(packed(data).astype(int) - pillow(data)).max() <= 3


@pytest.mark.parametrize("file", sorted(ODD) or [None], ids=lambda file: file and file.name)
def test_the_odd_files_of_others(file: Path | None) -> None:
    if file is None:
        pytest.skip("no shared data here")
    data = file.read_bytes()
    assert np.abs(packed(data).astype(int) - pillow(data)).max() <= 3


def test_decoders_say_what_they_say_to_the_pack_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders' warnings are stored in the pack with their rows, not printed, and never become errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    whole = encoded(PICTURE, "TIFF", compression="tiff_lzw")
    cut = bytearray(whole)
    cut[200:2000] = bytes(1800)
    offset = whole.index(struct.pack("<HH", 0x0111, 4))  # entry of the strip offsets
    twice = whole[:offset] + struct.pack("<HH", 0x0100, 4) + whole[offset + 4 :]
    text = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x010E, 2, 900, 5000)  # points to a missing text
    jpeg = encoded(PICTURE, "JPEG", quality=95, exif=b"Exif\0\0" + text)
    data = encoded(PICTURE, "PNG")
    animated = data[:33] + chunk(b"acTL", struct.pack(">II", 0, 0)) + data[33:]
    files = {"a/whole.tif": whole, "a/cut.tif": bytes(cut), "a/twice.tif": twice}
    files |= {"a/text.jpg": jpeg[:-2], "a/animated.png": animated}
    result = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', files)}")
    captured = capfd.readouterr()
    assert (captured.err, captured.out) == ("", "")
    lines = (tmp_path / "p" / "warnings.jsonl").read_text().splitlines()
    entries = {entry["key"]: entry["messages"] for entry in map(json.loads, lines)}
    assert entries["train/a/animated"] == ["Invalid APNG, will use default PNG image if possible"]
    assert entries["train/a/text"][0] == "Premature end of JPEG file"
    assert "train/a/whole" not in entries
    assert len(result) + result.manifest.num_quarantined == len(files)
