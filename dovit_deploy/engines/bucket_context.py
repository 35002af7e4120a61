"""An execution context for one bucket: run once by its kernels, from then on as one CUDA graph.

A graph holds the addresses with which it was captured, so there is one for each set of addresses. Buffers stay where
they are from frame to frame, so that there are few: the ordinary run, and replays, whose index comes from the host.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovit_deploy.engines.cuda_memory import DeviceMemory, Launch
from dovit_deploy.engines.tensorrt_context import TensorRtContext
from dovit_deploy.errors import DeviceFailed

MOST_GRAPHS = 4
"""For callers whose own buffers move about; beyond them every kernel is enqueued by itself."""


class BucketContext:
    """A context whose shapes are set for good."""

    def __init__(self, context: TensorRtContext, memory: DeviceMemory, *, capture: bool) -> None:
        self._context, self._memory, self._capture = context, memory, capture
        self._launches: dict[tuple[int, ...], Launch | None] = {}

    @property
    def graphs(self) -> int:
        """How many CUDA graphs there are."""
        return sum(launch is not None for launch in self._launches.values())

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Enqueue one run on the memory's stream.

        Args:
            addresses: of every input and output but those that an allocator places, in an order that never changes.

        Raises:
            DeviceFailed: TensorRT refuses.
        """
        key = tuple(addresses.values())
        launch = self._launches.get(key)
        if launch is not None:
            launch.enqueue()
            return
        for name, address in addresses.items():
            self._context.bind(name, address)
        # The first run with these addresses also settles what a capture may not: compiling, and changes of shape.
        self._context.enqueue(self._memory.stream)
        if self._capture and key not in self._launches and len(self._launches) < MOST_GRAPHS:
            self._launches[key] = self._captured()

    def free(self) -> None:
        """Give back graphs and context."""
        for launch in self._launches.values():
            if launch is not None:
                launch.free()
        self._launches.clear()
        self._context.free()

    def _captured(self) -> Launch | None:
        """The run as a CUDA graph; None where something in it cannot be captured."""
        stream = self._memory.stream
        if not self._context.capturable(stream):
            return None
        try:
            return self._memory.capture(lambda: self._context.enqueue(stream))
        except DeviceFailed:
            return None
