"""The seam to a runtime: a Backend makes a graph of a bundle runnable, an Engine runs it.

A buffer is whatever the backend stores tensors in (a NumPy array, device memory); only the backend looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle

Array = npt.NDArray[Any]
Buffer = Any


@dataclass(frozen=True)
class EngineOptions:
    """Options that only some engines understand; None and False leave the choice to the engine."""

    cuda_memory: str | None = None
    """Package through which GPU memory is used: a key of `engines.cuda.memory.MEMORIES`."""
    trust_engine: bool = False
    """Also run built engines that came with a bundle; they can carry code."""

    def given(self) -> dict[str, Any]:
        """The options that were set, by field."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


NONE_GIVEN = EngineOptions()


class Engine(Protocol):
    """One graph, ready to run."""

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the graph; keys are its input and output names. The outputs stay unchanged until it runs again."""

    def close(self) -> None:
        """Free what the engine holds; it must not be used afterwards."""


@runtime_checkable
class PaddingEngine(Engine, Protocol):
    """An engine that computes more tokens than it is given: it runs its stage in one of a few sizes.

    Each of them is compiled at its first use.
    """

    def size_for(self, count: int) -> int:
        """Tokens that it computes where `count` run."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes that are compiled so far."""


class Backend(Protocol):
    """One runtime at one precision."""

    name: str
    precision: str

    def load(self, bundle: Bundle, graph: str) -> Engine:
        """Make `graph` (stage0, ..., merged, dense) of `bundle` runnable."""

    def upload(self, array: Array) -> Buffer:
        """Copy a host array to the memory in which the engines compute, if that is another one."""

    def download(self, buffer: Buffer) -> Array:
        """The buffer as a host array; waits until it is computed."""

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """The first `count` entries, without a copy."""


class HostMemory:
    """The half of a backend that holds its tensors as NumPy arrays: nothing is copied."""

    def upload(self, array: Array) -> Buffer:
        return array

    def download(self, buffer: Buffer) -> Array:
        array: Array = buffer
        return array

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        return buffer[:count]


def as_float32(array: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """`array` as contiguous float32, copied only where it is not that already."""
    return np.ascontiguousarray(array, dtype=np.float32)
