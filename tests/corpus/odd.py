"""Nearly 300 unusual image files, each with its correct pixels (by construction) or reasons to refuse it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from loaders.packs.reasons import Reason
from tests.corpus.build import NAMED, PICTURE, chunk, exif, ftyp, has, planar_tiff, png, tiff, xmp
from tests.corpus.damage import DAMAGED, LACKING, SMOOTH
from tests.loaders.packs.inputs import encoded, pixels

RIGHT = np.asarray(PICTURE)
GRAY = np.asarray(PICTURE.convert("L"))
# How a writer stores the upright picture for each orientation. For each value, tag 0x0112 of EXIF 2.32 names
# the side of the picture that row 0 holds, and the side that column 0 holds.
LAID_DOWN = {
    1: lambda p: p,  # top, left
    2: lambda p: p[:, ::-1],  # top, right
    3: lambda p: p[::-1, ::-1],  # bottom, right
    4: lambda p: p[::-1],  # bottom, left
    5: lambda p: p.swapaxes(0, 1),  # left, top
    6: lambda p: p.swapaxes(0, 1)[::-1],  # right, top
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda p: p.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
_CODECS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
_LOSSY = {"JPEG": 2.0, "MPO": 2.5, "AVIF": 3.0, "HEIF": 4.0, "JXL": 3.0}


class Odd(NamedTuple):
    """A file and its correct pixels.

    Attributes:
        data: content of the file.
        right: uint8 [H, W, 3] or [H, W], its upright RGB or gray on white; None if the file must be refused.
        most: largest difference allowed for a value, if the format is lossless.
        mean: largest mean difference allowed.
        reasons: reasons for refusal, of which one must be given.
    """

    data: bytes
    right: np.ndarray | None
    most: int = 0
    mean: float = 0.0
    reasons: tuple[Reason, ...] = ()


def _lossy(data: bytes, right: np.ndarray, mean: float = 3.0) -> Odd:
    return Odd(data, right, 255, mean)


def _refused(data: bytes, *reasons: Reason) -> Odd:
    return Odd(data, None, reasons=reasons)


def _orientations() -> Iterator[tuple[str, Odd]]:
    """Yield files that state their orientation, in every way that a format has for it."""
    bilevel = np.where(GRAY > 127, 255, 0).astype(np.uint8)
    for turn, lay_down in LAID_DOWN.items():
        laid = Image.fromarray(np.ascontiguousarray(lay_down(RIGHT)))
        black = Image.fromarray(np.ascontiguousarray(lay_down(bilevel))).convert("1")
        tags = {0x0112: turn}
        for codec in _CODECS:
            yield f"tiff {codec} {turn}", Odd(encoded(laid, "TIFF", compression=codec, tiffinfo=tags), RIGHT)
        for codec in ("group3", "group4"):
            yield (
                f"tiff {codec} {turn}",
                Odd(encoded(black, "TIFF", compression=codec, tiffinfo=tags), bilevel),
            )
        yield (
            f"tiff jpeg {turn}",
            _lossy(encoded(laid, "TIFF", compression="jpeg", quality=95, tiffinfo=tags), RIGHT),
        )
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(turn).decode())
        yield f"png xmp {turn}", Odd(encoded(laid, "PNG", pnginfo=text), RIGHT)
        yield f"png exif {turn}", Odd(encoded(laid, "PNG", exif=exif(turn)), RIGHT)
        yield f"webp exif {turn}", Odd(encoded(laid, "WEBP", lossless=True, exif=exif(turn)), RIGHT)
        yield f"jpeg xmp {turn}", _lossy(encoded(laid, "JPEG", quality=95, xmp=xmp(turn)), RIGHT)
        for kind, mean in _LOSSY.items():
            more = {"append_images": [laid], "save_all": True} if kind == "MPO" else {}
            if has(kind):
                data = encoded(laid, kind, exif=exif(turn), quality=95, **more)
                yield f"{kind.lower()} exif {turn}", _lossy(data, RIGHT, mean)


def _modes() -> Iterator[tuple[str, Odd]]:
    """Yield files with every sample type of every format."""
    palette = PICTURE.quantize(16)
    indexed = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)].astype(np.uint8)
    bilevel = np.where(GRAY > 127, 255, 0).astype(np.uint8)
    images = {
        "RGB": (PICTURE, RIGHT),
        "L": (PICTURE.convert("L"), GRAY),
        "P": (palette, indexed),
        "1": (Image.fromarray(bilevel).convert("1"), bilevel),
    }
    writers = {
        "PNG": "RGB L P 1",
        "BMP": "RGB L P 1",
        "DIB": "RGB L P 1",
        "TIFF": "RGB L P 1",
        "GIF": "L P 1",
        "PCX": "RGB L P 1",
        "SGI": "RGB L",
        "PPM": "RGB L 1",
        "JPEG2000": "RGB L",
        "ICO": "RGB L P",
        "DDS": "RGB L",
        "QOI": "RGB",
        "WEBP": "RGB",
    }
    for kind, modes in writers.items():
        options = {"ICO": {"sizes": [PICTURE.size]}, "WEBP": {"lossless": True}}.get(kind, {})
        for mode in modes.split():
            image, right = images[mode]
            yield f"{kind.lower()} {mode}", Odd(encoded(image, kind, **options), right)
    for bits in (1, 2, 4):
        few = PICTURE.quantize(1 << bits)
        right = np.array(few.getpalette()).reshape(-1, 3)[np.asarray(few)].astype(np.uint8)
        yield f"png palette of {bits} bits", Odd(encoded(few, "PNG", bits=bits), right)
    forms = {
        "gray": (PICTURE.convert("L"), {}, GRAY),
        "gray progressive": (PICTURE.convert("L"), {"progressive": True}, GRAY),
        "progressive": (PICTURE, {"progressive": True}, RIGHT),
        "own tables": (PICTURE, {"optimize": True}, RIGHT),
        "restarts": (PICTURE, {"restart_marker_blocks": 3}, RIGHT),
        "444": (PICTURE, {"subsampling": 0}, RIGHT),
        "422": (PICTURE, {"subsampling": 1}, RIGHT),
        "420": (PICTURE, {"subsampling": 2}, RIGHT),
        "rgb": (PICTURE, {"keep_rgb": True}, RIGHT),
        "cmyk": (PICTURE.convert("CMYK"), {}, RIGHT),
        "comment": (PICTURE, {"comment": b"a" * 900}, RIGHT),
        "large": (PICTURE.resize((640, 384)), {}, np.asarray(PICTURE.resize((640, 384)))),
    }
    for name, (image, options, right) in forms.items():
        yield f"jpeg {name}", _lossy(encoded(image, "JPEG", quality=95, **options), right)
    yield "tiff cmyk", Odd(encoded(PICTURE.convert("CMYK"), "TIFF"), RIGHT, most=1)
    yield "tiff ycbcr", _lossy(encoded(PICTURE.convert("YCbCr"), "TIFF"), RIGHT, 2.0)
    yield "tiff planes", Odd(planar_tiff(RIGHT), RIGHT)
    animation = {"save_all": True, "append_images": [PICTURE.rotate(180)]}
    yield "apng", Odd(encoded(PICTURE, "PNG", **animation), RIGHT)
    yield "webp animation", Odd(encoded(PICTURE, "WEBP", lossless=True, **animation), RIGHT)
    yield "tiff pages", Odd(encoded(PICTURE, "TIFF", **animation), RIGHT)
    yield (
        "gif animation",
        Odd(encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), indexed),
    )


def _depths() -> Iterator[tuple[str, Odd]]:
    """Yield files with samples of more than 8 bits, and the pixels that the rule for each type gives."""
    short = GRAY.astype(np.uint16) * 203 + 17  # up to 51,782: the brightest pixel is below the largest value
    right = np.floor(short / 65_535 * 255 + 0.5).astype(np.uint8)
    yield "png gray of 16 bits", Odd(png(short, 16, 0), right)
    deep = RIGHT.astype(np.uint16) * 256 + 77
    yield "png colours of 16 bits", Odd(png(deep, 16, 2), RIGHT)
    key = struct.pack(">H", int(short[0, 0]))
    yield (
        "png gray of 16 bits with a key",
        Odd(png(short, 16, 0, key), np.where(short == short[0, 0], 255, right).astype(np.uint8)),
    )
    yield "pgm of 16 bits", Odd(b"P5 80 48 65535\n" + short.astype(">u2").tobytes(), right)
    ten = GRAY.astype(np.uint16) * 4
    yield (
        "pgm of 10 bits",
        Odd(b"P5 80 48 1023\n" + ten.astype(">u2").tobytes(), np.floor(ten / 1023 * 255 + 0.5), most=1),
    )
    for order in "<>":
        yield f"tiff of 16 bits {order}", Odd(tiff(short, {}, order), right)
        yield (
            f"tiff of fractions {order}",
            Odd(tiff((GRAY / 255).astype(np.float32), {339: 3}, order), GRAY, most=1),
        )
    yield "tiff of 16 bits, white is zero", Odd(tiff(short, {262: 0}), 255 - right)
    packed = Image.fromarray(short)
    yield "tiff of 16 bits lzw", Odd(encoded(packed, "TIFF", compression="tiff_lzw"), right)
    twelve = (GRAY.astype(np.int64) * 16 + 5).reshape(-1, 2)
    parts = twelve[:, 0] >> 4, (twelve[:, 0] & 15) << 4 | twelve[:, 1] >> 8, twelve[:, 1] & 255
    rows = np.stack(parts, axis=1).astype(np.uint8).reshape(48, 120)
    yield (
        "tiff of 12 bits",
        Odd(tiff(rows, {256: 80, 258: 12}), np.floor((GRAY * 16.0 + 5) / 4095 * 255 + 0.5)),
    )
    for name, samples, tags in (
        ("fractions over 1", GRAY.astype(np.float32), {339: 3}),
        ("no numbers", np.full((8, 8), np.nan, np.float32), {339: 3}),
        ("a sign", short.astype(np.int16), {339: 2}),
        ("32 bits", short.astype(np.uint32), {}),
        ("double precision", GRAY.astype(np.float64), {339: 3}),
    ):
        yield f"tiff of {name}", _refused(tiff(samples, tags), Reason.UNSUPPORTED)


def _transparent() -> Iterator[tuple[str, Odd]]:
    """Yield files with transparency, in every way that a format has for it."""
    alpha = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (48, 1))
    share = alpha[..., None] / 255
    on_white = np.floor(RIGHT * share + 255 * (1 - share) + 0.5)
    rgba = PICTURE.convert("RGBA")
    rgba.putalpha(Image.fromarray(alpha))
    for kind in ("PNG", "TIFF", "JPEG2000", "QOI", "SGI", "WEBP", "DDS", "ICO"):
        options = {"ICO": {"sizes": [rgba.size]}, "WEBP": {"lossless": True, "exact": True}}.get(kind, {})
        yield f"{kind.lower()} alpha", Odd(encoded(rgba, kind, **options), on_white, most=1)
    yield "tiff lzw alpha", Odd(encoded(rgba, "TIFF", compression="tiff_lzw"), on_white, most=1)
    gray = GRAY * (alpha / 255) + 255 * (1 - alpha / 255)
    yield "png gray alpha", Odd(encoded(rgba.convert("LA"), "PNG"), np.floor(gray + 0.5), most=1)
    palette = PICTURE.quantize(16)
    index, table = np.asarray(palette), np.array(palette.getpalette()).reshape(-1, 3)
    holes = np.where((index == 3)[..., None], 255, table[index])
    yield "png palette with a hole", Odd(encoded(palette, "PNG", transparency=3), holes)
    yield "gif with a hole", Odd(encoded(palette, "GIF", transparency=3), holes)
    many = np.arange(0, 160, 10)[index][..., None] / 255
    yield (
        "png palette with alpha",
        Odd(
            encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))),
            np.floor(table[index] * many + 255 * (1 - many) + 0.5),
            most=1,
        ),
    )
    half = GRAY.copy()
    half[:, :40] = 7
    yield (
        "png gray key",
        Odd(png(half, 8, 0, struct.pack(">H", 7)), np.where(half == 7, 255, half).astype(np.uint8)),
    )
    colours = RIGHT.copy()
    colours[:, :40] = (1, 2, 3)
    right = np.where((colours == (1, 2, 3)).all(axis=2, keepdims=True), 255, colours)
    yield "png colour key", Odd(png(colours, 8, 2, struct.pack(">HHH", 1, 2, 3)), right)


def _metadata() -> Iterator[tuple[str, Odd]]:
    """Yield files whose metadata is large, broken, or of an unexpected type."""
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * (2 << 20), zip=True)
    text.add_itxt("prompt", "y" * (2 << 20), zip=True)
    yield "png of long texts", Odd(encoded(PICTURE, "PNG", pnginfo=text), RIGHT)
    whole = encoded(PICTURE, "PNG")
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20)))
    yield "png with a bomb for a profile", Odd(whole[:33] + profile + whole[33:], RIGHT)
    for number, broken in enumerate((b"Exif\0\0no exif", b"II*\0\xff\xff\xff\xff", b"")):
        yield f"webp broken exif {number}", Odd(encoded(PICTURE, "WEBP", lossless=True, exif=broken), RIGHT)
        yield f"png broken exif {number}", Odd(encoded(PICTURE, "PNG", exif=broken), RIGHT)
    laid = Image.fromarray(np.ascontiguousarray(LAID_DOWN[6](RIGHT)))
    for kind, value in ((1, b"\6\0\0\0"), (3, struct.pack("<HH", 6, 0)), (4, struct.pack("<I", 6))):
        tags = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, kind, 1) + value + bytes(4)
        data = encoded(laid, "JPEG", quality=95, exif=b"Exif\0\0" + tags)
        yield f"jpeg orientation of type {kind}", _lossy(data, RIGHT)
    yield "jpeg with a thumbnail", _lossy(_with_thumbnail(), RIGHT)


def _with_thumbnail() -> bytes:
    small = encoded(PICTURE.resize((20, 12)), "JPEG")
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0" + small
    data = encoded(PICTURE, "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def _damaged() -> Iterator[tuple[str, Odd]]:
    """Yield damaged files: some are repaired, some lack pixels, and some cannot be decoded at all."""
    right = dict.fromkeys(DAMAGED, np.asarray(SMOOTH)) | {"the last of many rows": pixels(5, 2400, 32)}
    # Where the image continues after such a marker is a guess; ours must be that of other decoders.
    off = "a restart marker of another number"
    right[off] = decoded(DAMAGED[off])
    for name, data in DAMAGED.items():
        yield f"jpeg, {name}", _lossy(data, right[name], 4.0)
    for name, data in LACKING.items():
        yield f"jpeg, {name}", _refused(data, Reason.TRUNCATED)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))
    for kind in ("PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL", "QOI"):
        if has(kind):
            data = encoded(noise, kind)
            cut = data[: len(data) // 2]
            yield f"{kind.lower()}, cut in half", _refused(cut, Reason.TRUNCATED, Reason.DAMAGED)
    yield "nothing", _refused(b"", Reason.EMPTY)
    yield "words", _refused(b"hello\n" * 9, Reason.NOT_AN_IMAGE)
    yield "zeros", _refused(bytes(512), Reason.NOT_AN_IMAGE)


def _unread() -> Iterator[tuple[str, Odd]]:
    """Yield files of formats that are recognised by name but not read."""
    for number, (data, text) in enumerate(NAMED.items()):
        yield f"{text.split(',')[0]} {number}", _refused(data, Reason.UNSUPPORTED)
    if not (has("HEIF") and has("JXL")):
        data = ftyp(b"heic", b"mif1")
        yield "a heic without its package", _refused(data, Reason.MISSING_DECODER, Reason.DAMAGED)


@cache
def corpus() -> dict[str, Odd]:
    """Return all files by name."""
    parts = (_orientations, _modes, _depths, _transparent, _metadata, _damaged, _unread)
    files = [pair for part in parts for pair in part()]
    found = dict(files)
    assert len(found) == len(files)
    return found


def decoded(data: bytes) -> np.ndarray:
    """Decode a JPEG with Pillow: uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
