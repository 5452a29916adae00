"""JPEGs that decode with a warning, and JPEGs that lack pixels."""

from __future__ import annotations

from PIL import Image

from tests.loaders.packs.inputs import encoded, pixels

SMOOTH = Image.fromarray(pixels(3, 64, 64))
PLAIN = encoded(SMOOTH, "JPEG", quality=90, subsampling=0)
RESTARTS = encoded(SMOOTH, "JPEG", quality=90, restart_marker_blocks=2)
PROGRESSIVE = encoded(SMOOTH, "JPEG", quality=90, progressive=True)
CMYK = encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95)
TALL = encoded(Image.fromarray(pixels(5, 2400, 32)), "JPEG", quality=90)


def without_jfif(*segments: bytes) -> bytes:
    """Return `PLAIN` with other segments in place of its JFIF segment."""
    return PLAIN[:2] + b"".join(segments) + PLAIN[20:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


RESTART = RESTARTS.index(b"\xff\xd3")
DAMAGED = {
    "no mark at the end": PLAIN[:-2],
    "half a mark at the end": PLAIN[:-1],
    "bytes before a marker": PLAIN[:-2] + bytes(40) + PLAIN[-2:],
    "few bytes before a marker": PLAIN[:-2] + b"abc" + PLAIN[-2:],
    "junk in the header": PLAIN[:20] + b"\0\0\0" + PLAIN[20:],
    "junk before the first marker": PLAIN[:2] + b"\0\x11\x22" + PLAIN[2:],
    "junk before the image": b"\r\n" + PLAIN,
    "a profile without its second part": without_jfif(segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(40))),
    "a profile with a wrong number": without_jfif(segment(0xE2, b"ICC_PROFILE\0\0\1" + bytes(40))),
    "an unknown Adobe transform": without_jfif(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")),
    "an unknown JFIF version": PLAIN.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "a restart marker of another number": RESTARTS[:RESTART] + b"\xff\xd5" + RESTARTS[RESTART + 2 :],
    "progressive, no mark at the end": PROGRESSIVE[:-2],
    "CMYK, no mark at the end": CMYK[:-2],
    "the last of many rows": TALL[:-8],
}
LACKING = {
    "cut": PLAIN[:-300],
    "cut, with a mark at the end": PLAIN[:-300] + b"\xff\xd9",
    "cut within its last unit": PLAIN[:-12],
    "cut behind the first byte of a pair": PLAIN[: PLAIN.index(b"\xff\0", PLAIN.index(b"\xff\xda")) + 1],
    "restart intervals, cut": RESTARTS[:RESTART],
    "restart intervals, cut, with a mark at the end": RESTARTS[: RESTART + 2] + b"\xff\xd9",
    "progressive, cut within a scan": PROGRESSIVE[:-100] + b"\xff\xd9",
    "progressive, without its last scan": PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff",
    "a header alone": PLAIN[: PLAIN.index(b"\xff\xda")],
    "three hundredths of many rows": TALL[: -len(TALL) // 25],
}
