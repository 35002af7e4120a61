"""Which cost model counts which architecture, one line each."""

from __future__ import annotations

from collections.abc import Callable

from dovit_deploy.bundle.evovit_deit_spec import EvoDeitSpec
from dovit_deploy.bundle.evovit_levit_spec import EvoLevitSpec
from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.bundle.stvit_deit_spec import StvitDeitSpec
from dovit_deploy.bundle.stvit_spec import StvitBackboneSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.bundle.swin_spec import SwinSpec
from dovit_deploy.cost.evovit import EvoDeitCost, EvoLevitCost
from dovit_deploy.cost.flop_report import CostModel
from dovit_deploy.cost.stvit import StvitCost, StvitDeitCost
from dovit_deploy.cost.swin import SwinCost
from dovit_deploy.cost.vision_transformer import VisionTransformerCost

COSTS: dict[type, Callable[..., CostModel]] = {
    VisionTransformerSpec: VisionTransformerCost,
    EvoDeitSpec: EvoDeitCost,
    EvoLevitSpec: EvoLevitCost,
    SwinSpec: SwinCost,
    StvitSwinSpec: StvitCost,
    StvitBackboneSpec: StvitCost,
    StvitSegmenterSpec: StvitCost,
    StvitDeitSpec: StvitDeitCost,
}


def cost_model(spec: ModelSpec) -> CostModel:
    """The cost model of the network of `spec`."""
    return COSTS[type(spec)](spec)
