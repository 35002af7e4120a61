"""PyTorch's exporter, quicker: it gathers its two thousand operators anew for every graph, a quarter of an export.

Here they are gathered once a process, in those that the fork server makes, too; a new interpreter does as always.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any


def gather_operators_once() -> None:
    """From now on every export of this process gets a copy of the first one's table."""
    # Not public: where a version of PyTorch has another one, exports take as long as they do.
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        gather, gathered = ONNXRegistry.from_torchlib, dict[tuple[Any, ...], Any]()

        def from_torchlib(*versions: Any, **named: Any) -> Any:
            key = (versions, tuple(named.items()))
            if key not in gathered:
                gathered[key] = gather(*versions, **named)
            registry = copy.copy(gathered[key])
            # An export adds operators of its own to the lists.
            registry.functions = {name: list(found) for name, found in registry.functions.items()}
            return registry

        ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
