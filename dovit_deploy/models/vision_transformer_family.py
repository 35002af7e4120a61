"""Vision transformers with gates (DoViT) or without (Segmenter, SETR) as a family."""

from __future__ import annotations

from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.models.family import Family
from dovit_deploy.models.positions import state_at_size
from dovit_deploy.models.staged import DenseNetwork, stages_from_model
from dovit_deploy.models.vision_transformer import VisionTransformer

FAMILY = Family(
    spec=VisionTransformerSpec,
    build=VisionTransformer,
    stages=stages_from_model,
    dense=DenseNetwork,
    state_at_size=state_at_size,
)
