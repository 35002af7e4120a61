"""The stages for a GPU: images packed into one row of tokens, sizes rounded up to a bucket, exact under padding.

B images of T = E + N tokens follow each other in `tokens` (B * T, C). A stage takes `index` (bucket,), positions there,
and `bounds` (B + 1,): image b runs on `index[bounds[b]:bounds[b + 1]]`; what follows `bounds[B]` is padding. All shapes
are known before the run, so that a stage can be captured into a CUDA graph once a bucket; only `bounds` differ from run
to run, and they stay on the device.

Padding is exact: attention never sees it, and where rows are written back it writes what stood there. For one image
this is what `dovit_deploy/graphs/padding.py` does to ONNX graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.families.tokens import aggregate_limit, partition
from dovit_deploy.families.vit.network import TokenGate, VisionTransformer, stops

PackedAttend = Callable[[Tensor, Tensor, Tensor, int, Tensor, int], Tensor]
"""Query, key, value (n, C), heads, bounds (B + 1,) int32, most tokens of an image -> (n, C); padding gets anything."""


@dataclass(frozen=True)
class Limits:
    """What a gate compares with: thresholds (K,) float32 and the floor () float32, on the device."""

    thresholds: Tensor
    floor: Tensor


@dataclass(frozen=True)
class PackedDecision:
    """What a gate decided for all images."""

    order: Tensor
    """(B * T,) int64: the tokens that run on, image by image in raster order, then the others."""
    counts: Tensor
    """(B,) int64: how many run on, extra tokens included."""
    confidence: Tensor
    """(B * T,) float32, NaN where the head was not evaluated."""
    label: Tensor
    """(B * T,) int64, -1 there."""


def masked_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """Each image's tokens attend to each other under a mask (n, n): right on every device, quadratic in all tokens."""
    del longest
    positions = torch.arange(query.shape[0], dtype=bounds.dtype, device=query.device)
    # 0 before the first bound, so images are numbered from 1; padding gets B + 1 and attends to itself.
    image = torch.bucketize(positions, bounds, right=True)
    same = image[:, None] == image[None, :]
    parts = (part.unflatten(1, (heads, -1)).transpose(0, 1)[None] for part in (query, key, value))
    mixed = functional.scaled_dot_product_attention(*parts, attn_mask=same)
    return mixed[0].transpose(0, 1).flatten(1)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """`masked_attention` by PyTorch's packed kernel (since 2.10; half precision, compute capability 8.0 or more)."""
    from torch.nn.attention.varlen import varlen_attn

    parts = (part.unflatten(1, (heads, -1)) for part in (query, key, value))
    mixed: Tensor = varlen_attn(*parts, bounds, bounds, longest, longest)  # type: ignore[assignment]
    return mixed.flatten(1)


def embedded(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, T, C)."""
    patches = model.patch_grid(pixels).flatten(2).transpose(1, 2)
    extra = model.extra_tokens.expand(len(pixels), -1, -1)
    return torch.cat([extra, patches], dim=1) + model.positions


def decoded(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """(B, T, C) -> logits (B, K, h, w) float32."""
    logits: Tensor = model.head(model.norm(tokens)[:, model.spec.extra_tokens :], model.spec.grid)
    return logits.float()


def dense(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """The whole network with nothing stopped: logits (B, K, h, w) float32; attention is the device's fused kernel."""
    tokens = embedded(model, pixels)
    for block in model.blocks:
        tokens = block(tokens)
    return decoded(model, tokens)


def first_stage(model: VisionTransformer, pixels: Tensor, limits: Limits) -> tuple[Tensor, PackedDecision]:
    """Pixels (B, 3, H, W) to the first gate: `tokens` (B * T, C) and its decision."""
    tokens = embedded(model, pixels)
    for block in model.blocks[slice(*model.spec.stage_layers[0])]:
        tokens = block(tokens)
    flat = tokens.flatten(0, 1)
    everything = torch.arange(len(flat), device=flat.device)
    runs = torch.ones_like(everything, dtype=torch.bool)
    return flat, decision(model, 0, flat, everything, runs, limits, images=len(pixels))


def advanced(
    model: VisionTransformer,
    number: int,
    tokens: Tensor,
    index: Tensor,
    bounds: Tensor,
    attend: PackedAttend,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layers of stage `number` on rows `index` of `tokens`.

    Returns:
        What is to be written to those rows (bucket, C), which is what stands there for padding; the rows as they left
        the layers; which of them are real (bucket,).
    """
    spec = model.spec
    before = tokens.index_select(0, index)
    runs = torch.arange(len(index), device=index.device) < bounds[-1]
    running = with_aggregates(model, tokens, before, index, runs, bounds)
    starts, longest = bounds.to(torch.int32), min(len(index), spec.tokens)

    def packed(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return attend(query, key, value, heads, starts, longest)

    for block in model.blocks[slice(*spec.stage_layers[number])]:
        running = block(running, packed)
    return torch.where(runs[:, None], running, before), running, runs


def with_aggregates(
    model: VisionTransformer, tokens: Tensor, before: Tensor, index: Tensor, runs: Tensor, bounds: Tensor
) -> Tensor:
    """`before` with each image's class token half replaced by the mean of its stopped tokens (families/tokens.py)."""
    spec = model.spec
    images = len(bounds) - 1
    stopped = torch.ones(len(tokens), dtype=torch.float32, device=tokens.device)
    stopped = stopped.index_copy(0, index, (~runs).float()).view(images, 1, spec.tokens)
    count = stopped.sum(2)
    # In float32: thousands of tokens are summed.
    mean = torch.bmm(stopped, tokens.float().view(images, spec.tokens, -1))[:, 0] / count.clamp(min=1)
    own = tokens.view(images, spec.tokens, -1)[:, 0]
    mixed = (0.5 * (mean + own.float())).to(own.dtype)
    chosen = torch.where(count > aggregate_limit(spec.aggregate_rate, spec.tokens), mixed, own)
    return before.index_copy(0, bounds[:-1], chosen)


def decision(
    model: VisionTransformer,
    number: int,
    running: Tensor,
    index: Tensor,
    runs: Tensor,
    limits: Limits,
    *,
    images: int,
) -> PackedDecision:
    """The decision of gate `number`, whose head sees one token at a time, over rows `running` at `index`."""
    gate, spec = model.gates[number], model.spec
    if not isinstance(gate, TokenGate):
        raise TypeError("packed stages have gates that look at one token at a time")
    probabilities = gate.head(running).float().softmax(1)
    confidence, label = probabilities.max(1)
    total = images * spec.tokens
    extra = index % spec.tokens < spec.extra_tokens
    stop = stops(confidence, limits.thresholds.index_select(0, label), limits.floor)
    # Extra tokens always run on, padding never does.
    keep = runs & (extra | ~stop)
    mask = torch.zeros(total, dtype=torch.int64, device=index.device).index_copy(0, index, keep.long())
    order, _ = partition(mask)
    seen = runs & ~extra
    unseen = torch.full((total,), float("nan"), device=index.device)
    nothing = torch.full((total,), -1, dtype=torch.int64, device=index.device)
    return PackedDecision(
        order,
        mask.view(-1, spec.tokens).sum(1),
        unseen.index_copy(0, index, torch.where(seen, confidence, float("nan"))),
        nothing.index_copy(0, index, torch.where(seen, label, -1)),
    )
