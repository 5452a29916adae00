"""The wide residual network of the semi-supervised papers on 32-pixel images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.1  # of the leaky ReLU, as in the semi-supervised papers' code


class PreActivationBlock(nn.Module):
    """BatchNorm and leaky ReLU before each of two 3x3 convolutions.

    If the width or the resolution changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build the block.

        Args:
            stride: stride of the first convolution and of the shortcut.
        """
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride]."""
        active = F.leaky_relu(self.norm1(x), _SLOPE)
        y: Tensor = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), _SLOPE))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A WRN-d-k without its classifier; for d = 28, k = 2 it has 1.5 million parameters and 128 features.

    Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks", table 1, with the leaky ReLU of
    Oliver et al. 2018, "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms". The shortcut of
    every stage starts from the activated map, as in the first source; FixMatch's code does so only in the
    first stage. BatchNorm has PyTorch's default momentum: the papers' 0.001 needs their million steps.
    """

    reduction = 4  # side of the views / side of the last map

    def __init__(self, depth: int = 28, width: int = 2) -> None:
        """Build the network.

        Args:
            depth: number of layers, 6 n + 4 for any n of at least 1.
            width: factor k of the channels (16 k, 32 k, 64 k).
        """
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(f"wide ResNet: expected depth 6 n + 4 and width >= 1, got {depth} and {width}")
        sizes = (16, 16 * width, 32 * width, 64 * width)
        blocks_per_stage = (depth - 4) // 6
        self.num_features = sizes[-1]
        # The last block of each stage, whose output is the map of the stage.
        self.stage_modules = tuple(f"stages.{blocks_per_stage * i - 1}" for i in (1, 2, 3))
        self.stem = nn.Conv2d(3, sizes[0], 3, 1, 1, bias=False)
        blocks = [
            PreActivationBlock(sizes[stage] if first else size, size, 2 if first and stage else 1)
            for stage, size in enumerate(sizes[1:])
            for first in (i == 0 for i in range(blocks_per_stage))
        ]
        self.stages = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(sizes[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to the last map [B, num_features, H / 4, W / 4]."""
        return F.leaky_relu(self.norm(self.stages(self.stem(x))), _SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to representations [B, num_features]; H and W multiples of 4."""
        return self.forward_features(x).mean(dim=(2, 3))
