"""A gate: an auxiliary head's confidence decides which running tokens stop before the next layer.

A token stops when its confidence, the probability of its most likely class, is strictly above the threshold of that
class, or strictly below the floor (`diff_conf` of the released code). A stopped token never runs again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.bundle.spec import GateSpec, SetrHead, VisionTransformerSpec
from dovit_deploy.models.heads import SetrUpHead, token_head_from_spec
from dovit_deploy.models.tokens import partition, scatter_from, take


class Decision(NamedTuple):
    """What leaves a gate; the order of fields is the order of a stage's outputs."""

    order: Tensor
    """(E + N,) int64: extra tokens, then running tokens in raster order, then the rest."""
    kept: Tensor
    """() int64: extra and running tokens."""
    confidence: Tensor
    """(N,) float32, NaN where the head was not evaluated."""
    label: Tensor
    """(N,) int64, the most likely class, -1 where the head was not evaluated."""


def stops(confidence: Tensor, threshold: Tensor, floor: Tensor) -> Tensor:
    """Boolean: the token is certain enough, or hopeless."""
    return (confidence > threshold) | (confidence < floor)


class TokenGate(nn.Module):
    """A gate whose head looks at one token at a time: it is evaluated on running tokens only, which is exact."""

    def __init__(self, gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> None:
        super().__init__()
        self.extra, self.total = spec.extra_tokens, spec.tokens
        if isinstance(gate.head, SetrHead):
            raise TypeError("an up-sampling head needs a GridGate")
        self.head = token_head_from_spec(gate.head, spec.width, spec.classes, trainable=trainable)

    def forward(self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        running = index[self.extra :]
        probabilities = self.head(take(tokens, running)).softmax(1)
        # TopK rather than ReduceMax: ONNX Runtime gives the maximum over an empty set of tokens a wrong shape.
        confidence, label = (values[:, 0] for values in torch.topk(probabilities, 1, dim=1))
        stop = stops(confidence, thresholds.index_select(0, label), floor)
        order, count = partition(kept_mask(index, stop, self.extra, self.total))
        everywhere = self.total - self.extra
        return Decision(
            order,
            count,
            scatter_from(running - self.extra, confidence, everywhere, float("nan")),
            scatter_from(running - self.extra, label, everywhere, -1),
        )


class GridGate(nn.Module):
    """A gate whose head up-samples and so mixes neighbours: it is evaluated on the full grid.

    The confidence is pooled from the *maximum* probability of each fine position, not from the logits.
    """

    def __init__(self, gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> None:
        super().__init__()
        if not isinstance(gate.head, SetrHead):
            raise TypeError("a per-token head needs a TokenGate")
        self.extra, self.total, self.scale = spec.extra_tokens, spec.tokens, gate.head.scale
        self.head = SetrUpHead(gate.head, spec.width, spec.classes, spec.grid, trainable=trainable)

    def forward(self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        probabilities = self.head(tokens[self.extra :]).softmax(1)
        finest = torch.topk(probabilities, 1, dim=1)[0]
        confidence = functional.avg_pool2d(finest, self.scale, self.scale).reshape(-1)
        pooled = functional.avg_pool2d(probabilities, self.scale, self.scale)
        label = torch.topk(pooled, 1, dim=1)[1].reshape(-1)
        # One threshold for all classes: the engine refuses others for this kind of gate.
        stop = stops(confidence, thresholds[:1], floor).index_select(0, index[self.extra :] - self.extra)
        order, count = partition(kept_mask(index, stop, self.extra, self.total))
        return Decision(order, count, confidence, label)


def kept_mask(index: Tensor, stop: Tensor, extra: int, total: int) -> Tensor:
    """(total,) int64: 1 for extra tokens and for running tokens that do not stop.

    Args:
        index: (E + n,) int64, what ran.
        stop: (n,) bool, for the running patches in the order of `index`.
    """
    keep = torch.cat([torch.ones(extra, dtype=torch.int64), (~stop).to(torch.int64)])
    return torch.zeros(total, dtype=torch.int64).index_copy(0, index, keep)


def gate_from_spec(gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> nn.Module:
    """The gate that `gate` describes."""
    kind = GridGate if isinstance(gate.head, SetrHead) else TokenGate
    return kind(gate, spec, trainable=trainable)
