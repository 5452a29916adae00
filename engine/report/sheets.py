"""PNG files of images, and sheets that show images beside their training views."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from engine.report.page import Gallery


def to_pixels(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation of a view.

    Args:
        view: float [..., 3, H, W], (x - mean) / std of intensities in [0, 1].
        mean: mean of each of the three channels.
        std: standard deviation of each of the three channels.

    Returns:
        uint8 [..., 3, H, W] on the CPU; values are clipped to 0..255.
    """
    shape = (3, 1, 1)
    x = view.detach().float().cpu()
    x = x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (x * 255.0).round().clamp(0, 255).to(torch.uint8)


def contact_sheet(rows: Sequence[tuple[str, Tensor]], caption: str = "") -> Gallery:
    """Show the same images in several versions, one column per image.

    Args:
        rows: (name, uint8 [N, 3, H, W]) per version, each with its own H and W but the same N.
        caption: what the picture shows.

    Raises:
        ValueError: no rows, or rows of different lengths.
    """
    lengths = {len(images) for _, images in rows}
    if len(lengths) != 1:
        raise ValueError(f"contact sheet: expected rows of one length, got {sorted(lengths)}")
    columns = zip(*(images for _, images in rows), strict=True)
    return Gallery(
        names=[name for name, _ in rows],
        columns=[[png(image) for image in column] for column in columns],
        caption=caption,
    )


def png(image: Tensor) -> bytes:
    """Return uint8 [3, H, W] as a PNG file."""
    # torchvision's own encoder is deprecated, and speed does not matter here.
    return png_bytes(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def png_bytes(image: Image.Image, optimize: bool = False) -> bytes:
    """Return a picture as a PNG file; `optimize` makes the file smaller and takes longer."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=optimize)
    return buffer.getvalue()
