"""Contact sheets show the pixels the network saw, un-normalised."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine.report.sheets import contact_sheet, to_pixels


def test_normalisation_is_undone_and_clipped() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    channel = (3, 1, 1)
    view = (image / 255.0 - torch.tensor(mean).view(channel)) / torch.tensor(std).view(channel)
    assert torch.equal(to_pixels(view, mean, std), image)
    assert to_pixels(torch.full((3, 1, 1), 99.0), mean, std).unique().tolist() == [255]


def test_columns_are_images_and_rows_are_versions() -> None:
    originals = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    views = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    sheet = contact_sheet([("image", originals), ("view", views)])
    assert list(sheet.names) == ["image", "view"]
    assert len(sheet.columns) == 4
    for i, column in enumerate(sheet.columns):
        decoded = [torch.tensor(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1) for png in column]
        assert torch.equal(decoded[0], originals[i])
        assert torch.equal(decoded[1], views[i])


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, got \[1, 2\]"):
        contact_sheet([("a", torch.zeros(1, 3, 2, 2)), ("b", torch.zeros(2, 3, 2, 2))])
