"""Vision transformers with gates (DoViT) or without (Segmenter, SETR) as a family."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.models.family import Family, State
from dovit_deploy.models.staged import DenseNetwork, stages_from_model
from dovit_deploy.models.vision_transformer import VisionTransformer


def state_at_size(state: State, spec: VisionTransformerSpec, target: VisionTransformerSpec) -> State:
    """Position embeddings resized as the source does it, the rest as it is.

    The source resizes only when the *number* of tokens changes: 4x16 tokens take the embeddings of 8x8 as they are.
    """
    positions = state["positions"]
    if target.tokens == positions.shape[0]:
        return state
    extra, grid = positions[: spec.extra_tokens], positions[spec.extra_tokens :]
    image = grid.T.reshape(1, -1, *spec.grid)
    resized = functional.interpolate(image, size=target.grid, mode=spec.position_mode, align_corners=False)
    return {**state, "positions": torch.cat([extra, resized.flatten(2)[0].T]).contiguous()}


FAMILY = Family(
    spec=VisionTransformerSpec,
    build=VisionTransformer,
    stages=stages_from_model,
    dense=DenseNetwork,
    state_at_size=state_at_size,
)
