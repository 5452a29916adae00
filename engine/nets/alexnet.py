"""AlexNet with BatchNorm, the network of RotNet and of the reports that follow it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loaders.common.errors import UserError

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_MIN_RESOLUTION = 63  # for fewer pixels, the input of the third pooling is too small
_POOLED_SIDE = 6


class AlexNet(nn.Module):
    """Five convolutions of 64, 192, 384, 256 and 256 channels, each with BatchNorm and ReLU.

    Convolutions 1, 2 and 5 are followed by max pooling. The representation is the last map averaged to
    6 x 6 (which changes nothing at 224 pixels) and flattened.

    Source: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", with the
    BatchNorm of Gidaris et al. 2018 (RotNet), section 4.2 and the authors' code.
    """

    num_features = 256 * _POOLED_SIDE**2
    stage_modules = LAYERS  # their outputs are the maps of the stages

    def __init__(self) -> None:
        """Build the network with He initialisation."""
        super().__init__()
        self.conv1 = _block(3, 64, 11, stride=4, padding=2)
        self.conv2 = _block(64, 192, 5, padding=2)
        self.conv3 = _block(192, 384, 3, padding=1)
        self.conv4 = _block(384, 256, 3, padding=1)
        self.conv5 = _block(256, 256, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2)
        self.average = nn.AdaptiveAvgPool2d(_POOLED_SIDE)

    def layer(self, x: Tensor, name: str) -> Tensor:
        """Return the map of one convolution, before its pooling.

        Args:
            x: views [B, 3, H, W], H and W of at least 63.
            name: one of `LAYERS`.

        Returns:
            [B, channels, H', W'], after BatchNorm and ReLU.

        Raises:
            UserError: the name is not in `LAYERS`.
        """
        if name not in LAYERS:
            raise UserError(f"AlexNet layer: expected one of {', '.join(LAYERS)}, found {name!r}")
        for current in LAYERS:
            x = getattr(self, current)(x)
            if current == name:
                break
            if current in ("conv1", "conv2"):
                x = self.pool(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to the last map after its pooling [B, 256, H', W']."""
        maps: Tensor = self.pool(self.layer(x, "conv5"))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to representations [B, 9216]."""
        h: Tensor = self.average(self.forward_features(x)).flatten(1)
        return h


def build_alexnet(resolution: int) -> AlexNet:
    """Build the network for views of a resolution.

    Raises:
        UserError: the resolution is too small for the network's strides.
    """
    if resolution < _MIN_RESOLUTION:
        raise UserError(
            f"backbone: alexnet_bn needs views of at least {_MIN_RESOLUTION} pixels, found {resolution}; "
            "raise --resolution or take tiny_resnet"
        )
    return AlexNet().to(memory_format=torch.channels_last)


def _block(in_channels: int, out_channels: int, size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
