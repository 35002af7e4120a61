"""Token passing by quota, for training: in every image of a batch as many tokens stop, and those are taken out of it.

Which tokens stop differs from image to image (the most confident), how many does not. So the layers behind a gate
compute what runs and nothing else, as at inference, where masks (`masked`) compute everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from dovit_deploy.families.heads import grid_from_tokens
from dovit_deploy.families.rotary import Rotations
from dovit_deploy.families.tokens import aggregate_limit
from dovit_deploy.families.vit.network import TokenGate, VisionTransformer
from dovit_deploy.train.masked import GateOutput, TrainingOutput, cannot_learn, decode, embed, pieces, run_layers
from dovit_deploy.train.skips import Skips


@dataclass(frozen=True)
class Quotas:
    """`shares`, one a gate: of the patches that reach it, this share stops there, the most confident first."""

    shares: tuple[float, ...]


def take_each(tokens: Tensor, positions: Tensor) -> Tensor:
    """Rows `positions` (B, k) int64 of `tokens` (B, n, ...), of each image its own -> (B, k, ...)."""
    # Rows of one long table: gathering element by element is several times slower, backward above all.
    offset = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    rows = (positions + offset).flatten()
    return tokens.flatten(0, 1).index_select(0, rows).reshape(*positions.shape, *tokens.shape[2:])


@dataclass
class Stopped:
    """The patches of a batch that have stopped: where they lie, and what they held."""

    positions: list[Tensor] = field(default_factory=list)
    """(B, k) int64 of each gate."""
    values: list[Tensor] = field(default_factory=list)
    """(B, k, C) of each gate."""
    answers: list[Tensor] = field(default_factory=list)
    """(B, k, C): what the decode head sees of them; where gates answer (B, k, K), their logits."""
    at_taps: dict[int, list[Tensor]] = field(default_factory=dict)
    """(B, k, C) of each gate: what the head sees of them at a tap, where that is a lens."""

    @property
    def count(self) -> int:
        """Of each image."""
        return sum(part.shape[1] for part in self.positions)

    def class_token(self, own: Tensor, limit: int) -> Tensor:
        """The class tokens (B, C), half what they were and half the mean of what has stopped: `tokens.aggregate`."""
        if self.count <= limit:
            return own
        total = sum((part.sum(1) for part in self.values), torch.zeros_like(own))
        return 0.5 * (total / self.count + own)

    def with_running(self, held: list[Tensor], running: Tensor, patches: Tensor) -> Tensor:
        """What is `held` of every patch in raster order (B, N, C), its values or its answers, with `patches` (B, n, C)
        at `running` (B, n)."""
        everywhere = torch.cat([*self.positions, running], 1)
        return take_each(torch.cat([*held, patches], 1), everywhere.argsort(1))


def most_confident(logits: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Which of n patches stop and which run on, by the class `logits` (B, n, K): (B, k) and (B, n - k), the latter in
    raster order; k is `share` of n, rounded."""
    # In float32, as the gates of the deployed network compare.
    confidence = logits.detach().float().softmax(-1).amax(-1)
    order = confidence.argsort(dim=1, descending=True, stable=True)
    stopping = round(share * logits.shape[1])
    return order[:, :stopping], order[:, stopping:].sort(1).values


def gathered_forward(
    model: VisionTransformer,
    pixels: Tensor,
    *,
    quotas: Quotas,
    origin: Tensor | None = None,
    detach_gates: bool = False,
    detach_stopped: bool = False,
    skips: Skips | None = None,
) -> TrainingOutput:
    """The whole network on `pixels` (B, 3, H, W); all but `quotas` as `masked_forward` takes it."""
    extra = model.spec.extra_tokens
    embedded = embed(model, pixels, origin)
    tokens, rotations = embedded.tokens, embedded.rotations
    limit = aggregate_limit(model.spec.aggregate_rate, tokens.shape[1])
    total = tokens.shape[1] - extra
    running = torch.arange(total, device=pixels.device).expand(len(pixels), -1)
    stopped, outputs, tapped = Stopped(), list[GateOutput](), list[Tensor]()
    for number, layers in enumerate(model.spec.stage_layers):
        if stopped.positions:
            class_token = stopped.class_token(tokens[:, 0], limit)
            tokens = torch.cat([class_token[:, None], tokens[:, 1:]], 1)
        for piece in pieces(layers, model.spec.taps):
            tokens = run_layers(model, piece, tokens, rotations=rotations, skips=skips)
            if piece[1] in model.spec.taps:
                held = stopped.at_taps.get(piece[1], stopped.values)
                tapped.append(stopped.with_running(held, running, tokens[:, extra:]))
        if number == len(model.gates):
            break
        patches = tokens[:, extra:]
        gate = cast("TokenGate", model.gates[number])
        seen = (patches.detach() if detach_gates else patches).flatten(0, 1)
        if cannot_learn(gate, len(seen)):
            nothing = mask_of(running[:, :0], total)
            outputs.append(GateOutput(seen.new_zeros(0, 0), nothing, mask_of(running, total)))
            continue
        logits = gate.head(seen)
        of_each = logits.reshape(*running.shape, logits.shape[-1])
        stop, keep = most_confident(of_each, quotas.shares[number])
        reached, running = running, running.gather(1, keep)
        outputs.append(GateOutput(logits, mask_of(reached, total), mask_of(running, total)))
        leaving = take_each(patches, stop)
        if detach_stopped:
            leaving = leaving.detach()
        stopped.positions.append(reached.gather(1, stop))
        stopped.values.append(leaving)
        if model.spec.answer == "gate":
            stopped.answers.append(take_each(of_each, stop))
        else:
            stopped.answers.append(model.lenses[number](leaving) if model.lenses else leaving)
        for tap, lens in model.lenses_of_taps(number).items():
            stopped.at_taps.setdefault(tap, []).append(lens(leaving))
        tokens = torch.cat([tokens[:, :extra], take_each(patches, keep)], 1)
        if rotations is not None:
            on = ((table[:, :extra], take_each(table[:, extra:], keep)) for table in rotations)
            rotations = Rotations(*(torch.cat(parts, 1) for parts in on))
    gates_answer = model.spec.answer == "gate"
    held = stopped.values if gates_answer else stopped.answers
    features = model.features(stopped.with_running(held, running, tokens[:, extra:]), tapped)
    logits = decode(model.head, features, embedded.grid)
    if gates_answer:
        own = take_each(logits.flatten(2).transpose(1, 2), running)
        logits = grid_from_tokens(stopped.with_running(stopped.answers, running, own), embedded.grid)
    return TrainingOutput(logits, features, tuple(outputs))


def mask_of(positions: Tensor, total: int) -> Tensor:
    """(B, total) bool, true at `positions` (B, k)."""
    return torch.zeros(len(positions), total, dtype=torch.bool, device=positions.device).scatter(1, positions, True)
