"""Which families there are, one line each, and what is done with all of them alike: build, load, resize.

The modules are imported when they are needed: an image is segmented without PyTorch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel
from torch import nn

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.errors import UsageError
from dovit_deploy.families.folding import State
from dovit_deploy.families.spec import ModelSpec, Size
from dovit_deploy.families.stages import DenseNetwork, whole_stages

Spec = TypeVar("Spec", bound=BaseModel)


@dataclass(frozen=True)
class Family:
    """What the code of one architecture offers to export, reference engine, checkpoints and training.

    Specs and networks are the family's own classes, which nobody else looks into.
    """

    build: Callable[..., nn.Module]
    """`build(spec, *, trainable=False)`: the network, in deployment form or with batch norms apart. Its parameters have
    the names of `weights.safetensors`."""
    stages: Callable[[Any], list[nn.Module]] = whole_stages
    """Network -> one module a stage, in order, sharing its parameters; takes and gives what `bundle.interface` says."""
    dense: Callable[[Any], nn.Module] = DenseNetwork
    """Network -> the same with nothing stopped, `pixels` -> `logits`; not called where `has_dense` is False."""
    resized: Callable[[State, Any, Any], State] | None = None
    """Weights of one spec -> weights of the same architecture at another size, the second spec. None: no weight belongs
    to a position in the image."""
    derived: frozenset[str] = frozenset()
    """Names of entries that `resized` makes of others and of the size: no published file has them."""


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


def model_from_spec(spec: ModelSpec, state: State | None = None) -> Any:  # noqa: ANN401  the family's own
    """The network of `spec` in deployment form, in evaluation mode, with `state` loaded strictly."""
    # On the meta device nothing is allocated: the parameters become the tensors of `state` themselves.
    with torch.device("meta") if state is not None else torch.device("cpu"):
        model: nn.Module = family_of(spec).build(spec)
    if state is not None:
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def state_from_bundle(bundle: Bundle) -> State:
    """The weights of `bundle` in deployment form, in float32, whatever they are stored in."""
    return widened_state(safetensors.torch.load(bundle.content(WEIGHTS)))


def widened_state(stored: State) -> State:
    """`stored` as networks compute with it: what is in float16 becomes float32, which changes no value."""
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in stored.items()}


def spec_at_size(spec: Spec, size: Size) -> Spec:
    """The same architecture for another input size; raises ValidationError for a size that it cannot take."""
    # Not `model_copy`, which would not check whether the architecture can take the size.
    return type(spec).model_validate({**spec.model_dump(), "size": size})


def state_at_size(state: State, spec: ModelSpec, size: Size) -> State:
    """Weights of `spec` for input `size`, changed as the family's source does it.

    Raises:
        UsageError: a weight does not fit the network at that size. LeViT's biases belong to the distances on one grid;
            a coarse grid of Swin may become a single window.
    """
    family, target = family_of(spec), spec_at_size(spec, size)
    if family.resized is not None:
        state = family.resized(state, spec, target)
    # Shapes alone are wanted: nothing is allocated.
    with torch.device("meta"):
        expected = family.build(target).state_dict()
    misfit = next((name for name in state if name in expected and state[name].shape != expected[name].shape), None)
    if misfit is not None:
        here, there = (f"{one.size[0]}x{one.size[1]}" for one in (target, spec))
        raise UsageError(f"size {here}: {misfit} was trained for another; give {there}, the training size")
    return state
