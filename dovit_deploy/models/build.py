"""Building a network from its spec and weights, and fitting weights to another input size, whatever its family."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dovit_deploy.bundle.model_spec import AnySpec, ModelSpec
from dovit_deploy.models.families import family_of

Spec = TypeVar("Spec", bound=BaseModel)


def model_from_spec(spec: ModelSpec, state: dict[str, Tensor] | None = None) -> Any:  # noqa: ANN401  the family's own
    """The network of `spec` in deployment form, in evaluation mode, with `state` loaded strictly."""
    with torch.device("meta") if state is not None else torch.device("cpu"):
        model: nn.Module = family_of(spec).build(spec)
    if state is not None:
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def spec_at_size(spec: Spec, size: tuple[int, int]) -> Spec:
    """The same architecture for another input size; raises ValidationError for a size that it cannot take."""
    return type(spec).model_validate({**spec.model_dump(), "size": size})


def state_at_size(state: dict[str, Tensor], spec: AnySpec, size: tuple[int, int]) -> dict[str, Tensor]:
    """Weights of `spec` for input `size`, changed as the family's source does it."""
    return family_of(spec).state_at_size(state, spec, spec_at_size(spec, size))
