"""Building a network from its spec and weights, and fitting weights to another input size."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.bundle.spec import ModelSpec
from dovit_deploy.models.vision_transformer import VisionTransformer


def model_from_spec(spec: ModelSpec, state: dict[str, Tensor] | None = None) -> VisionTransformer:
    """The network of `spec` in deployment form, in evaluation mode, with `state` loaded strictly."""
    with torch.device("meta") if state is not None else torch.device("cpu"):
        model = VisionTransformer(spec)
    if state is not None:
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def spec_at_size(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    """The same architecture for another input size."""
    return ModelSpec.model_validate({**spec.model_dump(), "size": size})


def state_at_size(state: dict[str, Tensor], spec: ModelSpec, size: tuple[int, int]) -> dict[str, Tensor]:
    """Weights of `spec` for input `size`: position embeddings resized as the family's source does it.

    The source resizes only when the *number* of tokens changes: 4x16 tokens take the embeddings of 8x8 as they are.
    """
    target = spec_at_size(spec, size)
    positions = state["positions"]
    if target.tokens == positions.shape[0]:
        return state
    extra, grid = positions[: spec.extra_tokens], positions[spec.extra_tokens :]
    image = grid.T.reshape(1, -1, *spec.grid)
    resized = functional.interpolate(image, size=target.grid, mode=spec.position_mode, align_corners=False)
    return {**state, "positions": torch.cat([extra, resized.flatten(2)[0].T]).contiguous()}
