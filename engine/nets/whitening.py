"""A first layer whose kernels whiten the patches of the training images.

Source: Page 2019, "How to Train Your ResNet", part 8; Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a
Single GPU" (arXiv 2404.00498), section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 5e-4  # added to the eigenvalues, for views of unit variance; Jordan 2024


class WhiteningStem(nn.Module):
    """A convolution by the scaled principal directions of patches and their negatives; only the bias learns.

    The kernels are a buffer: no optimizer changes them, and every checkpoint and weights file has them. Until
    `set_kernels` is called they are random and orthogonal, so that the network can be used untrained.
    """

    kernels: Tensor
    is_set: Tensor

    def __init__(self, kernel_size: int, stride: int, out_channels: int) -> None:
        """Build the layer.

        Args:
            kernel_size: side of the patches in pixels.
            stride: distance between patches in pixels.
            out_channels: an even number, at most 6 kernel_size^2 (twice the numbers in a patch); half of the
                channels are the directions of largest variance, the others their negatives.
        """
        super().__init__()
        most = 6 * kernel_size**2
        if out_channels % 2 or not 2 <= out_channels <= most:
            raise ValueError(f"whitening: expected an even number up to {most}, got {out_channels}")
        self.kernel_size, self.stride, self.out_channels = kernel_size, stride, out_channels
        directions = nn.init.orthogonal_(torch.empty(most // 2, most // 2))
        self.register_buffer("kernels", self._both_signs(directions))
        self.register_buffer("is_set", torch.tensor(False))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def _both_signs(self, directions: Tensor) -> Tensor:
        kept = directions[: self.out_channels // 2].reshape(-1, 3, self.kernel_size, self.kernel_size)
        return torch.cat([kept, -kept])

    def set_kernels(self, directions: Tensor) -> None:
        """Set the kernels to directions from `whitening_kernels`, whose kernel size must be the same."""
        self.kernels.copy_(self._both_signs(directions))
        self.is_set.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to maps [B, out_channels, H', W']; nothing is padded."""
        return F.conv2d(x, self.kernels, self.bias, self.stride)


def patch_moments(x: Tensor, kernel_size: int) -> Tensor:
    """Return the sum of p p^T over all patches p of views, with a last row that holds the number of patches.

    Args:
        x: views [B, 3, H, W].
        kernel_size: k, side of a patch in pixels.

    Returns:
        float64 [3 k^2 + 1, 3 k^2]; the moments of several batches or ranks can be added.
    """
    patches = F.unfold(x.float(), kernel_size).transpose(1, 2).reshape(-1, 3 * kernel_size**2)
    count = torch.full((1, patches.shape[1]), float(len(patches)), dtype=torch.float64, device=x.device)
    return torch.cat([(patches.T @ patches).double(), count])


def whitening_kernels(moments: Tensor, kernel_size: int) -> Tensor:
    """Return the principal directions of patches, each divided by its standard deviation.

    As in the source, the mean is not subtracted: views are normalised already, and a bias follows.

    Args:
        moments: sum of `patch_moments`.
        kernel_size: k, side of a patch in pixels.

    Returns:
        float64 [3 k^2, 3 k^2], one direction per row, largest variance first, on the device of `moments`. The
        sign, which solvers choose freely, makes the entry of largest magnitude positive.
    """
    size = 3 * kernel_size**2
    values, vectors = torch.linalg.eigh((moments[:size] / moments[size:]).cpu())
    directions = vectors.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scales = (values.flip(0).clamp_min(0.0) + _EPS).rsqrt().unsqueeze(1)
    scaled: Tensor = directions * largest.sign() * scales
    return scaled.to(moments.device)
