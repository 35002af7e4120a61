"""MACs of a vision transformer, dense or with given numbers of running tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dovit_deploy.families.macs import FlopReport
from dovit_deploy.families.parts import ConvStem, FcnHead, LinearHead, MaskHead, SetrHead, Stem
from dovit_deploy.families.vit.spec import VisionTransformerSpec


@dataclass(frozen=True)
class VisionTransformerCost:
    """MACs of the network of `spec`, dense or with given numbers of running tokens."""

    spec: VisionTransformerSpec

    def dense(self) -> FlopReport:
        """The same network with nothing stopped and without auxiliary heads."""
        layers = self.spec.depth * self._layer(self.spec.tokens)
        return FlopReport(stem=stem_macs(self.spec), layers=layers, gates=0, head=self._head(self.spec.head))

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """What runs when `kept[i]` tokens, extra tokens included, enter the blocks of stage i.

        Rises with every entry of `kept`.
        """
        stages = self.spec.stage_layers
        if len(kept) != len(stages):
            raise ValueError(f"{len(kept)} token counts for {len(stages)} stages")
        layers = sum((last - first) * self._layer(n) for (first, last), n in zip(stages, kept, strict=True))
        gates = sum(
            self._gate(gate.head, n - self.spec.extra_tokens)
            for gate, n in zip(self.spec.gates, kept[:-1], strict=True)
        )
        return FlopReport(stem=stem_macs(self.spec), layers=layers, gates=gates, head=self._head(self.spec.head))

    def _layer(self, tokens: int) -> int:
        return block_macs(tokens, self.spec.width, self.spec.hidden)

    def _gate(self, head: LinearHead | FcnHead | SetrHead, running: int) -> int:
        """A per-token head sees running patches only; an up-sampling one mixes neighbours and sees the grid."""
        if isinstance(head, SetrHead):
            return self._head(head)
        return running * _token_head(head, self.spec.width, self.spec.classes)

    def _head(self, head: LinearHead | FcnHead | SetrHead | MaskHead) -> int:
        return head_macs(head, self.spec.patches, self.spec.width, self.spec.classes)


def block_macs(tokens: int, width: int, hidden: int) -> int:
    """One pre-norm block: query, key, value, output and MLP, then QK^T and AV (12nC^2 + 2n^2C for hidden = 4C)."""
    return tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width


class Stemmed(Protocol):
    """What the cost of a stem depends on."""

    @property
    def stem(self) -> Stem:
        """Which kind."""

    @property
    def patch(self) -> int:
        """Side of a token in pixels."""

    @property
    def width(self) -> int:
        """C."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""


def stem_macs(spec: Stemmed) -> int:
    """From pixels to patch tokens."""
    if isinstance(spec.stem, ConvStem):
        return _conv_stem(spec.stem, spec)
    return spec.grid[0] * spec.grid[1] * 3 * spec.patch**2 * spec.width


def head_macs(head: LinearHead | FcnHead | SetrHead | MaskHead, patches: int, width: int, classes: int) -> int:
    """A head that is shown all `patches` tokens of `width`."""
    if isinstance(head, MaskHead):
        return _mask_head(head, patches, width, classes)
    if isinstance(head, SetrHead):
        return _setr_head(head, patches, width, classes)
    return patches * _token_head(head, width, classes)


def _token_head(head: LinearHead | FcnHead, width: int, classes: int) -> int:
    """Per token."""
    if isinstance(head, FcnHead):
        return head.channels * (width + classes)
    return width * classes


def _setr_head(head: SetrHead, patches: int, width: int, classes: int) -> int:
    total, positions, inputs = 0, patches, width
    for _ in range(head.convs):
        total += positions * head.kernel**2 * inputs * head.channels
        positions, inputs = positions * head.up_scale**2, head.channels
    return total + positions * inputs * classes


def _mask_head(head: MaskHead, patches: int, width: int, classes: int) -> int:
    embed = patches * width * head.width
    blocks = head.layers * block_macs(patches + classes, head.width, 4 * head.width)
    projections = (patches + classes) * head.width**2
    return embed + blocks + projections + patches * classes * head.width


def _conv_stem(stem: ConvStem, spec: Stemmed) -> int:
    height, width = (side * spec.patch for side in spec.grid)
    total, inputs = 0, 3
    for number, outputs in enumerate(stem.widths):
        height, width = height // 2, width // 2
        total += height * width * 9 * inputs * outputs
        if number:
            total += height * width * 9 * outputs * outputs
        inputs = outputs
    return total + spec.grid[0] * spec.grid[1] * 4 * inputs * spec.width
