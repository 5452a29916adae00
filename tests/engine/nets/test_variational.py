"""Decoder, latent code and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.nets.variational import Decoder, Intensities, LatentCode
from engine.report.pictures import save_rows
from loaders.common.errors import UserError
from loaders.views import presets


@pytest.mark.parametrize("resolution", [16, 96])
def test_decoder_reaches_the_resolution(resolution: int) -> None:
    assert Decoder(5, resolution, 2)(torch.randn(2, 5)).shape == (2, 3, resolution, resolution)


def test_decoder_refuses_other_resolutions() -> None:
    with pytest.raises(UserError, match="multiple of 16, found 100"):
        Decoder(5, 100, 2)


def test_a_plain_code_has_no_variance_and_no_weights_for_it() -> None:
    h = torch.randn(2, 6)
    mean, log_variance = LatentCode(6, 4, 16, 2, stochastic=True).encode(h)
    assert mean.shape == (2, 4)
    assert log_variance is not None
    plain = LatentCode(6, 4, 16, 2, stochastic=False)
    assert plain.encode(h)[1] is None
    assert plain.parameters_of_z.out_features == 4


def test_intensities_undo_the_normalisation() -> None:
    x = torch.rand(2, 3, 4, 4)
    norm = presets.IMAGENET
    normalised = (x - torch.tensor(norm.mean).view(3, 1, 1)) / torch.tensor(norm.std).view(3, 1, 1)
    undone = Intensities(norm.mean, norm.std)
    torch.testing.assert_close(undone(normalised), x)
    assert not undone.state_dict(), "a checkpoint needs none of it"


def test_pictures_come_in_rows(tmp_path: Path) -> None:
    black, white = torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)
    save_rows(tmp_path / "rows.png", [black, white])
    image = Image.open(tmp_path / "rows.png")
    assert image.size == (3 * 10 + 2, 2 * 10 + 2)
    assert image.getpixel((5, 5)) == (0, 0, 0)
    assert image.getpixel((5, 15)) == (255, 255, 255)
