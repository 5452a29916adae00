"""Whitening: the outputs of the stem are uncorrelated, whichever part of the images is used."""

from __future__ import annotations

import pytest
import torch

from engine.nets.whitening import WhiteningStem, patch_moments, whitening_kernels


def smooth_images(number: int = 64) -> torch.Tensor:
    """Draw images whose neighbouring pixels and channels are similar, as in photographs."""
    noise = torch.randn(number, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)
    x = smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.02 * noise[:, :, 2:-2, 2:-2]
    return x / x.std()


def test_responses_are_uncorrelated_and_of_unit_variance() -> None:
    x = smooth_images()
    stem = WhiteningStem(kernel_size=2, stride=1, out_channels=24)
    stem.set_kernels(whitening_kernels(patch_moments(x, 2), 2))
    assert bool(stem.is_set)
    y = stem(x)
    assert y.shape == (64, 24, 31, 31)
    torch.testing.assert_close(y[:, 12:], -y[:, :12])
    flat = y[:, :12].transpose(0, 1).flatten(1).double()
    moments = flat @ flat.T / flat.shape[1]
    off = moments - torch.diag(moments.diag())
    assert off.abs().max() < 1e-3
    assert moments.diag()[:3].min() > 0.8  # the 5e-4 added to eigenvalues matters for small ones only
    assert moments.diag().max() < 1.001
    raw = torch.nn.functional.unfold(x, 2).transpose(0, 1).flatten(1).double()
    assert torch.corrcoef(raw).triu(1).abs().max() > 0.8  # there was something to whiten


def test_fewer_channels_keep_the_directions_of_largest_variance() -> None:
    directions = whitening_kernels(patch_moments(smooth_images(), 3), 3)
    few, all_of_them = WhiteningStem(3, 1, 8), WhiteningStem(3, 1, 54)
    few.set_kernels(directions)
    all_of_them.set_kernels(directions)
    assert torch.equal(few.kernels[:4], all_of_them.kernels[:4])
    norms = all_of_them.kernels[:27].flatten(1).norm(dim=1)  # the inverse standard deviations
    assert (norms.diff() > -1e-4).all()


def test_moments_of_parts_add_up() -> None:
    x = smooth_images()
    parts = patch_moments(x[:20], 2) + patch_moments(x[20:], 2)
    torch.testing.assert_close(parts, patch_moments(x, 2), rtol=1e-5, atol=1e-3)


def test_kernels_are_state_and_no_parameters() -> None:
    stem, other = WhiteningStem(2, 1, 24), WhiteningStem(2, 1, 24)
    assert [name for name, _ in stem.named_parameters()] == ["bias"]
    stem.set_kernels(whitening_kernels(patch_moments(smooth_images(4), 2), 2))
    other.load_state_dict(stem.state_dict())
    assert torch.equal(stem.kernels, other.kernels)
    assert bool(other.is_set)


@pytest.mark.parametrize("channels", [0, 7, 26])
def test_other_widths_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="even number up to 24"):
        WhiteningStem(2, 1, channels)
