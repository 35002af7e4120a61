"""Position embeddings for another grid of tokens, resized as the published codes do it."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

Mode = Literal["bicubic", "bilinear"]
Grid = tuple[int, int]


class Positioned(Protocol):
    """A spec whose network has one table of position embeddings, `positions`."""

    @property
    def grid(self) -> Grid:
        """Rows and columns of patch tokens."""

    @property
    def extra_tokens(self) -> int:
        """Embeddings before the grid's."""

    @property
    def position_mode(self) -> Mode:
        """How they are resized."""


def state_at_size(state: dict[str, Tensor], spec: Positioned, target: Positioned) -> dict[str, Tensor]:
    """Weights of `spec` as weights of the same architecture on the grid of `target`."""
    positions = resized_positions(state["positions"], spec.extra_tokens, spec.grid, target.grid, spec.position_mode)
    return {**state, "positions": positions}


def resized_positions(positions: Tensor, extra: int, grid: Grid, target: Grid, mode: Mode) -> Tensor:
    """(E + N, C) for `grid` -> (E + N', C) for `target`; corners not aligned, no antialiasing.

    The sources resize only when the *number* of tokens changes: 4x16 tokens take the embeddings of 8x8 as they are.
    """
    if target[0] * target[1] == positions.shape[0] - extra:
        return positions
    image = positions[extra:].T.reshape(1, -1, *grid)
    resized = functional.interpolate(image, size=target, mode=mode, align_corners=False)
    return torch.cat([positions[:extra], resized.flatten(2)[0].T]).contiguous()
