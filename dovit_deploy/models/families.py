"""Which families there are, one line each: the modules that define a `FAMILY`, imported when they are needed."""

from __future__ import annotations

import importlib

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.models.family import Family

FAMILIES = {
    "VisionTransformerSpec": "dovit_deploy.models.vision_transformer_family",
    "EvoDeitSpec": "dovit_deploy.models.evovit_deit",
    "EvoLevitSpec": "dovit_deploy.models.evovit_levit",
    "SwinSpec": "dovit_deploy.models.swin_classifier",
    "StvitSwinSpec": "dovit_deploy.models.stvit_swin",
    "StvitBackboneSpec": "dovit_deploy.models.stvit_detection",
    "StvitSegmenterSpec": "dovit_deploy.models.stvit_segmenter",
    "StvitDeitSpec": "dovit_deploy.models.stvit_deit",
}
"""Class of the spec -> module."""


def family_of(spec: ModelSpec) -> Family:
    """The family whose networks `spec` describes."""
    family: Family = importlib.import_module(FAMILIES[type(spec).__name__]).FAMILY
    return family
