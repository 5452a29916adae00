"""Writers of unusual image files, byte by byte where no library writes them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from tests.loaders.packs.inputs import encoded, pixels

PICTURE = Image.fromarray(pixels(3, 48, 80))


def pillow(data: bytes) -> np.ndarray:
    """Decode with Pillow to upright RGB on white, uint8 [H, W, 3]; for 8-bit modes only."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
    rgba = turned.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def has(kind: str) -> bool:
    try:
        if kind == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        elif kind == "JXL":
            import pillow_jxl  # noqa: F401
    except ImportError:
        return False
    Image.init()
    return kind in Image.SAVE


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, depth: int, colour: int, trns: bytes = b"") -> bytes:
    """Write a PNG of 8 or 16 bits per sample from gray [H, W] or RGB [H, W, 3]."""
    rows = values.astype(">u2" if depth == 16 else np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    between = chunk(b"tRNS", trns) if trns else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between
        + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(samples: np.ndarray, tags: dict[int, int], order: str = "<") -> bytes:
    """Write an uncompressed TIFF of one strip from samples [H, W] of any dtype."""
    height, width = samples.shape[:2]
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    known = {256: width, 257: height, 258: samples.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries = sorted({**known, 279: len(body), **tags}.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(body))
    fields = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return head + body + struct.pack(order + "H", len(entries)) + fields + bytes(4)


def planar_tiff(values: np.ndarray) -> bytes:
    """Write an uncompressed TIFF that stores one colour plane after the other, from uint8 [H, W, 3]."""
    height, width, _ = values.shape
    size = height * width
    extra = 8 + 3 * size  # offset of the fields with three values
    entries = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 284: 2}
    fields = [(tag, 4, 1, struct.pack("<I", value)) for tag, value in entries.items()]
    fields.append((258, 3, 3, struct.pack("<I", extra)))
    fields.append((273, 4, 3, struct.pack("<I", extra + 8)))
    fields.append((279, 4, 3, struct.pack("<I", extra + 20)))
    data = struct.pack("<2sHI", b"II", 42, extra + 32) + np.moveaxis(values, -1, 0).tobytes()
    data += struct.pack("<HHHH", 8, 8, 8, 0) + struct.pack("<III", *(8 + i * size for i in range(3)))
    data += struct.pack("<III", size, size, size) + struct.pack("<H", len(fields))
    return data + b"".join(struct.pack("<HHI", *field[:3]) + field[3] for field in sorted(fields)) + bytes(4)


def transparent() -> dict[str, bytes]:
    """Write a partly transparent picture in every format that supports transparency, in each possible way."""
    rgba = PICTURE.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 80).astype(np.uint8), (48, 1))))
    palette = PICTURE.quantize(16)
    gray = np.asarray(PICTURE.convert("L")).copy()
    gray[:, :40] = 7
    rgb = np.asarray(PICTURE).copy()
    rgb[:, :40] = (1, 2, 3)
    return {
        "png rgba": encoded(rgba, "PNG"),
        "png la": encoded(rgba.convert("LA"), "PNG"),
        "png palette with one": encoded(palette, "PNG", transparency=3),
        "png palette with many": encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "png gray key": png(gray, 8, 0, struct.pack(">H", 7)),
        "png rgb key": png(rgb, 8, 2, struct.pack(">HHH", 1, 2, 3)),
        "webp": encoded(rgba, "WEBP", lossless=True),
        "gif": encoded(palette, "GIF", transparency=3),
        "tiff": encoded(rgba, "TIFF"),
        "tiff lzw": encoded(rgba, "TIFF", compression="tiff_lzw"),
        "jpeg 2000": encoded(rgba, "JPEG2000"),
        "ico": encoded(rgba, "ICO", sizes=[(48, 48)]),
        "qoi": encoded(rgba, "QOI"),
    }


def ftyp(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", 4 + len(box)) + box + bytes(400)


NAMED = {
    b"8BPS\0\1" + bytes(30): "a Photoshop file, which is not supported: convert it",
    b"%PDF-1.7\n": "a PDF, which is not supported: save its pages",
    b"<svg xmlns='x'></svg>": "an SVG drawing",
    b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>": "an SVG drawing",
    b"\0\0\0\x18ftypisom" + bytes(20): "a video, which is not supported: save its frames",
    b"\0\0\0\x18ftypcrx " + bytes(20): "a Canon raw photograph",
    b"PK\x03\x04" + bytes(30): "a zip, which is not supported: unpack it",
    bytes(128) + b"DICM": "a DICOM file",
    b"II*\0\x08\0\0\0\0\0": "a TIFF of unusual samples",
    bytes(40) + b"TRUEVISION-XFILE.\0": "a Targa file",
    b"\x93NUMPY\1\0": "a NumPy array",
}
