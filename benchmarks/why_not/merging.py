"""Token merging (ToMe) over the weights of one of our networks: what a dense-trained model gains without gates.

Written from Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461, section 3. In every layer,
between attention and MLP, the patches are split into two sets by turns; each of the first set looks for the most
similar one of the second, by the cosine of their keys averaged over the heads; the `count` most similar pairs become
one token each, the mean weighted by how many patches a token stands for (its size). Later layers attend in proportion
to size: its logarithm is added to the logits of a key. Before the decode head every patch gets the token it went into,
which dense prediction needs. Extra tokens (class, distillation) are never merged.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle, file_entry
from dovit_deploy.bundle.interface import FP32, graph_interfaces
from dovit_deploy.engines.base import as_float32
from dovit_deploy.engines.registry import backend_from_name
from dovit_deploy.errors import UsageError
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.layers import Attention, Block, attention
from dovit_deploy.families.registry import model_from_spec, state_from_bundle
from dovit_deploy.families.tokens import partition, take
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.graphs.forms import FAST, PORTABLE
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.weights import SharedWeights
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.settings import RunSettings


class Merged(NamedTuple):
    """What a merging step leaves of n tokens."""

    tokens: Tensor
    """(n - count, C): extra tokens, what stayed of the first set, the second set."""
    sizes: Tensor
    """(n - count, 1) float32: patches that each token stands for."""
    row: Tensor
    """(n - extra,) int64: for each patch token that went in, the row of `tokens` it is now part of."""


def merge(tokens: Tensor, sizes: Tensor, similar: Tensor, *, extra: int, count: int) -> Merged:
    """Merge the `count` most similar pairs of patch tokens.

    Args:
        tokens: (n, C), the first `extra` of them extra tokens.
        sizes: (n, 1) float32.
        similar: (n, d), what is compared by its direction.
        extra: tokens that are never merged.
        count: pairs, from 1 to half of the patch tokens.
    """
    patches = tokens.shape[0] - extra
    first, second = torch.arange(extra, tokens.shape[0], 2), torch.arange(extra + 1, tokens.shape[0], 2)
    direction = functional.normalize(similar, dim=-1)
    similarity = take(direction, first) @ take(direction, second).T
    nearness, nearest = (values[:, 0] for values in torch.topk(similarity, 1, dim=1))
    leaving = torch.topk(nearness, count)[1]
    # What stays keeps the order of the image, which the next layer's division by turns relies on.
    order, _ = partition(torch.ones(first.shape[0], dtype=torch.int64).index_fill(0, leaving, 0))
    remain = first.shape[0] - count
    stay, leave = take(first, order[:remain]), take(first, order[remain:])
    target = take(nearest, order[remain:])
    # Values weighted by size, and the sizes, in one product: their quotient is the weighted mean.
    mass = torch.cat([tokens * sizes, sizes], dim=1)
    merged = take(mass, second).index_add(0, target, take(mass, leave))
    total = merged[:, -1:]
    head = torch.arange(extra)
    rows = torch.cat([torch.arange(remain), remain + target, torch.arange(remain, remain + second.shape[0])])
    came_from = torch.cat([take(first, order), second]) - extra
    return Merged(
        torch.cat([take(tokens, head), take(tokens, stay), merged[:, :-1] / total]),
        torch.cat([take(sizes, head), take(sizes, stay), total]),
        torch.zeros(patches, dtype=torch.int64).index_copy(0, came_from, extra + rows),
    )


def summed_over_heads(keys: Tensor, heads: int) -> Tensor:
    """(n, C) keys of all heads -> (n, C / heads), of the direction of their mean, which is all that is compared."""
    # Not `reshape(...).mean(1)`: ONNX Runtime takes as long for that as for the product of all pairs.
    first, *others = keys.chunk(heads, dim=1)
    for other in others:
        first = first + other
    return first


def proportional_attention(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor, heads: int) -> Tensor:
    """Attention in which a key counts as often as it stands for patches: log(size) is added to its logits.

    The logarithm travels as one more channel of every head's keys, beside a constant one of the queries, so that the
    runtime's fused kernel serves, which takes no bias: q.k / sqrt(d) + log s = (a q, b).(k, log s) / sqrt(d + 1) for
    a = sqrt((d + 1) / d) and b = sqrt(d + 1).

    Args:
        query, key, value: (n, C).
        sizes: (n, 1).
    """
    count, channels = query.shape[0], query.shape[1] // heads
    by_head = (count, heads, channels)
    constant = torch.full((count, heads, 1), (channels + 1) ** 0.5)
    scaled = query.reshape(by_head) * ((channels + 1) / channels) ** 0.5
    logarithm = sizes.log().reshape(count, 1, 1).expand(count, heads, 1)
    return attention(
        torch.cat([scaled, constant], dim=2).flatten(1),
        torch.cat([key.reshape(by_head), logarithm], dim=2).flatten(1),
        value,
        heads,
    )


class MergingNetwork(nn.Module):
    """`DenseNetwork` with `count` tokens merged in every layer: `pixels` (1, 3, H, W) -> `logits` (1, K, h, w)."""

    def __init__(self, model: VisionTransformer, count: int) -> None:
        super().__init__()
        self.model = model
        self.counts = merges(model.spec, count)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.decode(self.advance(self.model.embed(pixels)))

    def advance(self, tokens: Tensor) -> Tensor:
        """All layers on `tokens` (E + N, C); every patch comes back with the token it was merged into."""
        extra = self.model.spec.extra_tokens
        sizes = torch.ones(tokens.shape[0], 1)
        row = torch.arange(extra, tokens.shape[0])
        for number, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            # Until something has merged all sizes are 1, whose logarithm is 0: no bias is needed.
            alike = not any(self.counts[:number])
            tokens, keys = _attended(block, tokens, None if alike else sizes)
            if self.counts[number]:
                step = merge(tokens, sizes, keys, extra=extra, count=self.counts[number])
                tokens, sizes, row = step.tokens, step.sizes, take(step.row, row - extra)
            tokens = tokens + block.mlp(block.norm2(tokens))
        return take(tokens, torch.cat([torch.arange(extra), row]))


def _attended(block: Block, tokens: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first half of a block, and its keys summed over the heads; sizes that are all 1 need no bias."""
    layer: Attention = block.attention
    normed = block.norm1(tokens)
    query, key, value = layer.query(normed), layer.key(normed), layer.value(normed)
    if sizes is None:
        mixed = attention(query, key, value, layer.heads)
    else:
        mixed = proportional_attention(query, key, value, sizes, layer.heads)
    return tokens + layer.output(mixed), summed_over_heads(key, layer.heads)


def merges(spec: VisionTransformerSpec, count: int) -> tuple[int, ...]:
    """Tokens merged in each layer: `count`, or half of the patch tokens where fewer than twice `count` are left."""
    counts, patches = [], spec.patches
    for _ in range(spec.depth):
        counts.append(min(count, patches // 2))
        patches -= counts[-1]
    return tuple(counts)


def merging_macs(spec: VisionTransformerSpec, count: int) -> int:
    """Multiply-adds of one image as `CostModel` counts them, and the products that find similar pairs.

    A layer's projections and attention run on the tokens that enter it, its MLP on those that are left. The extra
    channel of `proportional_attention` is an addition to the logits and counts nothing.
    """
    width, dense = spec.width, cost_model(spec).dense()
    total, tokens = dense.stem + dense.head, spec.tokens
    for merged in merges(spec, count):
        total += 4 * tokens * width * width + 2 * tokens * tokens * width
        if merged:
            patches = tokens - spec.extra_tokens
            total += (patches - patches // 2) * (patches // 2) * (width // spec.heads)
        # Merging lies between attention and MLP, so the MLP runs on what is left.
        tokens -= merged
        total += 2 * tokens * width * spec.hidden
    return total


def merged_spec(bundle: Bundle) -> VisionTransformerSpec:
    """The spec, if merging is written for it: positions added, GELU, a head that reads the last layer alone."""
    spec = bundle.manifest.spec
    if not isinstance(spec, VisionTransformerSpec) or spec.mlp != "gelu" or spec.rotary or spec.taps:
        raise UsageError(f"{bundle.path.name}: merging is written for plain vision transformers alone")
    return spec


class MergingSession:
    """The weights of a bundle, run dense with `count` tokens merged in every layer, behind a `Predictor`.

    The project's own engine runs it, with the same options and, in ONNX Runtime, the same fused attention kernel, so
    that images are prepared and read as for every other model. Always in fp32: nothing takes the ranges of its graph.

    Args:
        bundle: its gates, if it has any, are not used.
        count: tokens merged per layer.
        folder: an existing folder that outlives the session; one graph is written into it, in both forms.
        engine: as `--engine` calls it.

    Raises:
        UsageError: a network that merging is not written for.
    """

    def __init__(self, bundle: Bundle, count: int, *, folder: Path, engine: str = "onnxruntime") -> None:
        self.bundle, self.count = bundle, count
        spec = merged_spec(bundle)
        if engine == "torch":
            # It rebuilds the network from the weights, and would run it with nothing merged.
            raise UsageError("merging runs in an engine that reads graphs: onnxruntime or openvino")
        state = state_from_bundle(bundle)
        self.module = MergingNetwork(model_from_spec(spec, state), count)
        graph = onnx_from_module(self.module.eval(), graph_interfaces(spec)["dense"])
        graphs = folder / f"{bundle.path.stem}-{count}"
        graphs.mkdir()
        weights = SharedWeights.write(graphs / WEIGHTS, {name: tensor.numpy() for name, tensor in state.items()})
        ir.save(applied(graph, (*PORTABLE, weights)).model, graphs / "dense.onnx")
        ir.save(applied(graph, (*FAST, weights)).model, graphs / "dense.ort.onnx")
        files = {path.name: file_entry(path) for path in sorted(graphs.iterdir())}
        manifest = bundle.manifest.model_copy(update={"files": files})
        self.backend = backend_from_name(engine, precision=FP32, threads=1)
        self.engine = self.backend.load(Bundle(graphs, manifest), "dense")
        self.gmacs = merging_macs(spec, count) / 1e9
        self.gmacs_dense = cost_model(spec).dense().total / 1e9

    def run_one(self, pixels: NDArray[np.float32], settings: RunSettings) -> tuple[NDArray[np.float32], TokenReport]:
        """Logits (1, K, h, w) of one window (1, 3, H, W) and its report; there are no gates to steer."""
        del settings
        start = perf_counter()
        found = self.engine.run({"pixels": self.backend.upload(pixels)})["logits"]
        logits = as_float32(np.asarray(self.backend.download(found)))
        timing = RunTiming(1e3 * (perf_counter() - start), ())
        tokens = (self.bundle.manifest.spec.tokens,)
        return logits, TokenReport(tokens, self.gmacs_dense, self.gmacs, (), (), timing)
