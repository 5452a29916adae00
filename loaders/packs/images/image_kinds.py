"""Recognise formats by their signatures: those that are not read, and those whose decoder may be missing.

Sources of the signatures: the formats' own specifications, and the list of file(1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from loaders.packs.reasons import BadImage, Reason

_BOX_TYPE = b"ftyp"  # ISO/IEC 14496-12: length, "ftyp", the brand, its version, further brands
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


class _Kind(NamedTuple):
    """A format that is not read.

    Attributes:
        at: position of the signature; negative counts from the end of the file.
        signature: bytes by which the format is recognised.
        name: name of the format, with its article.
        remedy: what the user can do with such a file.
    """

    at: int
    signature: bytes
    name: str
    remedy: str


_CONVERT, _UNPACK, _FRAMES = "convert it to PNG", "unpack it and pack the folder", "save its frames as images"
_DEVELOP = "develop it to TIFF or JPEG"
_KINDS = (
    _Kind(0, b"8BPS", "a Photoshop file", _CONVERT),
    _Kind(0, b"gimp xcf", "a GIMP file", _CONVERT),
    _Kind(0, b"%PDF", "a PDF", "save its pages as images"),
    _Kind(0, b"%!PS", "a PostScript file", _CONVERT),
    _Kind(0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _CONVERT),
    _Kind(0, b"\xd7\xcd\xc6\x9a", "a Windows metafile", _CONVERT),
    _Kind(0, b"<svg", "an SVG drawing", _CONVERT),
    _Kind(0, b"FUJIFILMCCD-RAW", "a Fujifilm raw photograph", _DEVELOP),
    _Kind(0, b"IIU\0", "a Panasonic raw photograph", _DEVELOP),
    _Kind(0, b"IIRO", "an Olympus raw photograph", _DEVELOP),
    _Kind(0, b"FOVb", "a Sigma raw photograph", _DEVELOP),
    _Kind(8, b"CR\x02", "a Canon raw photograph", _DEVELOP),
    _Kind(4, b"ftypcrx ", "a Canon raw photograph", _DEVELOP),
    _Kind(4, b"ftyp", "a video", _FRAMES),
    _Kind(0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", _FRAMES),
    _Kind(8, b"AVI ", "an AVI video", _FRAMES),
    _Kind(0, b"OggS", "an Ogg file", _FRAMES),
    _Kind(128, b"DICM", "a DICOM file", "save its pictures with the window of grays that you want"),
    _Kind(0, b"SIMPLE  =", "a FITS file", "save its pictures with the range of grays that you want"),
    _Kind(0, b"\x89HDF", "an HDF5 file", "save its arrays as images"),
    _Kind(0, b"\x93NUMPY", "a NumPy array", "save it as images"),
    _Kind(0, b"PK\x03\x04", "a zip", _UNPACK),
    _Kind(0, b"Rar!", "a RAR archive", _UNPACK),
    _Kind(0, b"7z\xbc\xaf'\x1c", "a 7z archive", _UNPACK),
    _Kind(0, b"\x1f\x8b", "a gzip file", _UNPACK),
    _Kind(257, b"ustar", "a tar", _UNPACK),
    _Kind(0, b"II*\0", "a TIFF of unusual samples", "convert it to one of 8 or 16 bits per sample"),
    _Kind(0, b"MM\0*", "a TIFF of unusual samples", "convert it to one of 8 or 16 bits per sample"),
    _Kind(0, b"v/1\x01", "an OpenEXR file", "convert it with the exposure that you want"),
    _Kind(0, b"#?RADIANCE", "a Radiance file", "convert it with the exposure that you want"),
    _Kind(-18, b"TRUEVISION-XFILE.", "a Targa file", _CONVERT),
    _Kind(0, b"icns", "an icon of macOS", _CONVERT),
)  # fmt: skip
# Signatures of formats that are read: a file that begins like this, but that its decoder refuses, is damaged.
_DAMAGED = (
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP image"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000 image"),
)


def unread_kind(data: bytes) -> BadImage:
    """Return the error for a file that no decoder takes; it names the format, if that is known."""
    for kind in _KINDS:
        at = kind.at if kind.at >= 0 else len(data) + kind.at
        if at >= 0 and data.startswith(kind.signature, at):
            return BadImage(Reason.UNSUPPORTED, f"{kind.name}, which is not supported: {kind.remedy}")
    for at, signature, name in _DAMAGED:
        if data.startswith(signature, at):
            return BadImage(Reason.DAMAGED, f"damaged {name}: its decoder does not recognise it")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<?xml") and b"<svg" in head:
        return BadImage(Reason.UNSUPPORTED, f"an SVG drawing, which is not supported: {_CONVERT}")
    return BadImage(Reason.NOT_AN_IMAGE, "not an image")


class Extra(NamedTuple):
    """A format whose decoder may be missing.

    Attributes:
        pillow_name: Pillow's name for the format once the decoder is installed.
        name: common name of the format, with its article.
        package: what to install.
        register: makes Pillow read the format; raises ImportError if the decoder is missing.
    """

    pillow_name: str
    name: str
    package: str
    register: Callable[[], None]


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _register_jxl() -> None:
    import pillow_jxl  # noqa: F401 - importing it registers the format


def _register_avif() -> None:
    from PIL import features

    if not features.check("avif"):
        raise ImportError("this Pillow was built without AVIF")


_HEIF = Extra("HEIF", "a HEIC photograph", "pillow-heif", _register_heif)
_JPEG_XL = Extra("JXL", "a JPEG XL image", "pillow-jxl-plugin", _register_jxl)
_AVIF = Extra("AVIF", "an AVIF image", "'pillow>=11.3'", _register_avif)


def extra_of(data: bytes) -> Extra | None:
    """Return the format of a file that is JPEG XL, AVIF or HEIF; None for any other file.

    Raises:
        BadImage: the format's decoder is not installed; the text says how to install it.
    """
    extra = None
    if data.startswith(_JXL):
        extra = _JPEG_XL
    elif data[4:8] == _BOX_TYPE:
        brands = frozenset(_brands(data))
        if brands & _AVIF_BRANDS:
            extra = _AVIF
        elif brands & _HEIF_BRANDS:
            extra = _HEIF
    if extra is not None:
        try:
            extra.register()
        except ImportError:
            raise BadImage(
                Reason.MISSING_DECODER,
                f"{extra.name}, whose decoder is not installed: pip install {extra.package}, then pack again",
            ) from None
    return extra


def _brands(data: bytes) -> Iterable[bytes]:
    """Yield the major brand of an ISO base media file and the brands that it is compatible with."""
    yield data[8:12]
    for at in range(16, min(int.from_bytes(data[:4], "big"), len(data), 256) - 3, 4):
        yield data[at : at + 4]
