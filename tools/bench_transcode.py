"""Measure the time of each part of shrinking photographs, and the quality lost by decoding at a smaller size.

Times are CPU time per image, in one thread. The PSNR of each way to decode compares the small images, encoded
with quality 90 and if possible also before, with decoding in full and shrinking by Pillow's Hamming filter.

Example:
    python tools/bench_transcode.py --images photographs --json transcode.jsonl
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig


@dataclass(frozen=True)
class Config(RecordConfig):
    """Measure transcoding."""

    images: Path
    """Folder with .jpg and .jpeg files, at any depth."""
    num_images: Count = 500
    """Largest number of files to use, evenly spaced in the order of their paths."""
    short_side: Count = 256
    """Shorter side of the result in pixels; images that are not larger are left out."""
    passes: Count = 3
    """Runs of each part; the fastest one counts."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from loaders.common.errors import UserError
from loaders.common.tables import print_table
from loaders.packs.image import dct_factor
from loaders.packs.images.planes import shrink_planes
from loaders.packs.images.resize import fit_short_side, resize_antialiased
from tools.bench.process import machine, now
from tools.bench.records import append_record

_QUALITY = 90
Pixels = NDArray[np.uint8]


class _Photograph(NamedTuple):
    data: bytes
    height: int
    width: int
    to_height: int
    to_width: int


def main() -> None:
    """Parse the command line, measure, print."""
    config = command_line(Config, __doc__)
    photographs = _read(config)
    if not photographs:
        raise UserError(f"--images {config.images} holds no JPEG larger than {config.short_side} pixels")
    record = {
        "num_images": len(photographs),
        "short_side": config.short_side,
        "mean_bytes": float(np.mean([len(p.data) for p in photographs])),
        "mean_megapixels": float(np.mean([p.height * p.width for p in photographs])) / 1e6,
        "cpu_us": _times(photographs, config.passes),
        "psnr_db": _quality(photographs),
        "machine": machine(),
        "time": now(),
    }
    _print(record)
    append_record(config.json, record)


def _read(config: Config) -> list[_Photograph]:
    paths = sorted(p for p in config.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    found = []
    for place in np.linspace(0, len(paths) - 1, min(config.num_images, len(paths))).astype(int).tolist():
        data = (path := paths[place]).read_bytes()
        try:
            height, width = simplejpeg.decode_jpeg(data).shape[:2]
        except ValueError as error:
            raise UserError(
                f"--images: expected whole JPEG files, found {path} ({error}); take it out"
            ) from None
        to = fit_short_side(height, width, config.short_side)
        if to != (height, width):
            found.append(_Photograph(data, height, width, *to))
    return found


def _whole(p: _Photograph) -> Pixels:
    return simplejpeg.decode_jpeg(p.data)  # type: ignore[no-any-return]


def _scaled(p: _Photograph) -> Pixels:
    factor = dct_factor(p.height, p.width, p.to_height, p.to_width)
    height, width = -(-p.height // factor), -(-p.width // factor)
    return simplejpeg.decode_jpeg(p.data, min_height=height, min_width=width)  # type: ignore[no-any-return]


def _eighths(p: _Photograph) -> Pixels:
    return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
        p.data, min_height=p.to_height, min_width=p.to_width
    )


def _glance(p: _Photograph) -> Pixels:
    return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
        p.data, "gray", min_height=1, min_width=1, min_factor=8
    )


def _by_pillow(pixels: Pixels, p: _Photograph) -> Pixels:
    image = Image.fromarray(pixels).resize((p.to_width, p.to_height), Image.Resampling.HAMMING)
    return np.asarray(image)


def _in_planes(p: _Photograph) -> bytes | None:
    factor = dct_factor(p.height, p.width, p.to_height, p.to_width)
    return shrink_planes(p.data, factor, p.to_height, p.to_width, _QUALITY)


def _encode(pixels: Pixels) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _QUALITY, "rgb", "420")  # type: ignore[no-any-return]


_RULES: dict[str, Callable[[_Photograph], Pixels]] = {
    "whole": _whole,
    "twice the target left": _scaled,
    "the target left, in eighths": _eighths,
}


def _times(photographs: list[_Photograph], passes: int) -> dict[str, float]:
    """Return each part's CPU microseconds per image, in its fastest pass."""
    seconds: dict[str, list[float]] = {}
    for _ in range(passes):
        spent: dict[str, float] = {}

        def timed(part: str, work: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            start = time.thread_time()
            result = work()
            spent[part] = spent.get(part, 0.0) + time.thread_time() - start
            return result

        for p in photographs:
            pixels = timed("decode, twice the target left", partial(_scaled, p))
            timed("decode, whole", partial(_whole, p))
            timed("decode, the target left, in eighths", partial(_eighths, p))
            timed("decode, gray at an eighth: about Huffman alone", partial(_glance, p))
            timed("resize by Pillow", partial(_by_pillow, pixels, p))
            small = timed("resize", partial(resize_antialiased, pixels, p.to_height, p.to_width))
            timed("encode", partial(_encode, small))
            timed("decode, resize and encode in planes", partial(_in_planes, p))
        for part, value in spent.items():
            seconds.setdefault(part, []).append(value)
    return {part: min(values) / len(photographs) * 1e6 for part, values in seconds.items()}


def _quality(photographs: list[_Photograph]) -> dict[str, dict[str, float]]:
    """Return, for each way to decode, the mean PSNR and the share of images that decoding scales down."""
    found: dict[str, dict[str, float]] = {}
    for name, decode in _RULES.items():
        before, after, scaled = [], [], []
        for p in photographs:
            reference = _by_pillow(_whole(p), p)
            pixels = decode(p)
            scaled.append(pixels.shape[:2] != (p.height, p.width))
            small = resize_antialiased(pixels, p.to_height, p.to_width)
            before.append(_psnr(small, reference))
            after.append(_psnr(simplejpeg.decode_jpeg(_encode(small)), reference))
        found[name] = {
            "resized": float(np.mean(before)),
            "encoded": float(np.mean(after)),
            "share_scaled": float(np.mean(scaled)),
        }
    made = [(p, data) for p in photographs if (data := _in_planes(p)) is not None]
    ratios = [_psnr(simplejpeg.decode_jpeg(data), _by_pillow(_whole(p), p)) for p, data in made]
    # This way keeps colour planes at half size, so no pixels can be compared before encoding.
    found["in planes, as packed"] = {
        "encoded": float(np.mean(ratios)) if made else 0.0,
        "share_scaled": found["twice the target left"]["share_scaled"],
    }
    return found


def _psnr(a: Pixels, b: Pixels) -> float:
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def _print(record: dict[str, Any]) -> None:
    parts = Table("part", "CPU us/image")
    for part, value in record["cpu_us"].items():
        parts.add_row(part, f"{value:,.0f}")
    rules = Table("size after decoding", "scaled", "PSNR resized", "PSNR encoded")
    for rule, value in record["psnr_db"].items():
        resized = f"{value['resized']:.1f}" if "resized" in value else "-"
        rules.add_row(rule, f"{value['share_scaled']:.0%}", resized, f"{value['encoded']:.1f}")
    console = Console(width=110)
    print_table(console, parts)
    print_table(console, rules)


if __name__ == "__main__":
    run_command(main)
