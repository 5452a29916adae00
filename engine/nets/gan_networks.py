"""Generator and discriminator of the recipes `dcgan` and `ssl_gan`, for square images of 16 to 224 pixels.

Sources: Radford et al. 2015, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (arXiv 1511.06434), and Salimans et al. 2016, appendix and published code.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from loaders.common.errors import UserError

_SLOPE = 0.2  # of the leaky ReLU


def _halvings(resolution: int) -> tuple[int, int]:
    """Return how many halvings of the resolution reach 4, 5, 6 or 7 pixels, and which; refuse other sizes."""
    halvings = int(math.log2(max(1, resolution // 4)))
    first = resolution // 2**halvings
    if resolution != first * 2**halvings or not 2 <= halvings <= 5:
        raise UserError(
            "resolution: expected 4, 5, 6 or 7 times 4, 8, 16 or 32 for the GAN, such as 32, 64 or 96, found "
            f"{resolution}; change it"
        )
    return halvings, first


class Generator(nn.Module):
    """Maps noise to images in [-1, 1] by transposed convolutions, each of which doubles the side."""

    def __init__(self, resolution: int, noise_size: int, width: int) -> None:
        """Build the network.

        Args:
            resolution: side of the images: 4, 5, 6 or 7 times 4, 8, 16 or 32.
            noise_size: length of the noise vector.
            width: channels at half the resolution; each earlier layer has twice as many, up to 8 * width.
        """
        super().__init__()
        halvings, first = _halvings(resolution)
        channels = [width * 2 ** min(3, i) for i in reversed(range(halvings))]
        self.noise_size = noise_size
        self.start = nn.Sequential(
            nn.Linear(noise_size, channels[0] * first**2, bias=False),
            nn.Unflatten(1, (channels[0], first, first)),
        )
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for size_in, size_out in pairwise(channels):
            layers += [nn.ConvTranspose2d(size_in, size_out, 5, 2, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(size_out), nn.ReLU(inplace=True)]
        layers += [weight_norm(nn.ConvTranspose2d(channels[-1], 3, 5, 2, 2, 1)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.05)

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise [G, noise_size] to images [G, 3, H, W]."""
        images: Tensor = self.layers(self.start(noise))
        return images


class Discriminator(nn.Module):
    """Weight-normalised convolutions and a global average, without the layer that gives the logits."""

    def __init__(self, width: int, dropout: float = 0.5) -> None:
        """Build the network.

        Args:
            width: channels of the first three layers; the others have twice as many. 96 in the paper.
            dropout: probability of dropout after the third and the sixth layer; on the image, 0.4 times this.
        """
        super().__init__()
        wide = 2 * width
        plan = [(3, width, 3, 1, 1), (width, width, 3, 1, 1), (width, width, 3, 2, 1)]
        plan += [(width, wide, 3, 1, 1), (wide, wide, 3, 1, 1), (wide, wide, 3, 2, 1)]
        plan += [(wide, wide, 3, 1, 0), (wide, wide, 1, 1, 0), (wide, wide, 1, 1, 0)]
        layers: list[nn.Module] = [nn.Dropout(0.4 * dropout)]
        for number, (size_in, size_out, kernel, stride, padding) in enumerate(plan, start=1):
            convolution = nn.Conv2d(size_in, size_out, kernel, stride, padding)
            # Through nine layers without BatchNorm, He's initialisation keeps the scale of activations, and
            # PyTorch's default does not. The paper initialises from the first batch, which each rank would do
            # differently.
            nn.init.kaiming_normal_(convolution.weight, a=_SLOPE, nonlinearity="leaky_relu")
            layers += [weight_norm(convolution), nn.LeakyReLU(_SLOPE)]
            if number in (3, 6):
                layers.append(nn.Dropout(dropout))
        self.num_features = wide
        self.stage_modules = (
            "layers.6",
            "layers.13",
            "layers.20",
        )  # their outputs are the maps of the stages
        self.layers = nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to the last map [B, num_features, H', W']."""
        maps: Tensor = self.layers(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to representations [B, num_features]; H and W of at least 16."""
        return self.forward_features(x).mean(dim=(2, 3))

    def set_dropout(self, dropout: float) -> None:
        """Set the probability of dropout; on the image it is 0.4 times this."""
        first, *others = [module for module in self.layers if isinstance(module, nn.Dropout)]
        first.p = 0.4 * dropout
        for module in others:
            module.p = dropout
