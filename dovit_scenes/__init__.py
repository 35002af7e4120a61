"""Rendered street scenes: images with exact labels, and clips, from a seed alone and free of any licence."""

from __future__ import annotations

from dovit_scenes.render import SceneFrame, render, street_frames
from dovit_scenes.things import CLASS_NAMES, PALETTE, SceneClass
from dovit_scenes.world import World, world_from_seed

__all__ = [
    "CLASS_NAMES",
    "PALETTE",
    "SceneClass",
    "SceneFrame",
    "World",
    "render",
    "street_frames",
    "world_from_seed",
]
