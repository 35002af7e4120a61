"""Which families there are, one line each: the modules that define a `FAMILY`, imported when they are needed."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dovit_deploy.errors import UsageError
from dovit_deploy.families.spec import AnySpec, ModelSpec

# Family: what the code of one architecture offers to export, reference engine, checkpoints and training.

State = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Each module that `families` names defines one, called `FAMILY`.

    Specs and networks are the family's own classes, which nobody else looks into.
    """

    spec: type
    """The class of its specs."""
    build: Callable[..., nn.Module]
    """`build(spec, *, trainable=False)`: the network, in deployment form or with batch norms apart. Its parameters have
    the names of `weights.safetensors`."""
    stages: Callable[[Any], list[nn.Module]]
    """Network -> one module a stage, in order, sharing its parameters; takes and gives what `bundle.interface` says."""
    dense: Callable[[Any], nn.Module]
    """Network -> the same with nothing stopped, `pixels` -> the answers; not called where `has_dense` is False."""
    state_at_size: Callable[[State, Any, Any], State]
    """Weights of one spec -> weights of the same architecture at another size, the second spec."""


FAMILIES = {
    "VisionTransformerSpec": "dovit_deploy.families.vit.network:FAMILY",
    "EvoDeitSpec": "dovit_deploy.families.evovit.deit:FAMILY",
    "EvoLevitSpec": "dovit_deploy.families.evovit.evo_levit:FAMILY",
    "LevitSpec": "dovit_deploy.families.evovit.levit:FAMILY",
    "SwinSpec": "dovit_deploy.families.stvit.swin:FAMILY",
    "StvitSwinSpec": "dovit_deploy.families.stvit.network:STVIT_SWIN",
    "StvitBackboneSpec": "dovit_deploy.families.stvit.network:STVIT_BACKBONE",
    "StvitSegmenterSpec": "dovit_deploy.families.stvit.network:STVIT_SEGMENTER",
    "StvitDeitSpec": "dovit_deploy.families.stvit.network:STVIT_DEIT",
}
"""Class of the spec -> module and name of its `Family`."""


def family_of(spec: ModelSpec) -> Family:
    """The family whose networks `spec` describes."""
    family: Family = pkgutil.resolve_name(FAMILIES[type(spec).__name__])
    return family


# Building a network from its spec and weights, and fitting weights to another input size, whatever its family.

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


# Weights that serve at every size, but for the sizes where they do not.


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
