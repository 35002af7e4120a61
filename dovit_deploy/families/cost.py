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


MOST_MACS = 10**15
"""Of one image, dense: hundreds of times the largest vision transformers at the largest sizes."""
MOST_PER_TOKEN = 2 * 10**10
"""MACs that all layers spend on a token, and about the number of their weights."""


def excess_of(spec: ModelSpec) -> str | None:
    """Why a network of `spec` is beyond reason, although each of its numbers is within bounds; None: it is not."""
    cost = cost_model(spec).dense()
    if cost.total > MOST_MACS:
        return f"a network of {cost.total:.1e} MACs an image; at most {MOST_MACS:.0e} are read"
    if cost.layers // spec.tokens > MOST_PER_TOKEN:
        return f"a network of more than {MOST_PER_TOKEN:.0e} weights; no such network is read"
    return None


def cost_model(spec: ModelSpec) -> CostModel[Any]:
    """The cost model of the network of `spec`."""
    return COSTS[type(spec)](spec)
