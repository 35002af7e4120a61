"""A network as one graph: `pixels` -> its results, with the token counts that it has for every image, or dense.

Networks with gates are cut into several stages instead (`vit.network`); their dense form is the one here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dovit_deploy.families.spec import ModelSpec


class ImageOutput(NamedTuple):
    """What a network makes of one image."""

    results: tuple[Tensor, ...]
    """`logits`, or `out0`, `out1`, ..., each with a batch axis of 1."""
    choices: tuple[Tensor, ...] = ()
    """For each of the spec's `keep_grids` (h * w,) int64 of 0 and 1 in raster order: the patch was chosen to run."""


class ImageNetwork(Protocol):
    """A network that can be exported in one piece."""

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        """`pixels` (1, 3, H, W) -> results; with `dense` nothing is stopped or selected.

        The image's tokens are two-dimensional, (n, C): their linear layers become Gemm, the fastest form to deploy.
        """


class WholeStage(nn.Module):
    """The only stage of a network without gates.

    `pixels` (1, 3, H, W) -> its results, `kept` (len(counts),) int64, and its choices.
    """

    def __init__(self, model: ImageNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        results, choices = self.model.one_image(pixels, dense=False)
        # A constant in the graph, so that the host reads counts in one way whether or not they depend on the image.
        kept = torch.tensor(self.model.spec.counts, dtype=torch.int64, device=pixels.device)
        return (*results, kept, *choices)


class DenseNetwork(nn.Module):
    """The same weights with nothing stopped or selected: `pixels` (1, 3, H, W) -> `logits`.

    Raises:
        TypeError: the spec says that there is no such network.
    """

    def __init__(self, model: ImageNetwork) -> None:
        super().__init__()
        if not model.spec.has_dense:
            raise TypeError(f"{type(model).__name__} has no dense network")
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        (logits,) = self.model.one_image(pixels, dense=True).results
        return logits


class FixedNetwork(nn.Module):
    """A network whose token counts are fixed: `pixels` (B, 3, H, W) -> its results.

    Subclasses have `embed`, (B, 3, H, W) -> tokens (B, n, C), and `decode`, which takes tokens (B, n, C), or (n, C) as
    one image, to the results.
    """

    spec: ModelSpec

    def embed(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens: Tensor) -> Tensor | tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.decode(self.embed(pixels))

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        # Such a network is dense already, or has no dense form.
        del dense
        results = self.decode(self.embed(pixels)[0])
        return ImageOutput(results if isinstance(results, tuple) else (results,))


def whole_stages(model: ImageNetwork) -> list[nn.Module]:
    """The one stage of `model`."""
    return [WholeStage(model)]
