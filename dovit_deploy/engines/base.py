"""The seam to a runtime: a Backend makes a graph of a bundle runnable, an Engine runs it.

A buffer is whatever the backend keeps tensors in (a NumPy array, device memory); only the backend looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle

Array = npt.NDArray[Any]
Buffer = Any


@dataclass(frozen=True)
class EngineOptions:
    """What only some engines have a use for; None and False leave it to the engine."""

    cuda_memory: str | None = None
    """Package through which GPU memory is used (cuda_memory.MEMORIES)."""
    trust_engine: bool = False
    """Run built engines that came with a bundle, which can carry code."""

    def given(self) -> dict[str, Any]:
        """What was said, by field."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


NONE_GIVEN = EngineOptions()


class Engine(Protocol):
    """One graph, ready to run."""

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the graph; keys are its input and output names. What it gives stays as it is until it runs again."""

    def close(self) -> None:
        """Free what the engine holds; it is not used afterwards."""


class Backend(Protocol):
    """One runtime at one precision."""

    name: str
    precision: str

    def load(self, bundle: Bundle, graph: str) -> Engine:
        """Make `graph` (stage0, ..., merged, dense) of `bundle` runnable."""

    def upload(self, array: Array) -> Buffer:
        """Bring a host array to where the engines compute."""

    def download(self, buffer: Buffer) -> Array:
        """Bring a buffer back as a host array."""

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """The first `count` entries, without a copy."""


def as_float32(array: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A contiguous float32 array."""
    return np.ascontiguousarray(array, dtype=np.float32)
