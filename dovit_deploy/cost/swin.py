"""MACs of Swin: stems, blocks of window attention and merges, and of a whole classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.swin_shape import PATCH, SwinShape
from dovit_deploy.bundle.swin_spec import SwinSpec
from dovit_deploy.cost.flop_report import FlopReport


@dataclass(frozen=True)
class Attention:
    """One attention: how many tokens are projected, and how many queries meet how many keys."""

    queries: int
    """Tokens projected to queries."""
    keys: int
    """Tokens projected to keys and values."""
    pairs: int
    """Scores: queries times keys, over all windows."""


def block_macs(tokens: int, attention: Attention, *, width: int, hidden: int) -> int:
    """Projections, QK^T and AV, output and MLP of a block that changes `tokens`."""
    projections = (attention.queries + 2 * attention.keys + tokens) * width * width
    return projections + 2 * attention.pairs * width + 2 * tokens * width * hidden


def window_attention(tokens: int, windows: int, window: int) -> Attention:
    """Every window of side `window` over itself; where the grid is padded, one token of zeros is projected too."""
    places = windows * window**2
    filled = tokens + (places > tokens)
    return Attention(queries=filled, keys=filled, pairs=places * window**2)


def swin_block_macs(shape: SwinShape, stage: int, window: int) -> int:
    """An ordinary block of a stage."""
    attention = window_attention(shape.stage_tokens(stage), shape.stage_windows(stage, window), window)
    width, hidden = shape.stage_width(stage), shape.stage_hidden(stage)
    return block_macs(shape.stage_tokens(stage), attention, width=width, hidden=hidden)


def merge_macs(shape: SwinShape) -> int:
    """All merges: four tokens of width C become one of width 2C."""
    return sum(
        shape.stage_tokens(stage + 1) * 4 * shape.stage_width(stage) * shape.stage_width(stage + 1)
        for stage in range(len(shape.depths) - 1)
    )


def stem_macs(shape: SwinShape) -> int:
    """Pixels to the first grid."""
    if shape.stem == "patch":
        return shape.patches * 3 * PATCH**2 * shape.width
    half = shape.width // 2
    return 4 * shape.patches * 9 * 3 * half + shape.patches * 9 * half * shape.width


def dense_layers_macs(shape: SwinShape, windows: Sequence[int]) -> int:
    """All stages with ordinary blocks only, windows of side `windows[stage]`, and the merges."""
    blocks = sum(
        depth * swin_block_macs(shape, stage, window)
        for stage, (depth, window) in enumerate(zip(shape.depths, windows, strict=True))
    )
    return blocks + merge_macs(shape)


@dataclass(frozen=True)
class SwinCost:
    """MACs of a plain Swin classifier, where nothing is ever dropped."""

    spec: SwinSpec

    def dense(self) -> FlopReport:
        """All there is."""
        spec = self.spec
        last = len(spec.depths) - 1
        return FlopReport(
            stem=stem_macs(spec),
            layers=dense_layers_macs(spec, [spec.stage_window(stage) for stage in range(last + 1)]),
            gates=0,
            head=spec.stage_width(last) * spec.classes,
        )

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """The same."""
        if tuple(kept) != self.spec.counts:
            raise ValueError(f"token counts {tuple(kept)}; this network has {self.spec.counts}")
        return self.dense()
