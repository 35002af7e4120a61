"""MACs of a vision transformer, and of the blocks, stems and heads that it shares with other families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.families.macs import CostModel, FlopReport
from dovit_deploy.families.parts import (
    AnyHead,
    ConvStem,
    FcnHead,
    GateSpec,
    LightHead,
    LinearHead,
    MaskHead,
    MlpKind,
    QueryHead,
    SetrHead,
    Stem,
)
from dovit_deploy.families.spec import Grid
from dovit_deploy.families.vit.spec import VisionTransformerSpec


@dataclass(frozen=True)
class VisionTransformerCost(CostModel[VisionTransformerSpec]):
    """MACs with the tokens that run in each stage, and of the gates between them."""

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        spec, running = self.spec, self.spec.counts if kept is None else kept
        stages = zip(spec.stage_layers, running, strict=True)
        layers = sum((last - first) * self._layer(n) for (first, last), n in stages) + self._joined()
        if kept is not None:
            later = zip(spec.stage_layers[1:], running[1:], strict=True)
            layers += sum((last - first) * self._context(n) for (first, last), n in later)
        # A gate is evaluated on what entered the stage that it ends; the dense network has none.
        before = zip(spec.gates, running[:-1], strict=True) if kept is not None else ()
        gates = sum(self._gate(gate.head, n - spec.extra_tokens) + self._lenses(gate, n) for gate, n in before)
        gates += sum(self._pooling() for _ in spec.gates) if kept is not None else 0
        stem = stem_macs(spec.stem, patch=spec.patch, width=spec.width, grid=spec.grid)
        # Where gates answer, the head is asked for what ran to the end alone.
        asked = running[-1] - spec.extra_tokens if spec.gates and spec.answer == "gate" else spec.patches
        head = head_macs(spec.head, asked, spec.head_width, spec.classes)
        return FlopReport(stem=stem, layers=layers, gates=gates, head=head)

    def _layer(self, tokens: int) -> int:
        return block_macs(tokens, self.spec.width, self.spec.hidden, self.spec.mlp)

    def _joined(self) -> int:
        """The last layers, where queries run with all tokens, whatever has stopped."""
        if not isinstance(self.spec.head, QueryHead):
            return 0
        return self.spec.head.joined * self._layer(self.spec.tokens + self.spec.head.queries)

    def _context(self, running: int) -> int:
        """Of pooled keys in one layer: map, key and value of each, and attention to them."""
        keys, width = self.spec.pooled_keys, self.spec.width
        return keys * (3 * width**2 + 2 * running * width)

    def _pooling(self) -> int:
        """Of what stopped at one gate: sums by class, which are products with ones and zeros, and a lens of each."""
        keys, width = self.spec.pooled_keys, self.spec.width
        return keys * (self.spec.patches * width + width**2)

    def _gate(self, head: LinearHead | FcnHead | SetrHead, running: int) -> int:
        """A per-token head sees running patches only; an up-sampling one mixes neighbours and sees the grid."""
        if isinstance(head, SetrHead):
            return self._head(head, self.spec.width)
        return running * _token_head(head, self.spec.width, self.spec.classes)

    def _lenses(self, gate: GateSpec, running: int) -> int:
        """Of one gate: what the head is to see of every token that ran, since all of them may stop there."""
        readers = 1 + len(self.spec.lensed_taps(gate)) if self.spec.answer == "lens" else 0
        return readers * running * self.spec.width**2

    def _head(self, head: AnyHead, width: int) -> int:
        return head_macs(head, self.spec.patches, width, self.spec.classes)


def block_macs(tokens: int, width: int, hidden: int, mlp: MlpKind = "gelu") -> int:
    """One pre-norm block: query, key, value, output and MLP, then QK^T and AV (12nC^2 + 2n^2C for hidden = 4C)."""
    layers = 3 if mlp == "swiglu" else 2
    return tokens * (4 * width * width + layers * width * hidden) + 2 * tokens * tokens * width


def stem_macs(stem: Stem, *, patch: int, width: int, grid: Grid) -> int:
    """From pixels to a `grid` of patch tokens of `width`."""
    patches = grid[0] * grid[1]
    if not isinstance(stem, ConvStem):
        return patches * 3 * patch**2 * width
    rows, columns = (side * patch for side in grid)
    total, inputs = 0, 3
    for number, outputs in enumerate(stem.widths):
        rows, columns = rows // 2, columns // 2
        total += rows * columns * 9 * inputs * outputs
        # A residual convolution after all but the first.
        if number:
            total += rows * columns * 9 * outputs * outputs
        inputs = outputs
    return total + patches * 4 * inputs * width


def head_macs(head: AnyHead, patches: int, width: int, classes: int) -> int:
    """A head that is shown all `patches` tokens of `width`."""
    if isinstance(head, MaskHead):
        return _mask_head(head, patches, width, classes)
    if isinstance(head, SetrHead):
        return _setr_head(head, patches, width, classes)
    if isinstance(head, LightHead):
        return patches * 4 * head.channels * (width + 9 * head.channels + classes)
    if isinstance(head, QueryHead):
        return _query_head(head, patches, width, classes)
    return patches * _token_head(head, width, classes)


def _token_head(head: LinearHead | FcnHead, width: int, classes: int) -> int:
    """Of one token."""
    if isinstance(head, FcnHead):
        return head.channels * (width + classes)
    return width * classes


def _setr_head(head: SetrHead, patches: int, width: int, classes: int) -> int:
    total, positions, inputs = 0, patches, width
    for _ in range(head.convs):
        # A convolution runs before the up-sampling that follows it.
        total += positions * head.kernel**2 * inputs * head.channels
        positions, inputs = positions * head.up_scale**2, head.channels
    return total + positions * inputs * classes


def _query_head(head: QueryHead, patches: int, width: int, classes: int) -> int:
    # One linear layer to 2x2 positions of `width`, then 3x3 of each channel.
    spread, positions = 0, patches
    for _ in range(head.doublings):
        positions *= 4
        spread += positions * width * (width + 9)
    queries = head.queries * (3 * width * width + width * (classes + 1))
    return spread + queries + positions * head.queries * (width + classes)


def _mask_head(head: MaskHead, patches: int, width: int, classes: int) -> int:
    # Class embeddings go through the blocks with the patches; their product is (patches, classes).
    embed = patches * width * head.width
    blocks = head.layers * block_macs(patches + classes, head.width, 4 * head.width)
    projections = (patches + classes) * head.width**2
    return embed + blocks + projections + patches * classes * head.width
