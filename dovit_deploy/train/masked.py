"""Token passing on a batch, for training: the same decisions and values as the stages, with masks for indices.

Every image stops its own tokens, so counts differ in a batch. A stopped token is frozen where the stages would not
gather it, and hidden as a key where the stages would not have it in the sequence; each image gets what it gets alone.
The decisions carry no gradient.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.heads import MaskTransformerHead, grid_from_tokens
from dovit_deploy.families.layers import Attend, PatchTransformer, attend_turned
from dovit_deploy.families.rotary import Rotations
from dovit_deploy.families.spec import Grid, ModelSpec
from dovit_deploy.families.tokens import aggregate_limit
from dovit_deploy.families.vit.network import TokenGate, VisionTransformer, stops
from dovit_deploy.train.skips import Skips, through


@dataclass(frozen=True)
class GateOutput:
    """What one gate makes of a batch."""

    logits: Tensor
    """(M, K) of the M running patches of all images; empty where its batch norm had too few to learn from."""
    running: Tensor
    """(B, N) bool, before it decides."""
    keep: Tensor
    """(B, N) bool, after."""


@dataclass(frozen=True)
class TrainingOutput:
    """What a network answers to a batch, and what the loss may look at."""

    logits: Tensor
    """(B, K, h', w') of the decode head."""
    features: Tensor
    """(B, N, C), the normed patches that the head saw."""
    gates: tuple[GateOutput, ...] = ()
    """One per gate."""
    chosen: tuple[Tensor, ...] = ()
    """One per selection: the patches (B, N) bool that ran, in raster order."""


@dataclass(frozen=True)
class Passing:
    """What stops tokens: `thresholds` (gates, K) and `floor` (), float32, as a session takes them."""

    thresholds: Tensor
    floor: Tensor


def uniform_passing(spec: ModelSpec, threshold: float) -> Passing:
    """The same threshold at every gate for every class, no floor."""
    return Passing(torch.full((len(spec.gates), spec.classes), threshold), torch.zeros(()))


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, hidden: Tensor | None) -> Tensor:
    """Attention of (B, n, C) written out; keys where `hidden` (B, n) is true are not seen.

    On a CPU, forward and backward of two products and a softmax are six times faster in bfloat16 than
    `scaled_dot_product_attention`; on a GPU that one is faster.
    """
    query, key, value = (tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2) for tokens in (query, key, value))
    if query.is_cuda:
        seen = None if hidden is None else ~hidden[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return mixed.transpose(1, 2).flatten(2)
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def attend_without(hidden: Tensor | None) -> Attend:
    """An attention for `Block.forward` that does not see the tokens where `hidden` (B, E + N) is true."""

    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return matmul_attention(query, key, value, heads, hidden)

    return attend


@dataclass(frozen=True)
class Embedded:
    """A batch of crops as tokens, before the first block."""

    tokens: Tensor
    """(B, E + N, C)."""
    grid: Grid
    """Of the crops."""
    rotations: Rotations | None
    """Of each token (B, E + N), where positions are rotary."""


def embed(model: PatchTransformer, pixels: Tensor, origin: Tensor | None = None) -> Embedded:
    """Tokens of `pixels` (B, 3, H, W).

    `origin` (B, 2) int64 is where each crop was cut out: row and column of its first token on the model's grid, whose
    positions it takes. So neighbours in a crop are as far apart as in the whole image, which is what will be deployed;
    coordinates of the crop's own would put them further apart.
    """
    # A crop is padded as an image is: its last tokens may hold padding.
    image = model.patch_grid(pixels)
    rows, columns = image.shape[-2:]
    patches = image.flatten(2).transpose(1, 2)
    extra, device = model.spec.extra_tokens, pixels.device
    corner = torch.zeros(len(pixels), 2, dtype=torch.int64, device=device) if origin is None else origin
    row = corner[:, :1, None] + torch.arange(rows, device=device)[None, :, None]
    column = corner[:, 1:, None] + torch.arange(columns, device=device)[None, None, :]
    position = (row * model.spec.grid[1] + column).flatten(1) + extra
    position = torch.cat([torch.arange(extra, device=device).expand(len(pixels), -1), position], 1)
    tokens = torch.cat([model.extra_tokens.expand(len(pixels), -1, -1), patches], 1) if extra else patches
    if model.rotary is not None:
        return Embedded(tokens, (rows, columns), model.rotary.tables.at(position))
    return Embedded(tokens + functional.embedding(position, model.positions), (rows, columns), None)


def aggregated(tokens: Tensor, running: Tensor, extra: int, rate: float) -> Tensor:
    """`tokens` (B, E + N, C), each class token half itself, half the stopped mean: `tokens.aggregate`, batched."""
    stopped = (~running).to(tokens.dtype)
    count = stopped.sum(1, keepdim=True)
    mean = (stopped[:, None] @ tokens[:, extra:])[:, 0] / count.clamp(min=1)
    limit = aggregate_limit(rate, tokens.shape[1])
    own = tokens[:, 0]
    # The distillation token, where there is one, takes nothing in.
    class_token = torch.where(count > limit, 0.5 * (mean + own), own)
    return torch.cat([class_token[:, None], tokens[:, 1:]], 1)


def with_extra(running: Tensor, extra: int) -> Tensor:
    """`running` (B, N) with the `extra` tokens, which always run, before it: (B, E + N)."""
    return torch.cat([running.new_ones(len(running), extra), running], 1)


def run_layers(
    model: PatchTransformer,
    layers: tuple[int, int],
    tokens: Tensor,
    *,
    running: Tensor | None = None,
    rotations: Rotations | None = None,
    skips: Skips | None = None,
) -> Tensor:
    """`tokens` (B, E + n, C) after the layers from the first to before the second of `layers`.

    With `running` (B, n), stopped tokens are neither changed nor seen; `rotations` are as `Embedded` has them; with
    `skips` images skip layers.
    """
    # Every token goes through the block, and what has stopped is put back after each: more work than the stages do, but
    # one shape for the whole batch.
    everywhere = None if running is None else with_extra(running, model.spec.extra_tokens)
    for number in range(*layers):

        def layer(part: Tensor, images: Tensor | None, block: nn.Module = model.blocks[number]) -> Tensor:
            hidden, turned = None if everywhere is None else ~everywhere, rotations
            if images is not None:
                hidden = None if hidden is None else hidden[images]
                turned = None if turned is None else Rotations(*(table[images] for table in turned))
            attend = attend_without(hidden)
            return block(part, attend if turned is None else attend_turned(turned, attend))  # type: ignore[no-any-return]

        after = through(layer, tokens, None if skips is None else skips.at(number, len(tokens)))
        tokens = after if everywhere is None else torch.where(everywhere[..., None], after, tokens)
    return tokens


def pieces(layers: tuple[int, int], taps: tuple[int, ...]) -> list[tuple[int, int]]:
    """The layers from the first to before the second of `layers`, cut where the decode head taps them."""
    first, last = layers
    return list(itertools.pairwise([first, *(tap for tap in taps if first < tap < last), last]))


def cannot_learn(gate: TokenGate, tokens: int) -> bool:
    """Too few `tokens` reach `gate` in a training step: nothing is learnt there and nothing stops."""
    # Batch norm has no statistics of fewer than two.
    return gate.training and tokens < 2


def run_gate(gate: TokenGate, patches: Tensor, running: Tensor, number: int, passing: Passing | None) -> GateOutput:
    """The gate's head on the running `patches` (B, N, C), and, with `passing`, what it decides."""
    chosen = patches[running]
    if cannot_learn(gate, len(chosen)):
        return GateOutput(chosen.new_zeros(0, 0), torch.zeros_like(running), running)
    logits = gate.head(chosen)
    if passing is None:
        return GateOutput(logits, running, running)
    # In float32: bfloat16 has two digits, too few for a confidence near its threshold.
    confidence, label = logits.detach().float().softmax(1).max(1)
    stop = stops(confidence, passing.thresholds.to(label.device)[number][label], passing.floor.to(label.device))
    keep = running.clone()
    keep[running] = ~stop
    return GateOutput(logits, running, keep)


@dataclass
class StoppedAnswers:
    """What the decode head is to see of tokens that stop, by its readers: the last layer (None), and taps.

    Where gates answer it is the logits of each patch, (B, N, K), else (B, E + N, C).
    """

    model: VisionTransformer
    held: dict[int | None, Tensor] = field(default_factory=dict)

    def note(self, number: int, tokens: Tensor, output: GateOutput) -> None:
        """Write anew what is held of the tokens that ran to gate `number`: `tokens` (B, E + N, C)."""
        if self.model.spec.answer == "gate":
            # None are there where the gate had too few to learn from; then nothing stops.
            if len(output.logits):
                shape = (*output.running.shape, self.model.spec.classes)
                found = output.logits.new_zeros(shape).index_put((output.running,), output.logits)
                self._write(None, found, output.running)
            return
        ran = with_extra(output.running, self.model.spec.extra_tokens)
        if self.model.lenses:
            self._write(None, self.model.lenses[number](tokens), ran)
        for tap, lens in self.model.lenses_of_taps(number).items():
            self._write(tap, lens(tokens), ran)

    def _write(self, reader: int | None, found: Tensor, ran: Tensor) -> None:
        before = self.held.get(reader)
        self.held[reader] = found if before is None else torch.where(ran[..., None], found, before)

    def seen(self, reader: int | None, tokens: Tensor, running: Tensor) -> Tensor:
        """What `reader` sees: `tokens` (B, E + N, C) where they are `running` (B, N), else what is held."""
        if reader not in self.held or self.model.spec.answer == "gate":
            return tokens
        # What has run to the end is its own answer.
        return torch.where(with_extra(running, self.model.spec.extra_tokens)[..., None], tokens, self.held[reader])

    def over(self, logits: Tensor, running: Tensor) -> Tensor:
        """The head's `logits` (B, K, h, w), where gates answer theirs for what is not `running` (B, N)."""
        if self.model.spec.answer != "gate" or None not in self.held:
            return logits
        rows, columns = logits.shape[-2:]
        runs = running.reshape(-1, 1, rows, columns)
        return torch.where(runs, logits, grid_from_tokens(self.held[None], (rows, columns)))


def decode(head: nn.Module, patches: Tensor, grid: Grid) -> Tensor:
    """Logits (B, K, h', w') of all `patches` (B, N, C), normed, at their last value."""
    if isinstance(head, MaskTransformerHead):
        return head(patches, grid, attend_without(None))  # type: ignore[no-any-return]
    return head(patches, grid)  # type: ignore[no-any-return]


def masked_forward(
    model: VisionTransformer,
    pixels: Tensor,
    *,
    passing: Passing | None = None,
    origin: Tensor | None = None,
    detach_gates: bool = False,
    detach_stopped: bool = False,
    skips: Skips | None = None,
) -> TrainingOutput:
    """The whole network on `pixels` (B, 3, H, W); without `passing` nothing stops, but the gates' heads still run.

    `detach_gates` keeps the gates' gradient from the layers below them, `detach_stopped` that of stopped tokens;
    `skips` lets images skip layers.
    """
    extra = model.spec.extra_tokens
    embedded = embed(model, pixels, origin)
    tokens = embedded.tokens
    running = torch.ones(len(pixels), tokens.shape[1] - extra, dtype=torch.bool, device=pixels.device)
    outputs: list[GateOutput] = []
    answers, tapped = StoppedAnswers(model), list[Tensor]()
    for number, layers in enumerate(model.spec.stage_layers):
        if number > 0 and passing is not None:
            tokens = aggregated(tokens, running, extra, model.spec.aggregate_rate)
        # In the first stage nothing has stopped; without masks attention is faster.
        ran = None if passing is None or number == 0 else running
        for piece in pieces(layers, model.spec.taps):
            tokens = run_layers(model, piece, tokens, running=ran, rotations=embedded.rotations, skips=skips)
            if piece[1] in model.spec.taps:
                tapped.append(answers.seen(piece[1], tokens, running))
        if number < len(model.gates):
            seen = tokens[:, extra:].detach() if detach_gates else tokens[:, extra:]
            output = run_gate(cast("TokenGate", model.gates[number]), seen, running, number, passing)
            outputs.append(output)
            running = output.keep
            # A stopped token's value is read by later layers, which then do not pull it towards them.
            if detach_stopped:
                tokens = torch.where(with_extra(running, extra)[..., None], tokens, tokens.detach())
            if passing is not None:
                answers.note(number, tokens, output)
    features = model.features(answers.seen(None, tokens, running), tapped)[:, extra:]
    logits = answers.over(decode(model.head, features, embedded.grid), running)
    return TrainingOutput(logits, features, tuple(outputs))
