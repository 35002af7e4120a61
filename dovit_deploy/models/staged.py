"""The stages: select -> blocks -> restore, cut where a number of tokens is unknown. These modules are exported.

Each looks at one image. What crosses a cut is every token, the gate's order and how much of it runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dovit_deploy.models.tokens import aggregate, aggregate_limit, put_back, take
from dovit_deploy.models.vision_transformer import VisionTransformer


class DenseNetwork(nn.Module):
    """The same network with nothing stopped and no gates: `pixels` -> `logits`."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.model.embed(pixels)
        for block in self.model.blocks:
            tokens = block(tokens)
        return self.model.decode(tokens)


class WholeStage(nn.Module):
    """The only stage of a model without gates: `pixels` -> `logits`, `kept` (1,) int64."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.network = DenseNetwork(model)
        self.tokens = model.spec.tokens

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(pixels), torch.full((1,), self.tokens, dtype=torch.int64, device=pixels.device)


class FirstStage(nn.Module):
    """Pixels to the first gate: all tokens run.

    `pixels` (1, 3, H, W), `thresholds` (K,), `floor` () -> `tokens` (E + N, C) and a `Decision`.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.first, self.last = model.spec.stage_layers[0]

    def forward(self, pixels: Tensor, thresholds: Tensor, floor: Tensor) -> tuple[Tensor, ...]:
        tokens = self.model.embed(pixels)
        for block in self.model.blocks[self.first : self.last]:
            tokens = block(tokens)
        everything = torch.arange(self.model.spec.tokens, device=tokens.device)
        return tokens, *self.model.gates[0](tokens, everything, thresholds, floor)


class _LaterStage(nn.Module):
    """What the stages after a gate share: run the kept tokens, then put them back."""

    def __init__(self, model: VisionTransformer, number: int) -> None:
        super().__init__()
        self.model = model
        self.number = number
        self.first, self.last = model.spec.stage_layers[number]
        self.limit = aggregate_limit(model.spec.aggregate_rate, model.spec.tokens)

    def advance(self, tokens: Tensor, index: Tensor) -> Tensor:
        """`tokens` (E + N, C) after this stage's layers ran on rows `index` (kept,)."""
        class_token = aggregate(tokens, index, self.limit)
        running = torch.cat([class_token, take(tokens, index[1:])])
        for block in self.model.blocks[self.first : self.last]:
            running = block(running)
        return put_back(tokens, index, running)


class MiddleStage(_LaterStage):
    """From one gate to the next: `tokens`, `index` (kept,) int64, `thresholds`, `floor` -> as `FirstStage`."""

    def forward(self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> tuple[Tensor, ...]:
        tokens = self.advance(tokens, index)
        return tokens, *self.model.gates[self.number](tokens, index, thresholds, floor)


class LastStage(_LaterStage):
    """From the last gate to the logits: `tokens`, `index` -> `logits` (1, K, h, w)."""

    def forward(self, tokens: Tensor, index: Tensor) -> Tensor:
        return self.model.decode(self.advance(tokens, index))


def stages_from_model(model: VisionTransformer) -> list[nn.Module]:
    """One module a stage, in order, sharing the model's parameters."""
    count = len(model.spec.gates)
    if count == 0:
        return [WholeStage(model)]
    middle = [MiddleStage(model, number) for number in range(1, count)]
    return [FirstStage(model), *middle, LastStage(model, count)]
