"""AnySpec: the union of all architectures, as a manifest or a checkpoint's configuration holds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec, LevitSpec
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitDeitSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec


def _architecture(value: Any) -> str:  # noqa: ANN401  JSON, or a spec
    """The tag of a member. Vision transformers do not name theirs: manifests of version 0.1 knew no other."""
    # While reading, the value is a mapping; while writing, the spec itself.
    found = value.get("architecture") if isinstance(value, Mapping) else getattr(value, "architecture", None)
    return str(found or "vision-transformer")


AnySpec = Annotated[
    Annotated[VisionTransformerSpec, Tag("vision-transformer")]
    | Annotated[EvoDeitSpec, Tag("evovit-deit")]
    | Annotated[EvoLevitSpec, Tag("evovit-levit")]
    | Annotated[LevitSpec, Tag("levit")]
    | Annotated[StvitSwinSpec, Tag("stvit-r-swin")]
    | Annotated[StvitBackboneSpec, Tag("stvit-r-backbone")]
    | Annotated[StvitSegmenterSpec, Tag("stvit-r-segmenter")]
    | Annotated[StvitDeitSpec, Tag("stvit-deit")]
    | Annotated[SwinSpec, Tag("swin")],
    Discriminator(_architecture),
]
