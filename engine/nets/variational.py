"""The networks of a variational autoencoder around any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loaders.common.errors import UserError

_DOUBLINGS = 4


class Decoder(nn.Sequential):
    """Maps z to the logits of an image, by four nearest-neighbour doublings, each with a 3x3 convolution.

    Transposed convolutions would leave checkerboard patterns instead (Odena et al. 2016, "Deconvolution and
    Checkerboard Artifacts").
    """

    def __init__(self, num_latent: int, resolution: int, width: int) -> None:
        """Build the layers.

        Args:
            num_latent: size of z.
            resolution: side of the image, a multiple of 16.
            width: channels after the last doubling; each earlier one leaves twice as many as the next.

        Raises:
            UserError: the resolution is no multiple of 16.
        """
        side, rest = divmod(resolution, 2**_DOUBLINGS)
        if rest:
            raise UserError(
                f"decoder: expected a resolution that is a multiple of {2**_DOUBLINGS}, found {resolution}"
            )
        channels = [width * 2**i for i in reversed(range(_DOUBLINGS))]
        layers: list[nn.Module] = [
            nn.Linear(num_latent, channels[0] * side**2),
            nn.Unflatten(1, (channels[0], side, side)),
        ]
        for size_in, size_out in zip([channels[0], *channels], channels, strict=False):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(size_in, size_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(size_out),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.Conv2d(width, 3, 3, padding=1))


class LatentCode(nn.Module):
    """The linear layer from h to the parameters of q(z | x), and the decoder."""

    def __init__(
        self, num_features: int, num_latent: int, resolution: int, width: int, stochastic: bool
    ) -> None:
        """Build the networks; call `seed_everything` first.

        Args:
            num_features: size of the representation h.
            num_latent: size of z.
            resolution: side of the views, a multiple of 16.
            width: width of the decoder.
            stochastic: False leaves out the variance, for a plain autoencoder.
        """
        super().__init__()
        self.num_latent, self.stochastic = num_latent, stochastic
        self.parameters_of_z = nn.Linear(num_features, num_latent * (2 if stochastic else 1))
        self.decoder = Decoder(num_latent, resolution, width).to(memory_format=torch.channels_last)

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map representations [B, num_features] to mean and log-variance of z, float32 [B, num_latent] each.

        The log-variance is None in the plain autoencoder.
        """
        parameters = self.parameters_of_z(h).float()
        if not self.stochastic:
            return parameters, None
        mean, log_variance = parameters.chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Map z [B, num_latent] to the logits of intensities, float32 [B, 3, H, W]."""
        logits: Tensor = self.decoder(z)
        return logits.float()


class Intensities(nn.Module):
    """Undoes the normalisation of views."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        """Store mean and standard deviation of each channel as buffers that checkpoints do not contain."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised views [B, 3, H, W] to intensities in [0, 1]."""
        return (x * self.std + self.mean).clamp(0.0, 1.0)


@torch.no_grad()
def reconstruct_and_sample(
    backbone: nn.Module, code: LatentCode, to_intensities: Intensities, x: Tensor, seed: int
) -> list[Tensor]:
    """Return images, reconstructions and samples; `backbone` and `code` are left in evaluation mode.

    Args:
        backbone: the encoder.
        x: normalised views [N, 3, H, W].
        seed: seed of the samples.

    Returns:
        The images, their reconstructions from the mean and, for a VAE, samples from the prior: a tensor of
        intensities [N, 3, H, W] each.
    """
    backbone.eval()
    code.eval()
    mean, _ = code.encode(backbone(x))
    rows = [to_intensities(x), torch.sigmoid(code.decode(mean))]
    if code.stochastic:
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
        rows.append(torch.sigmoid(code.decode(noise)))
    return rows
