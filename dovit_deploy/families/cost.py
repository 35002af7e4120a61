"""Which cost model counts which architecture, one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dovit_deploy.families.evovit.cost import EvoDeitCost, LevitCost
from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec, LevitSpec
from dovit_deploy.families.macs import CostModel
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stvit.cost import StvitCost, StvitDeitCost, SwinCost
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitDeitSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from dovit_deploy.families.vit.cost import VisionTransformerCost
from dovit_deploy.families.vit.spec import VisionTransformerSpec

COSTS: dict[type, Callable[..., CostModel[Any]]] = {
    VisionTransformerSpec: VisionTransformerCost,
    EvoDeitSpec: EvoDeitCost,
    EvoLevitSpec: LevitCost,
    LevitSpec: LevitCost,
    SwinSpec: SwinCost,
    StvitSwinSpec: StvitCost,
    StvitBackboneSpec: StvitCost,
    StvitSegmenterSpec: StvitCost,
    StvitDeitSpec: StvitDeitCost,
}


def cost_model(spec: ModelSpec) -> CostModel[Any]:
    """The cost model of the network of `spec`."""
    return COSTS[type(spec)](spec)
