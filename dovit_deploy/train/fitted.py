"""Gates and lenses of a trained network before the first step: fitted to what its layers give as they are.

A gate that starts from random numbers stops tokens at random, and a random lens shows the decode head noise; a fit of
some seconds spares the run hundreds of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.families.vit.network import Lens, TokenGate, VisionTransformer
from dovit_deploy.train.batches import Batch
from dovit_deploy.train.config import FIT_STREAM, TrainConfig
from dovit_deploy.train.masked import embed, pieces, run_layers
from dovit_deploy.train.objective import histogram_loss
from dovit_deploy.train.target import token_histograms

TOKENS = 49_152
"""Kept of all batches together, spread evenly over them."""
STEPS, AT_ONCE, RATE = 200, 4_096, 3e-3
"""Of the softmax regression of one gate: steps, tokens in each, and the learning rate that falls to zero."""
LENS_AT_ONCE = 16_384
"""Tokens that a lens is fitted to at a time."""
RIDGE = 1e-2
"""On the diagonal of a lens's covariance, whose entries there are about 1."""


@dataclass(frozen=True)
class Seen:
    """Tokens of some batches, as the layers give them."""

    reached: tuple[Tensor, ...]
    """(M, C) at each gate."""
    last: Tensor
    """(M, C) behind the last layer, before the last norm."""
    histograms: Tensor
    """(M, K), share of each class among a token's pixels."""
    tapped: dict[int, Tensor]
    """(M, C) at each tap of the decode head."""


def fit_gates(model: VisionTransformer, batches: Iterable[Batch], config: TrainConfig, weights: Tensor) -> None:
    """Fit every gate to the classes of the tokens in `batches`, every lens to what the last layer makes of them.

    Nothing else of `model` changes; what is fitted depends on its weights, the batches and the seed alone.

    Args:
        weights: (K,) of the classes.
    """
    draw = np.random.default_rng((config.seed, FIT_STREAM))
    seen = _seen(model, batches, config, draw)
    # Nothing follows from one token, of which a batch norm has no statistics.
    if len(seen.last) < 2:
        return
    for number, reached in enumerate(seen.reached):
        gate = cast("TokenGate", model.gates[number])
        fit_head(gate.head, reached, seen.histograms, weights, draw)
        if model.lenses:
            fit_lens(cast("Lens", model.lenses[number]), reached, seen.last)
        for tap, lens in model.lenses_of_taps(number).items():
            fit_lens(cast("Lens", lens), reached, seen.tapped[tap])


@torch.no_grad()
def _seen(model: VisionTransformer, batches: Iterable[Batch], config: TrainConfig, draw: np.random.Generator) -> Seen:
    spec, device = model.spec, next(model.parameters()).device
    most = max(1, TOKENS // config.fitted)
    parts: list[list[Tensor]] = []
    model.eval()
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            embedded = embed(model, batch.pixels.to(device), batch.origin.to(device))
            tokens, behind, tapped = embedded.tokens, [], []
            for layers in spec.stage_layers:
                for piece in pieces(layers, spec.taps):
                    tokens = run_layers(model, piece, tokens, rotations=embedded.rotations)
                    patches = tokens[:, spec.extra_tokens :].flatten(0, 1)
                    tapped += [patches] if piece[1] in spec.taps else []
                behind.append(patches)
        histograms = token_histograms(batch.labels.to(device), spec.patch, spec.classes).flatten(0, 1)
        chosen = torch.from_numpy(draw.permutation(len(histograms))[:most]).to(device)
        parts.append([part[chosen].float() for part in (*tapped, *behind, histograms)])
    *before, last, histograms = (torch.cat(column) for column in zip(*parts, strict=True))
    tapped, reached = before[: len(spec.taps)], before[len(spec.taps) :]
    return Seen(tuple(reached), last, histograms, dict(zip(spec.taps, tapped, strict=True)))


def fit_head(
    head: nn.Module,
    tokens: Tensor,
    histograms: Tensor,
    weights: Tensor,
    draw: np.random.Generator,
    *,
    steps: int = STEPS,
) -> None:
    """Softmax regression of a gate's head from `tokens` (M, C) to `histograms` (M, K), classes weighed by `weights`."""
    head.train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=1e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        rows = torch.from_numpy(draw.integers(0, len(tokens), min(AT_ONCE, len(tokens)))).to(tokens.device)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(histogram_loss(head(tokens[rows]), histograms[rows], weights))
        optimiser.step()
    head.eval()


@torch.no_grad()
def fit_lens(lens: Lens, tokens: Tensor, last: Tensor) -> None:
    """Ridge regression of a lens from `tokens` to `last`, both (M, C); a part of them at a time is in memory."""
    fit_linear(lens.linear, [Pairs(lens.norm, tokens, last)], ridge=RIDGE)


@dataclass(frozen=True)
class Pairs:
    """What goes into a linear layer, and what is to come out."""

    make: Callable[[Tensor], Tensor]
    """(m, ...) of `tokens` -> (m, C)."""
    tokens: Tensor
    """(M, ...)."""
    wanted: Tensor
    """(M, C)."""

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Input and output, some rows at a time, in double precision: the normal equations square the condition."""
        for start in range(0, len(self.tokens), LENS_AT_ONCE):
            part = slice(start, start + LENS_AT_ONCE)
            yield self.make(self.tokens[part]).double(), self.wanted[part].double()


@torch.no_grad()
def fit_linear(linear: nn.Linear, pairs: Sequence[Pairs], *, ridge: float, relative: bool = False) -> None:
    """Ridge regression of a layer to all of `pairs`.

    Args:
        linear: gets weight and bias.
        pairs: all of one width.
        ridge: added to the diagonal of the inputs' covariance.
        relative: it is a share of that diagonal's mean, where the inputs may be of any size.
    """
    count = sum(len(one.tokens) for one in pairs)
    mean = mean_wanted = torch.zeros((), dtype=torch.float64)
    for one in pairs:
        for given, wanted in one.parts():
            mean, mean_wanted = mean + given.sum(0), mean_wanted + wanted.sum(0)
    mean, mean_wanted = mean / count, mean_wanted / count
    covariance = cross = torch.zeros((), dtype=torch.float64)
    for one in pairs:
        for given, wanted in one.parts():
            centred = given - mean
            covariance = covariance + centred.T @ centred
            cross = cross + centred.T @ (wanted - mean_wanted)
    covariance = covariance / count
    covariance.diagonal().add_(ridge * (covariance.diagonal().mean() if relative else 1.0))
    weight = torch.linalg.solve(covariance, cross / count).T
    linear.weight.copy_(weight)
    linear.bias.copy_(mean_wanted - weight @ mean)
