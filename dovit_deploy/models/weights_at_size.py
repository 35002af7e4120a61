"""Weights that serve at every size, but for the sizes where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dovit_deploy.errors import UsageError
from dovit_deploy.models.family import State


def unchanged_weights(build: Callable[..., nn.Module]) -> Callable[[State, Any, Any], State]:
    """A family's `state_at_size` where nothing is resized: no weight belongs to a place in the picture.

    A coarse grid may become a single window, or another number of semantic tokens may carry learned ones; then the
    weights have another shape, and the size is refused.

    Raises:
        UsageError: (what is returned) a weight does not fit the network at the other size.
    """

    def state_at_size(state: State, spec: Any, target: Any) -> State:  # noqa: ANN401  the family's own
        with torch.device("meta"):
            wanted = build(target).state_dict()
        misfit = next((name for name, tensor in state.items() if tensor.shape != wanted[name].shape), None)
        if misfit is not None:
            here, there = (f"{size[0]}x{size[1]}" for size in (target.size, spec.size))
            raise UsageError(f"size {here}: {misfit} was trained for another; give {there}, the training size")
        return state

    return state_at_size
