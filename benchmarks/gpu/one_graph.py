"""A frame as one CUDA graph: the stages of `StagedRunner`, of which the device picks each one's bucket by itself.

Nothing but the pixels goes in and nothing but the logits comes out: counts stay on the device until somebody asks. The
same memory serves the staged runs and the graph, so the two can be compared to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dovit_deploy.errors import ProviderMissing
from gpu.packed_runner import StagedRunner, Work, captured_graph
from gpu.switch_graph import (
    MOST_BUCKETS,
    Driver,
    FrameGraph,
    GraphCost,
    Switch,
    frame_graph,
    opened_driver,
    select_cubin,
)

AROUND = (0.75, 0.9, 1.0, 1.1, 1.3)
"""Buckets behind a gate, over the count that is expected there; the last one holds all tokens."""


class Captured(Protocol):
    """Captured work, which keeps the memory alive that it uses (`torch.cuda.CUDAGraph`)."""

    def raw_cuda_graph(self) -> int:
        """The graph (cudaGraph_t)."""


Capture = Callable[[Work], Captured]


@dataclass(frozen=True)
class GraphBuilder:
    """What `OneGraphRunner` needs of CUDA: NVIDIA's driver, how work is captured, the selecting kernel, the stream."""

    driver: Driver
    capture: Capture
    cubin: bytes
    """See `switch_graph.select_cubin`."""
    stream: Callable[[], int]
    """The current stream."""


def gpu_builder(device: torch.device) -> GraphBuilder:
    """PyTorch's captures on `device`.

    Raises:
        ProviderMissing: this PyTorch does not hand out what it captured.
        PackageMissing: cuda-bindings is not installed.
        EnvironmentProblem: the selecting kernel cannot be compiled.
    """
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        raise ProviderMissing(f"one graph a frame: PyTorch {torch.__version__} has no CUDAGraph.raw_cuda_graph")
    # One pool: the stages run one after the other, and of each stage one bucket.
    pool = torch.cuda.graph_pool_handle()
    major, minor = torch.cuda.get_device_capability(device)
    return GraphBuilder(
        opened_driver(),
        lambda work: captured_graph(work, pool, keep=True),
        select_cubin(f"sm_{major}{minor}"),
        lambda: torch.cuda.current_stream(device).cuda_stream,
    )


class OneGraphRunner:
    """A staged runner whose frames are one launch each.

    Args:
        staged: with `sizes`; it keeps working, on the same memory.
        builder: see `gpu_builder`.

    Raises:
        ValueError: the sizes are no buckets of a switch.
        DovitError: see `switch_graph.frame_graph`.
    """

    def __init__(self, staged: StagedRunner, builder: GraphBuilder) -> None:
        self.staged = staged
        self._builder = builder
        sizes = _checked_sizes(staged)
        # Read by the graph, so they live as long as it does; so does what was captured.
        device = staged.pixels.device
        self._sizes = [torch.tensor(row, dtype=torch.int64, device=device) for row in sizes]
        self._chosen = torch.full((len(sizes),), -1, dtype=torch.int32, device=device)
        with torch.inference_mode():
            self._captured = self._captures(sizes)
            self._graph = self._built()

    @property
    def cost(self) -> GraphCost:
        """What making the graph runnable took."""
        return self._graph.cost

    def run(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) on the device -> logits (B, K, h, w), overwritten by the next run; waits for nothing."""
        with torch.inference_mode():
            self.staged.pixels.copy_(pixels)
            self._graph.launch(self._builder.stream())
        return self.staged.logits

    def counts(self) -> list[list[int]]:
        """Per gate and image, how many tokens ran on in the last frame; waits for it."""
        return [[int(count) for count in decision.counts] for decision in self.staged.decisions]

    def chosen(self) -> list[int]:
        """The size of the bucket that ran behind each gate in the last frame; waits for it."""
        return [int(row[int(number)]) for row, number in zip(self._sizes, self._chosen, strict=True)]

    def close(self) -> None:
        """Free the graph, and only then what it was made of."""
        self._graph.close()
        self._captured.clear()

    def _captures(self, sizes: Sequence[Sequence[int]]) -> list[list[Captured]]:
        """Of stage 0, and of every bucket of the later ones."""
        staged, capture = self.staged, self._builder.capture
        captured = [[capture(staged.first_stage)]]
        for gate, row in enumerate(sizes):
            captured.append([])
            # The largest first, so that the pool grows once.
            for size in reversed(row):
                # Capturing runs the stage, whose tokens must fit into the bucket whatever the last frame kept.
                staged.pretend(gate, size)
                captured[-1].insert(0, capture(lambda gate=gate, size=size: staged.later_stage(gate + 1, size)))
        return captured

    def _built(self) -> FrameGraph:
        first, *later = self._captured
        switches = [
            Switch(
                f"stage{gate + 1}",
                count=self.staged.bounds[gate][-1:].data_ptr(),
                sizes=self._sizes[gate].data_ptr(),
                chosen=self._chosen[gate : gate + 1].data_ptr(),
                graphs=tuple(graph.raw_cuda_graph() for graph in graphs),
            )
            for gate, graphs in enumerate(later)
        ]
        builder = self._builder
        return frame_graph(
            builder.driver,
            first[0].raw_cuda_graph(),
            switches,
            cubin=builder.cubin,
            stream=builder.stream(),
        )


def sizes_around(counts: Sequence[int], total: int, step: int) -> list[list[int]]:
    """Buckets for each gate: around the count that is expected behind it, multiples of `step`; and all `total`."""
    return [
        sorted({total, *(min(total, max(1, -(-round(share * count) // step)) * step) for share in AROUND)})
        for count in counts
    ]


def _checked_sizes(staged: StagedRunner) -> Sequence[Sequence[int]]:
    sizes = staged.sizes
    if sizes is None or len(sizes) != len(staged.bounds):
        raise ValueError("one graph a frame: buckets are needed behind every gate")
    for row in sizes:
        if not (row and list(row) == sorted(set(row)) and row[-1] == staged.total and row[0] >= staged.images):
            raise ValueError(
                f"one graph a frame: buckets {list(row)} given; they must ascend to all {staged.total} tokens, "
                f"from at least one for each of {staged.images} images"
            )
        if len(row) > MOST_BUCKETS:
            raise ValueError(f"one graph a frame: {len(row)} buckets given, at most {MOST_BUCKETS} are possible")
    return sizes
