"""Which parameters does a run train, and how fast does each learn? By the names of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dovit_deploy.train.config import TrainConfig

EMBEDDINGS = frozenset({"extra_tokens", "positions", "class_tokens", "table"})
"""Last parts of the names of parameters that are looked up or joined, and multiply nothing."""
BEFORE_LAYERS = ("stem", "positions", "extra_tokens")
"""First parts of the names of what makes tokens of pixels."""
GATE_PARTS = ("gates", "lenses", "tap_lenses", "context_maps")
"""First parts of the names of what belongs to gates."""


def is_embedding(name: str) -> bool:
    """The parameter is looked up or joined: it starts small, and is not decayed."""
    return name.rpartition(".")[2] in EMBEDDINGS


def layer_of(name: str) -> int | None:
    """The layer that a parameter or module belongs to, counted from 0; -1: it stands before the first; None: behind the
    last, or beside them."""
    first, _, rest = name.partition(".")
    if first in BEFORE_LAYERS:
        return -1
    return int(rest.partition(".")[0]) if first == "blocks" and rest else None


def is_trained(name: str, config: TrainConfig) -> bool:
    """The parameter or module of this name is what the run trains."""
    if config.trained == "gates":
        return name.partition(".")[0] in GATE_PARTS
    layer = layer_of(name)
    return layer is None or layer >= config.frozen_layers or not config.frozen_layers


def rate_of(name: str, config: TrainConfig, depth: int) -> float:
    """The highest learning rate of a parameter, in a network of `depth` layers."""
    first, layer = name.partition(".")[0], layer_of(name)
    if first == "head" and config.head_rate is not None:
        return config.head_rate
    if first in GATE_PARTS and config.gate_rate is not None:
        return config.gate_rate
    return config.learning_rate if layer is None else config.learning_rate * config.layer_decay ** (depth - 1 - layer)


@dataclass(frozen=True)
class RateGroup:
    """Parameters that learn alike."""

    parameters: list[nn.Parameter]
    weight_decay: float
    share: float
    """Of the run's learning rate."""


def rate_groups(model: nn.Module, config: TrainConfig) -> list[RateGroup]:
    """What is trained of `model`, grouped by weight decay and learning rate.

    Weight decay on matrices and kernels, which come first; none on biases, norms and embeddings.
    """
    named = list(model.named_parameters())
    depth = 1 + max((layer for name, _ in named if (layer := layer_of(name)) is not None), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or is_embedding(name) else config.weight_decay
        groups.setdefault((-decay, rate_of(name, config, depth) / config.learning_rate), []).append(parameter)
    return [
        RateGroup(parameters, -decay, share)
        for (decay, share), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def optimiser_from_groups(groups: list[RateGroup], config: TrainConfig) -> torch.optim.AdamW:
    """One that has a parameter group for each of `groups`, in their order."""
    given = [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups]
    return torch.optim.AdamW(given, lr=config.learning_rate, betas=config.betas, fused=True)


def set_training(model: nn.Module, config: TrainConfig) -> None:
    """Put what is trained of `model` into training mode, its batch norms perhaps not."""
    model.train()
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if is_norm and (config.freeze_norms or not is_trained(name, config)):
            module.eval()
