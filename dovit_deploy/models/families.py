"""Which families there are, one line each: the modules that define a `FAMILY`, imported when they are needed."""

from __future__ import annotations

import pkgutil

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.models.family import Family

FAMILIES = {
    "VisionTransformerSpec": "dovit_deploy.models.vision_transformer_family:FAMILY",
    "EvoDeitSpec": "dovit_deploy.models.evovit_deit:FAMILY",
    "EvoLevitSpec": "dovit_deploy.models.evovit_levit:FAMILY",
    "LevitSpec": "dovit_deploy.models.levit:FAMILY",
    "SwinSpec": "dovit_deploy.models.swin_classifier:FAMILY",
    "StvitSwinSpec": "dovit_deploy.models.stvit_swin:STVIT_SWIN",
    "StvitBackboneSpec": "dovit_deploy.models.stvit_detection:STVIT_BACKBONE",
    "StvitSegmenterSpec": "dovit_deploy.models.stvit_segmenter:STVIT_SEGMENTER",
    "StvitDeitSpec": "dovit_deploy.models.stvit_deit:STVIT_DEIT",
}
"""Class of the spec -> module and name of its `Family`."""


def family_of(spec: ModelSpec) -> Family:
    """The family whose networks `spec` describes."""
    family: Family = pkgutil.resolve_name(FAMILIES[type(spec).__name__])
    return family
