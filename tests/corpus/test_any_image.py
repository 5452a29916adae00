"""Any file that Pillow opens is packed with Pillow's pixels, or refused for one of the listed reasons."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.packs import packer
from loaders.packs.quarantine import quarantined
from loaders.packs.reasons import Reason
from tests.corpus.build import exif, pillow, png, tiff
from tests.corpus.odd import corpus
from tests.loaders.packs.inputs import encoded, pack, write_tree

# Reasons that never depend on a file's bytes.
OF_LISTS = {Reason.DUPLICATE, Reason.NOT_A_FILE, Reason.NO_IMAGE, Reason.HIDDEN, Reason.UNKNOWN}
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "DDS": ("L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "JPEG": {
        "quality": st.integers(1, 100),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "subsampling": st.integers(0, 2),
        "restart_marker_blocks": st.integers(0, 3),
    },
    "PNG": {"compress_level": st.integers(0, 9)},
    "TIFF": {"compression": st.sampled_from(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])},
    "WEBP": {"lossless": st.booleans(), "quality": st.integers(0, 100), "exact": st.booleans()},
    "AVIF": {"quality": st.integers(1, 100), "speed": st.just(10)},
}


class Drawn(NamedTuple):
    """A generated file and what must become of it.

    Attributes:
        data: content of the file.
        right: uint8 [H, W], its pixels by the stated rule, for a bit depth that Pillow does not convert.
        is_whole: whether the file is undamaged, so that it may not be refused.
        refusal: the reason for which it must be refused, if any.
    """

    data: bytes
    right: np.ndarray | None = None
    is_whole: bool = True
    refusal: Reason | None = None


def values(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    """Draw pixels with smooth and with noisy rows, uint8 [H, W, channels]."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    noise = rng.integers(0, 256, (height, width, channels))
    return np.where(rng.random((height, 1, 1)) < 0.5, slope, noise).astype(np.uint8)


@st.composite
def plain(draw: st.DrawFn) -> Drawn:
    """Draw a file of 8 bits per sample as Pillow writes it, with or without orientation and transparency."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    height, width, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 1 << 30))
    image = Image.fromarray(values(seed, height, width, 4))
    if mode == "P":
        image = image.convert("RGB").quantize(draw(st.integers(2, 256)))
    elif mode not in ("RGBA", "LA"):
        image = image.convert("RGB").convert(mode)
    elif mode == "LA":
        image = image.convert("LA")
    options = {name: draw(choice) for name, choice in OPTIONS.get(kind, {}).items()}
    turn = draw(st.integers(1, 8))
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: turn}
    elif kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        options["exif"] = exif(turn)
    if kind in ("PNG", "GIF") and mode == "P" and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    return Drawn(encoded(image, kind, **options))


@st.composite
def deep(draw: st.DrawFn) -> Drawn:
    """Draw a file of more than 8 bits per sample, with the pixels that the rule gives."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    top = draw(st.sampled_from([200, 256, 4095, 65_535]))
    short = rng.integers(0, top + 1, (height, width)).astype(np.uint16)
    right = np.floor(short / 65_535 * 255 + 0.5).astype(np.uint8)
    form = draw(st.sampled_from(["png", "pgm", "tiff", "tiff big", "colours", "fractions", "signed", "long"]))
    if form == "colours":
        colours = rng.integers(0, top + 1, (height, width, 3)).astype(np.uint16)
        return Drawn(png(colours, 16, 2), (colours >> 8).astype(np.uint8))
    if form == "fractions":
        scale = draw(st.sampled_from([0.5, 1.0, 1.5]))
        floats = (rng.random((height, width)) * scale).astype(np.float32)
        if floats.max() > 1:
            return Drawn(tiff(floats, {339: 3}), refusal=Reason.UNSUPPORTED)
        scaled = np.floor(floats.astype(np.float64) * 255 + 0.5)
        return Drawn(tiff(floats, {339: 3}), scaled.astype(np.uint8))
    if form == "signed":
        return Drawn(tiff(short.astype(np.int16), {339: 2}), refusal=Reason.UNSUPPORTED)
    if form == "long":
        return Drawn(tiff(short.astype(np.uint32), {}), refusal=Reason.UNSUPPORTED)
    if form == "pgm":
        return Drawn(b"P5 %d %d 65535\n" % (width, height) + short.astype(">u2").tobytes(), right)
    if form == "png":
        return Drawn(png(short, 16, 0), right)
    return Drawn(tiff(short, {}, "<" if form == "tiff" else ">"), right)


@st.composite
def damaged(draw: st.DrawFn) -> Drawn:
    """Draw a file of the corpus, or a new one, with bytes altered, removed or inserted."""
    data = bytearray(draw(st.one_of(st.sampled_from(list(corpus().values())), plain())).data)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        at, count = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 20))
        change = draw(st.sampled_from(["alter", "drop", "put", "cut"]))
        if change == "alter":
            data[at] ^= draw(st.integers(1, 255))
        elif change == "drop":
            del data[at : at + count]
        elif change == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            del data[at:]
    return Drawn(bytes(data), is_whole=False)


def of_pillow(data: bytes) -> np.ndarray | None:
    """Return Pillow's upright RGB on white; None if Pillow cannot decode the file or reduce it to 8 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                is_deep = image.mode.startswith(("I", "F")) or image.mode == "LAB"
            return None if is_deep else pillow(data)
        except Exception:  # Pillow's decoders raise errors of any type
            return None


def check(file: Drawn, got: np.ndarray | Reason, is_raw: bool, is_copied: bool) -> None:
    """Check a file's result: its pixels, uint8 [H, W, 3], or the reason for which it was refused."""
    if isinstance(got, Reason):
        assert got not in OF_LISTS
        assert not file.is_whole or file.refusal == got
        return
    assert file.refusal is None
    right = of_pillow(file.data) if file.right is None else file.right
    if right is None:
        assert not file.is_whole
        return
    right = np.broadcast_to(right.reshape(*right.shape[:2], -1), (*right.shape[:2], 3))
    if not is_raw and not is_copied:
        encoded_right = simplejpeg.encode_jpeg(np.ascontiguousarray(right), 95, "rgb", "444")
        right = simplejpeg.decode_jpeg(encoded_right)
    assert got.shape == right.shape
    assert np.abs(got.astype(np.int64) - right).max() <= 1


def check_packed(files: list[Drawn], encoding: str, in_bulk: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if in_bulk:
            patch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
        # One file that is certainly packed, since a split without any image would be refused as a whole.
        tree = {f"{i}.jpg": file.data for i, file in enumerate([*files, Drawn(corpus()["jpeg 444"].data)])}
        made = pack(Path(folder) / "p", f"t={write_tree(Path(folder) / 'in', tree)}", encoding=encoding)
        found: dict[str, np.ndarray | Reason] = {
            entry["key"]: Reason(entry["code"]) for entry in quarantined(made.path)
        }
        copied = {made.key(row) for row in range(len(made)) if made.columns.action[row] == 0}
        for row in range(len(made)):
            size, data = (made.columns.height[row], made.columns.width[row], 3), made.read(row)
            found[made.key(row)] = (
                np.frombuffer(data, np.uint8).reshape(size)
                if encoding == "raw"
                else simplejpeg.decode_jpeg(data)
            )
        assert len(found) == len(tree)
        for i, file in enumerate(files):
            check(file, found[f"t/{i}"], encoding == "raw", f"t/{i}" in copied)


FILES = st.lists(st.one_of(plain(), deep(), damaged()), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(files=FILES, encoding=st.sampled_from(["jpeg", "raw"]), in_bulk=st.booleans())
def test_any_image_is_packed_with_its_pixels_or_refused_with_a_reason(
    files: list[Drawn], encoding: str, in_bulk: bool
) -> None:
    check_packed(files, encoding, in_bulk)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(files=FILES, encoding=st.sampled_from(["jpeg", "raw"]), in_bulk=st.booleans())
@pytest.mark.timeout(1200)
def test_many_images_are_packed_with_their_pixels_or_refused(
    files: list[Drawn], encoding: str, in_bulk: bool
) -> None:
    check_packed(files, encoding, in_bulk)
