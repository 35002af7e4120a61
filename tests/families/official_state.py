"""Random state dicts under official names, made from a reader's key table and the shapes of the network it fills."""

from __future__ import annotations

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyMap
from dovit_deploy.families.spec import ModelSpec


def official_shapes(key_map: KeyMap, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every official entry that the network of `spec` needs."""
    return {rule.official: rule.shape for rule in key_map.rules(key_map.training_shapes(spec))}


def random_state(key_map: KeyMap, spec: ModelSpec, *, seed: int = 0) -> dict[str, Tensor]:
    """An official state dict with every entry; variances are positive, and batch norms have counted."""
    generator = torch.Generator().manual_seed(seed)
    shapes = official_shapes(key_map, spec)
    state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    for name in [name for name in state if name.endswith("running_var")]:
        state[name] = state[name].abs() + 0.5
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return state
