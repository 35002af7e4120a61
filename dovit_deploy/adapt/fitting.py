"""How are gates and lenses fitted to a network's own answers? Nothing else of the network changes.

A gate is a softmax regression from a token to the share of each class in the final answer to its patch: minimising
their cross-entropy is minimising the Kullback-Leibler divergence from the answer. A lens is a ridge regression from a
token to what a later layer makes of it: one for each layer that the decode head reads. Where layers behind a gate see
pooled keys, one ridge regression a layer leads from what the lenses of all gates before it make to what enters it.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.adapt.features import SeenTokens
from dovit_deploy.adapt.report import GateEntry
from dovit_deploy.families.heads import LinearTokenHead
from dovit_deploy.families.vit.network import Lens, TokenGate, VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.progress import StepProgress
from dovit_deploy.train.fitted import Pairs, fit_head, fit_lens, fit_linear

STEPS = 300
"""Of a gate."""
SEED = 0
MAP_RIDGE = 1e-4
"""Of the maps of pooled keys: a share of the mean diagonal, since what lenses make has channels of very different size.
A hundred times as much gave back less: 0.23 instead of 0.28 points at 30 % saved, on 20 images of CamVid."""
AT_ONCE = 16_384
"""Tokens whose moments, or whose gate's answers, are computed together."""


def fitted_parts(
    model: VisionTransformer, seen: SeenTokens, progress: StepProgress
) -> tuple[dict[str, Tensor], tuple[GateEntry, ...]]:
    """Gates, lenses and maps of `model` fitted to `seen`: their parameters by name, and how well the gates do."""
    parts, fits, draw = dict[str, Tensor](), list[GateEntry](), np.random.default_rng(SEED)
    lenses = dict[str, Lens]()
    for number, (gate, tokens) in enumerate(zip(model.spec.gates, seen.reached, strict=True)):
        progress.begin(f"fitting the gate before layer {gate.layer}")
        head = cast("TokenGate", model.gates[number]).head
        if not isinstance(head, LinearTokenHead):
            raise TypeError("gates that are fitted here are linear")
        fitted = fitted_gate(tokens, seen.answers, draw)
        fits.append(_gate_fit(gate.layer, fitted, seen, tokens))
        parts |= named_parts(f"gates.{number}.head.classifier", fitted)
        for name, wanted in _readers(model.spec, number, seen).items():
            lenses[name] = lens = Lens(model.spec)
            fit_lens(lens, tokens, wanted)
            parts |= named_parts(f"{name}.linear", lens.linear)
    for layer, wanted in seen.entering.items():
        progress.begin(f"fitting what layer {layer} sees of what has stopped")
        before = [number for number, gate in enumerate(model.spec.gates) if gate.layer <= layer]
        pairs = [Pairs(lenses[f"lenses.{number}"], seen.reached[number], wanted) for number in before]
        linear = nn.Linear(model.spec.width, model.spec.width)
        fit_linear(linear, pairs, ridge=MAP_RIDGE, relative=True)
        parts |= named_parts(f"context_maps.{layer}", linear)
    return parts, tuple(fits)


def _readers(spec: VisionTransformerSpec, number: int, seen: SeenTokens) -> dict[str, Tensor]:
    """The lenses of gate `number` by name, and what each is to show: (M, C) as the dense network has it there."""
    if not spec.has_lenses:
        return {}
    taps = spec.lensed_taps(spec.gates[number])
    return {f"lenses.{number}": seen.last, **{f"tap_lenses.{number}.{tap}": seen.tapped[tap] for tap in taps}}


def named_parts(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The parameters of `module` under the names that they have where it is called `prefix`."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in module.named_parameters()}


def gate_fits(model: VisionTransformer, seen: SeenTokens) -> tuple[GateEntry, ...]:
    """How well the gates of `model`, which are there already, say what it answers."""
    gates = zip(model.spec.gates, model.gates, seen.reached, strict=True)
    return tuple(_gate_fit(gate.layer, cast("TokenGate", module).head, seen, tokens) for gate, module, tokens in gates)


class _Standardised(nn.Module):
    """A linear layer on channels of mean 0 and spread 1, so that one learning rate fits all of them."""

    def __init__(self, mean: Tensor, spread: Tensor, classes: int) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear((tokens - self.mean) / self.spread)  # type: ignore[no-any-return]

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """The same function of the tokens themselves."""
        layer = nn.Linear(len(self.mean), self.linear.out_features)
        layer.weight.copy_(self.linear.weight / self.spread)
        layer.bias.copy_(self.linear.bias - layer.weight @ self.mean)
        return layer


def fitted_gate(tokens: Tensor, answers: Tensor, draw: np.random.Generator) -> nn.Linear:
    """Softmax regression from `tokens` (M, C) to `answers` (M, K): a layer of logits."""
    head = _Standardised(*_moments(tokens), answers.shape[1])
    with torch.enable_grad():
        fit_head(head, tokens, answers, torch.ones(answers.shape[1]), draw, steps=STEPS)
    return head.plain()


def _moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (M, C)."""
    total = square = torch.zeros(tokens.shape[1], dtype=torch.float64)
    for part in torch.split(tokens, AT_ONCE):
        total, square = total + part.double().sum(0), square + part.double().square().sum(0)
    mean = total / len(tokens)
    spread = (square / len(tokens) - mean.square()).clamp(min=0).sqrt()
    # A channel that is the same everywhere says nothing, whatever it is divided by.
    return mean.float(), torch.where(spread > 1e-6, spread, 1.0).float()


@torch.no_grad()
def _gate_fit(layer: int, fitted: nn.Module, seen: SeenTokens, tokens: Tensor) -> GateEntry:
    found = [fitted(part).softmax(1).max(1) for part in torch.split(tokens, AT_ONCE)]
    confidence, label = torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
    wanted = torch.cat([part.argmax(1) for part in torch.split(seen.answers, AT_ONCE)])
    means = torch.stack([window.mean() for window in torch.split(confidence, list(seen.windows))])
    return GateEntry(
        layer=layer,
        agreement=float((label == wanted).float().mean()),
        confidence=float(means.mean()),
        confidence_spread=float(means.std(correction=0)),
    )
