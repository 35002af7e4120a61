"""What the names of a LeViT checkpoint tell of its stages, from either of the two views that Evo-ViT registers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dovit_deploy.models.key_facts import KeyFacts


@dataclass(frozen=True)
class LevitLayout:
    """Stages as far as keys show them; all empty where no key of a layer is there."""

    depths: tuple[int, ...]
    attentions: tuple[str, ...]
    """Per stage, a pattern of the names of its attention layers' modules."""
    pruned: tuple[bool, ...] | None
    """Per layer, whether it lies in a StageModule; None: only the layer-wise view is there, which does not show it."""


def layout_from_keys(facts: KeyFacts) -> LevitLayout:
    """Read `stage_blocks.*` if it is there, else `blocks.*`."""
    stage_view, pruned = _stages(_stage_view(facts))
    layer_view, _ = _stages(_layer_view(facts))
    groups = layer_view or stage_view
    return LevitLayout(
        depths=tuple(len(group) for group in groups),
        attentions=tuple("|".join(map(re.escape, group)).join(("(", ")")) for group in groups),
        pruned=tuple(pruned) if stage_view else None,
    )


Part = tuple[str, bool]
"""The module of an attention layer and whether a StageModule holds it; an empty name: a subsampling."""


def _stages(parts: Iterator[Part]) -> tuple[list[list[str]], list[bool]]:
    stages: list[list[str]] = []
    pruned = []
    for name, inside in parts:
        if not name:
            stages.append([])
            continue
        if not stages:
            stages.append([])
        stages[-1].append(name)
        pruned.append(inside)
    return stages, pruned


def _layer_view(facts: KeyFacts) -> Iterator[Part]:
    for number in range(_count(facts, "blocks")):
        if facts.has(rf"blocks\.{number}\.m1\..*"):
            yield f"blocks.{number}.m1.m", False
        elif facts.has(rf"blocks\.{number}\.kv\..*"):
            yield "", False


def _stage_view(facts: KeyFacts) -> Iterator[Part]:
    for number in range(_count(facts, "stage_blocks")):
        place = f"stage_blocks.{number}"
        inner = rf"stage_blocks\.{number}"
        if facts.has(rf"{inner}\.m\.qkv\..*"):
            yield f"{place}.m", False
        elif facts.has(rf"{inner}\.kv\..*"):
            yield "", False
        for layer in range(_count(facts, f"{place}.m")):
            if facts.has(rf"{inner}\.m\.{layer}\.m\.qkv\..*"):
                yield f"{place}.m.{layer}.m", True


def _count(facts: KeyFacts, prefix: str) -> int:
    """One more than the highest number behind `prefix`."""
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in facts.shapes)
    return max((int(match.group(1)) + 1 for match in numbers if match), default=0)
