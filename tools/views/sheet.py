"""A contact sheet: one picture with labelled columns of square tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from engine.report.theme import LIGHT

_GAP, _MARGIN, _HEAD, _LINE = 10, 28, 24, 15
_TITLE_POINTS, _TEXT_POINTS = 20, 12


def draw_sheet(
    title: str,
    subtitle: str,
    headings: Sequence[str],
    rows: Sequence[tuple[Sequence[Tensor], Sequence[str]]],
    tile: int,
    group: int,
) -> Image.Image:
    """Draw rows of tiles under headings.

    Args:
        rows: for each row, a picture per column, float [3, h, w] in [0, 1], and the notes: one below the
            first picture and one below each group.
        tile: side of a tile in pixels; a larger picture is shrunk to fit, a smaller one enlarged by the
            largest whole factor that fits.
        group: columns per group; the columns after the first form groups with wider gaps between groups.

    Returns:
        An RGB picture.
    """
    lefts = [
        _MARGIN + column * (tile + _GAP) + (0 if column == 0 else _GAP * 2 * (1 + (column - 1) // group))
        for column in range(len(headings))
    ]
    width = lefts[-1] + tile + _MARGIN
    top = _MARGIN + _TITLE_POINTS + 10 + _LINE + 22 + _HEAD
    row_height = tile + _LINE + 18
    sheet = Image.new("RGB", (width, top + len(rows) * row_height + _MARGIN - 8), LIGHT.paper)
    pen = ImageDraw.Draw(sheet)
    text = ImageFont.load_default(_TEXT_POINTS)
    pen.text((_MARGIN, _MARGIN), title, LIGHT.ink, ImageFont.load_default(_TITLE_POINTS))
    pen.text((_MARGIN, _MARGIN + _TITLE_POINTS + 10), subtitle, LIGHT.muted, text)
    pen.line((_MARGIN, top - _HEAD - 6, width - _MARGIN, top - _HEAD - 6), LIGHT.rule, 1)
    for left, heading in zip(lefts, headings, strict=True):
        pen.text((left, top - _HEAD + 2), heading, LIGHT.accent, text)
    for number, (pictures, notes) in enumerate(rows):
        y = top + number * row_height
        for left, picture in zip(lefts, pictures, strict=True):
            fitted = _fit(picture, tile)
            sheet.paste(fitted, (left + (tile - fitted.width) // 2, y + (tile - fitted.height) // 2))
            pen.rectangle((left - 1, y - 1, left + tile, y + tile), outline=LIGHT.rule)
        for place, note in zip([0, *range(1, len(lefts), group)], notes, strict=True):
            room = tile if place == 0 else group * (tile + _GAP) - _GAP
            words, font = fit_text(pen, note, room, (_TEXT_POINTS,))
            pen.text((lefts[place], y + tile + 4), words, LIGHT.muted, font)
    return sheet


def _fit(picture: Tensor, tile: int) -> Image.Image:
    """Scale a picture to fit into a tile; an enlarged picture shows each pixel as a square."""
    pixels = (picture * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(np.asarray(pixels))
    scale = tile / max(image.size)
    if scale >= 1:
        scale = int(scale)
        return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def fit_text(pen: ImageDraw.ImageDraw, text: str, width: int, points: Sequence[int]) -> tuple[str, Any]:
    """Return a text and a font in which the text is at most `width` pixels wide.

    Args:
        points: font sizes to try in turn; a text that is too wide in the last one is cut and ends in "...".
    """
    for size in points:
        font = ImageFont.load_default(size)
        if pen.textlength(text, font) <= width:
            return text, font
    while text and pen.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "...", font
