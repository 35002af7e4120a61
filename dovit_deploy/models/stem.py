"""From pixels to patch tokens: zero-pad right and bottom to whole patches, project, flatten in raster order."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.bundle.spec import ConvStem, Stem
from dovit_deploy.models.batch_norm import conv_norm


class Stemmed(Protocol):
    """What a stem needs to know of a network."""

    @property
    def stem(self) -> Stem:
        """Which kind."""

    @property
    def patch(self) -> int:
        """Side of a token in pixels."""

    @property
    def width(self) -> int:
        """C."""


class PatchEmbedding(nn.Module):
    """The published stem: one convolution whose kernel and stride are the patch."""

    def __init__(self, spec: Stemmed) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(pixels)  # type: ignore[no-any-return]


class ResidualConv(nn.Module):
    """x + a 3x3 convolution with batch norm, then ReLU."""

    def __init__(self, width: int, *, trainable: bool) -> None:
        super().__init__()
        self.conv = conv_norm(width, width, 3, trainable=trainable)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.conv(x))


class ConvEmbedding(nn.Module):
    """3x3 stride-2 convolutions with ReLU, residual blocks after all but the first, a 2x2 stride-2 projection."""

    def __init__(self, spec: Stemmed, stem: ConvStem, *, trainable: bool) -> None:
        super().__init__()
        inputs = (3, *stem.widths[:-1])
        self.down = nn.ModuleList(
            conv_norm(before, after, 3, stride=2, trainable=trainable)
            for before, after in zip(inputs, stem.widths, strict=True)
        )
        self.residual = nn.ModuleList(ResidualConv(width, trainable=trainable) for width in stem.widths[1:])
        self.projection = nn.Conv2d(stem.widths[-1], spec.width, 2, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.relu(self.down[0](pixels))
        for down, residual in zip(self.down[1:], self.residual, strict=True):
            x = residual(functional.relu(down(x)))
        return self.projection(x)  # type: ignore[no-any-return]


def stem_from_spec(spec: Stemmed, *, trainable: bool) -> nn.Module:
    """The stem that `spec` asks for: (B, 3, H, W), H and W multiples of the patch -> (B, C, h, w)."""
    if isinstance(spec.stem, ConvStem):
        return ConvEmbedding(spec, spec.stem, trainable=trainable)
    return PatchEmbedding(spec)


def padded(pixels: Tensor, patch: int) -> Tensor:
    """Zeros (the mean colour, since pixels are normalised) added right and bottom up to whole patches."""
    height, width = pixels.shape[-2:]
    return functional.pad(pixels, (0, -width % patch, 0, -height % patch))
