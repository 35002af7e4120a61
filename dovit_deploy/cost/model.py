"""Which cost model counts which architecture, one line each."""

from __future__ import annotations

from collections.abc import Callable

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.cost.flop_report import CostModel
from dovit_deploy.cost.vision_transformer import VisionTransformerCost

COSTS: dict[type, Callable[..., CostModel]] = {
    VisionTransformerSpec: VisionTransformerCost,
}


def cost_model(spec: ModelSpec) -> CostModel:
    """The cost model of the network of `spec`."""
    return COSTS[type(spec)](spec)
