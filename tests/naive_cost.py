"""Multiply-adds counted one by one: every weight of every layer is met once per token, every key once per query.

The reference for the closed form; nothing is shared with it. Norms, softmax, biases, resizing and gathering count
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.families.parts import ConvStem, FcnHead, Head, LightHead, MaskHead, QueryHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec


@dataclass(frozen=True)
class NaiveCost:
    """Multiply-adds by part."""

    stem: int
    layers: int
    gates: int
    head: int


def naive_cost(spec: VisionTransformerSpec, kept: Sequence[int], *, gates: bool = True) -> NaiveCost:
    """`kept[i]` tokens, extra tokens included, enter the blocks of stage i; `gates`: auxiliary heads run."""
    layers = 0
    stage = 0
    joined = spec.head.joined if isinstance(spec.head, QueryHead) else 0
    for layer in range(spec.depth - joined):
        if any(gate.layer == layer for gate in spec.gates):
            stage += 1
        layers += _block(kept[stage], spec.width, spec.hidden, spec.heads, gated=spec.mlp == "swiglu")
        if gates and stage and spec.context == "pooled":
            # For each class a map, a key and a value; every query asks for its key and takes of its value.
            layers += 3 * _linear(spec.classes, spec.width, spec.width)
            layers += 2 * sum(spec.width for _ in range(kept[stage]) for _ in range(spec.classes))
    if isinstance(spec.head, QueryHead):
        # Whatever has stopped, all tokens run here, and the queries.
        everything = spec.tokens + spec.head.queries
        layers += joined * _block(everything, spec.width, spec.hidden, spec.heads, gated=spec.mlp == "swiglu")
    looked = 0
    for number, gate in enumerate(spec.gates if gates else ()):
        # A head that up-samples mixes neighbours, so it is shown the stopped tokens too.
        up_sampling = isinstance(gate.head, SetrHead)
        patches = spec.patches if up_sampling else kept[number] - spec.extra_tokens
        looked += _head(gate.head, spec, patches, spec.width)
        # An affine map of every token that is there, whether it stops or not.
        looked += _linear(kept[number], spec.width, spec.width) if spec.answer == "lens" else 0
        lensed = [tap for tap in spec.taps if spec.tap_answer == "lens" and tap > gate.layer]
        looked += sum(_linear(kept[number], spec.width, spec.width) for _ in lensed)
        if spec.context == "pooled":
            # Every patch is asked for every class whether it counts there, and the sums go through a lens.
            looked += sum(spec.width for _ in range(spec.patches) for _ in range(spec.classes))
            looked += _linear(spec.classes, spec.width, spec.width)
    # Gates that answer spare the head what has stopped.
    answered = kept[-1] - spec.extra_tokens if gates and spec.gates and spec.answer == "gate" else spec.patches
    return NaiveCost(
        stem=_stem(spec),
        layers=layers,
        gates=looked,
        head=_head(spec.head, spec, answered, spec.width * (len(spec.taps) + 1)),
    )


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return sum(inputs for _ in range(tokens) for _ in range(outputs))


def _block(tokens: int, width: int, hidden: int, heads: int, *, gated: bool = False) -> int:
    query_key_value_and_output = 4 * _linear(tokens, width, width)
    scores = sum(width // heads for _ in range(heads) for _ in range(tokens) for _ in range(tokens))
    weighted_values = scores
    mlp = _linear(tokens, width, hidden) + _linear(tokens, hidden, width)
    if gated:
        mlp += _linear(tokens, width, hidden)
    return query_key_value_and_output + scores + weighted_values + mlp


def _convolution(
    rows: int, columns: int, inputs: int, outputs: int, *, kernel: int, stride: int = 1
) -> tuple[int, int, int]:
    """Multiply-adds, and the rows and columns of the result; padding keeps a stride of 1 at the same size."""
    padding = (kernel - 1) // 2 if kernel % 2 else 0
    rows = (rows + 2 * padding - kernel) // stride + 1
    columns = (columns + 2 * padding - kernel) // stride + 1
    each = inputs * kernel * kernel
    return sum(each * outputs for _ in range(rows * columns)), rows, columns


def _stem(spec: VisionTransformerSpec) -> int:
    rows, columns = (math.ceil(side / spec.patch) * spec.patch for side in spec.size)
    if not isinstance(spec.stem, ConvStem):
        return _convolution(rows, columns, 3, spec.width, kernel=spec.patch, stride=spec.patch)[0]
    total, inputs = 0, 3
    for number, width in enumerate(spec.stem.widths):
        macs, rows, columns = _convolution(rows, columns, inputs, width, kernel=3, stride=2)
        total += macs
        if number > 0:
            total += _convolution(rows, columns, width, width, kernel=3)[0]
        inputs = width
    return total + _convolution(rows, columns, inputs, spec.width, kernel=2, stride=2)[0]


def _head(head: Head, spec: VisionTransformerSpec, patches: int, width: int) -> int:
    """A head that is shown `patches` tokens of `width`."""
    if isinstance(head, MaskHead):
        sequence = patches + spec.classes
        blocks = sum(_block(sequence, head.width, 4 * head.width, head.heads) for _ in range(head.layers))
        projections = _linear(patches, head.width, head.width) + _linear(spec.classes, head.width, head.width)
        products = _linear(patches, head.width, spec.classes)
        return _linear(patches, width, head.width) + blocks + projections + products
    if isinstance(head, SetrHead):
        total, inputs = 0, width
        rows, columns = spec.grid
        for _ in range(head.convs):
            macs, rows, columns = _convolution(rows, columns, inputs, head.channels, kernel=head.kernel)
            total, inputs = total + macs, head.channels
            rows, columns = rows * head.up_scale, columns * head.up_scale
        return total + _convolution(rows, columns, inputs, spec.classes, kernel=1)[0]
    if isinstance(head, QueryHead):
        total, positions = 0, patches
        for _ in range(head.doublings):
            # Four new positions of each, then nine neighbours in every channel.
            total += _linear(positions, width, 4 * width)
            positions *= 4
            total += sum(9 for _ in range(positions) for _ in range(width))
        total += 3 * _linear(head.queries, width, width) + _linear(head.queries, width, spec.classes + 1)
        return total + _linear(positions, width, head.queries) + _linear(positions, head.queries, spec.classes)
    if isinstance(head, LightHead):
        rows, columns = (2 * side for side in spec.grid)
        mixed, _, _ = _convolution(rows, columns, head.channels, head.channels, kernel=3)
        classified, _, _ = _convolution(rows, columns, head.channels, spec.classes, kernel=1)
        return _linear(patches, width, 4 * head.channels) + mixed + classified
    if isinstance(head, FcnHead):
        return _linear(patches, width, head.channels) + _linear(patches, head.channels, spec.classes)
    return _linear(patches, width, spec.classes)
