"""Family: what the code of one architecture offers to export, reference engine, checkpoints and training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

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
