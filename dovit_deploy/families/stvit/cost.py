"""MACs of Swin, of STViT-R, and of STViT on DeiT. Token counts are fixed, so each has one answer.

The published 5.826 G (S) and 10.264 G (B) of STViT-R count norms too, at five operations a value, and so are half a
percent above what is counted here, 5.799 G and 10.227 G; like these they count tokens of two overlapping patches twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.families.macs import FixedCost, FlopReport
from dovit_deploy.families.parts import PatchStem
from dovit_deploy.families.stvit.spec import (
    MADE_BY,
    PATCH_SPAN,
    REDUCED_STAGE,
    SAMPLES,
    UNIT,
    StvitBackboneSpec,
    StvitDeitSpec,
    StvitSegmenterSpec,
    StvitSwinSpec,
)
from dovit_deploy.families.stvit.swin_spec import PATCH, SwinShape, SwinSpec
from dovit_deploy.families.vit.cost import block_macs, head_macs
from dovit_deploy.families.vit.cost import stem_macs as plain_stem_macs


@dataclass(frozen=True)
class SwinCost(FixedCost[SwinSpec]):
    """A plain Swin classifier, where nothing is ever dropped."""

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        del kept
        spec, last = self.spec, len(self.spec.depths) - 1
        return FlopReport(
            stem=stem_macs(spec), layers=dense_layers_macs(spec), gates=0, head=spec.stage_width(last) * spec.classes
        )


ReducedSpec = StvitSwinSpec | StvitBackboneSpec | StvitSegmenterSpec


@dataclass(frozen=True)
class StvitCost(FixedCost[ReducedSpec]):
    """An STViT-R network; a Swin of the same widths, depths, stem and head, with other weights, is called dense."""

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        layers = dense_layers_macs(self.spec) if kept is None else self._layers()
        return FlopReport(stem=stem_macs(self.spec), layers=layers, gates=0, head=self._head())

    def _layers(self) -> int:
        spec = self.spec
        ordinary = sum(
            depth * swin_block_macs(spec, stage) for stage, depth in enumerate(spec.depths) if stage != REDUCED_STAGE
        )
        units = spec.depths[REDUCED_STAGE] // UNIT * unit_macs(spec)
        return ordinary + units + merge_macs(spec)

    def _head(self) -> int:
        spec = self.spec
        if isinstance(spec, StvitSegmenterSpec):
            patches = spec.stage_tokens(REDUCED_STAGE)
            return head_macs(spec.head, patches, spec.stage_width(REDUCED_STAGE), spec.classes)
        return spec.stage_width(len(spec.depths) - 1) * spec.classes


@dataclass(frozen=True)
class StvitDeitCost(FixedCost[StvitDeitSpec]):
    """STViT on DeiT; a DeiT of the same width and depth, without class token, is called dense."""

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        spec = self.spec
        layers = spec.depth * block_macs(spec.patches, spec.width, spec.hidden) if kept is None else self._layers()
        stem = plain_stem_macs(PatchStem(), patch=spec.patch, width=spec.width, grid=spec.grid)
        return FlopReport(stem=stem, layers=layers, gates=0, head=spec.width * spec.classes)

    def _layers(self) -> int:
        spec = self.spec
        patches, few = spec.counts
        first = AttentionCounts(queries=few, keys=patches, pairs=few * patches)
        second = AttentionCounts(queries=few, keys=few + patches, pairs=few * (few + patches))
        made = sum(cross_block_macs(few, one, width=spec.width, hidden=spec.hidden) for one in (first, second))
        before = spec.reduced_from * block_macs(patches, spec.width, spec.hidden)
        after = (spec.depth - spec.reduced_from - MADE_BY) * block_macs(few, spec.width, spec.hidden)
        return before + made + after


@dataclass(frozen=True)
class AttentionCounts:
    """One attention: how many tokens are projected, and how many queries meet how many keys."""

    queries: int
    """Tokens projected to queries."""
    keys: int
    """Tokens projected to keys and values."""
    pairs: int
    """Scores: queries times keys, over all windows."""


def cross_block_macs(tokens: int, attention: AttentionCounts, *, width: int, hidden: int) -> int:
    """Projections, QK^T and AV, output and MLP of a block that changes `tokens`."""
    projections = (attention.queries + 2 * attention.keys + tokens) * width * width
    return projections + 2 * attention.pairs * width + 2 * tokens * width * hidden


def window_attention(tokens: int, windows: int, window: int) -> AttentionCounts:
    """Every window of side `window` over itself; where the grid is padded, one token of zeros is projected too."""
    positions = windows * window**2
    filled = tokens + (positions > tokens)
    return AttentionCounts(queries=filled, keys=filled, pairs=positions * window**2)


def swin_block_macs(shape: SwinShape, stage: int) -> int:
    """An ordinary block of a stage."""
    tokens = shape.stage_tokens(stage)
    attention = window_attention(tokens, shape.stage_windows(stage), shape.stage_window(stage))
    return cross_block_macs(tokens, attention, width=shape.stage_width(stage), hidden=shape.stage_hidden(stage))


def merge_macs(shape: SwinShape) -> int:
    """All merges: four tokens of width C become one of width 2C."""
    return sum(
        shape.stage_tokens(stage + 1) * 4 * shape.stage_width(stage) * shape.stage_width(stage + 1)
        for stage in range(len(shape.depths) - 1)
    )


def stem_macs(shape: SwinShape) -> int:
    """Pixels to the first grid."""
    if shape.stem == "patch":
        return plain_stem_macs(PatchStem(), patch=PATCH, width=shape.width, grid=shape.grid)
    half = shape.width // 2
    # The first of the two convolutions runs on a grid twice as fine.
    return 4 * shape.patches * 9 * 3 * half + shape.patches * 9 * half * shape.width


def dense_layers_macs(shape: SwinShape) -> int:
    """All stages with ordinary blocks only, and the merges."""
    return sum(depth * swin_block_macs(shape, stage) for stage, depth in enumerate(shape.depths)) + merge_macs(shape)


def unit_macs(spec: ReducedSpec) -> int:
    """The six blocks that make and use semantic tokens."""
    width, hidden = spec.stage_width(REDUCED_STAGE), spec.stage_hidden(REDUCED_STAGE)
    image, semantic = spec.stage_tokens(REDUCED_STAGE), spec.semantic_tokens
    look, exchange, recover = (
        _when_classifying(image, semantic) if isinstance(spec, StvitSwinSpec) else _at_any_size(spec, image, semantic)
    )
    local = AttentionCounts(queries=semantic, keys=semantic, pairs=semantic * SAMPLES**2)
    everywhere = AttentionCounts(queries=semantic, keys=semantic, pairs=semantic**2)
    changed = [(semantic, look), (semantic, exchange), (semantic, local), (semantic, everywhere), (image, recover)]
    blocks = sum(cross_block_macs(tokens, attention, width=width, hidden=hidden) for tokens, attention in changed)
    convolution = semantic * 9 * width if spec.local_convolution else 0
    return swin_block_macs(spec, REDUCED_STAGE) + blocks + convolution


def _when_classifying(image: int, semantic: int) -> tuple[AttentionCounts, AttentionCounts, AttentionCounts]:
    """Semantic tokens at their patch and themselves, then at everything; image tokens at all semantic ones."""
    windows, own = semantic // SAMPLES**2, SAMPLES**2
    # Gathered before they are projected: a token of two patches is projected twice.
    keys = windows * (own + PATCH_SPAN**2)
    look = AttentionCounts(queries=semantic, keys=keys, pairs=own * keys)
    exchange = AttentionCounts(queries=semantic, keys=semantic + image, pairs=semantic * (semantic + image))
    return look, exchange, AttentionCounts(queries=image, keys=semantic, pairs=image * semantic)


def _at_any_size(
    spec: StvitBackboneSpec | StvitSegmenterSpec, image: int, semantic: int
) -> tuple[AttentionCounts, AttentionCounts, AttentionCounts]:
    """Semantic tokens at two neighbourhoods, image tokens at one; one token stands for all that is outside."""
    first, second = (
        AttentionCounts(queries=semantic, keys=image + 1, pairs=semantic * span**2) for span in spec.neighbourhoods
    )
    positions = semantic // SAMPLES**2 * spec.window**2
    recover = AttentionCounts(queries=image, keys=semantic + 1, pairs=positions * spec.recovery_neighbourhood**2)
    return first, second, recover
