"""Running packed stages: fixed buffers, token counts rounded up to buckets, one CUDA graph a stage and bucket.

The host reads nothing but the counts of each gate (8 bytes an image, through pinned memory). The same code runs on CPU
tensors, where work is done at once instead of captured: that is how it is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dovit_deploy.families.vit.network import VisionTransformer
from gpu import packed_stages
from gpu.packed_stages import Limits, PackedAttend, PackedDecision

Work = Callable[[], None]


class AtOnce:
    """Stands for `GraphLauncher` on the CPU: does work when it is called, and captures nothing."""

    launches = 0

    def __call__(self, key: Hashable, work: Work) -> None:
        del key
        work()


class GraphLauncher:
    """Captures work as a CUDA graph at the first call with its key; later calls launch the graph."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # Shared: the graphs run one after the other, so what one uses in passing another may use again.
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def launches(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def __call__(self, key: Hashable, work: Work) -> None:
        """Launch the graph of `work`, which must read and write the same memory at every call."""
        if key not in self._graphs:
            self._graphs[key] = captured_graph(work, self._pool)
        self._graphs[key].replay()


def captured_graph(work: Work, pool: tuple[int, int], *, keep: bool = False) -> torch.cuda.CUDAGraph:
    """`work`, captured after it ran twice.

    Args:
        work: reads and writes the same memory at every call.
        pool: of `torch.cuda.graph_pool_handle`: the memory that it uses in passing, which lives as long as the graph.
        keep: keep what was captured (`raw_cuda_graph`) and make it runnable at the first replay only.
    """
    # Libraries allocate at their first call, which is not allowed within a capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep else torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
    return graph


def launcher_for(device: torch.device) -> AtOnce | GraphLauncher:
    """CUDA graphs on a GPU, else immediate work."""
    return GraphLauncher() if device.type == "cuda" else AtOnce()


class DenseRunner:
    """The baseline: nothing stopped, fused attention, the model's own precision, one CUDA graph."""

    def __init__(self, model: VisionTransformer, images: int) -> None:
        self.model = model
        self.pixels = _buffer(model, images, 3, *model.spec.size)
        self.logits = torch.empty(0)
        self._launch = launcher_for(self.pixels.device)

    def run(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) on the device -> logits (B, K, h, w), which the next run overwrites."""
        with torch.inference_mode():
            self.pixels.copy_(pixels)
            self._launch("dense", self._work)
        return self.logits

    def _work(self) -> None:
        self.logits = _stored(self.logits, packed_stages.dense(self.model, self.pixels))


@dataclass(frozen=True)
class StagedResult:
    """One run: logits (B, K, h, w) and, per gate and image, how many tokens ran on (gates, B)."""

    logits: Tensor
    counts: list[list[int]]
    own: list[Tensor]
    """Per gate (B * T,) bool: the gate's own decision, in a replay, else nothing."""


@dataclass
class StagedRunner:
    """A model's stages for `images` images at once.

    Args:
        model: with gates whose heads look at one token at a time, on its device, in its precision.
        images: B.
        attend: attention of packed tokens.
        step: token counts of the whole batch are rounded up to a multiple of it.
        sizes: per gate, the counts to which they are rounded up instead, ascending; the last one is all tokens.
    """

    model: VisionTransformer
    images: int
    attend: PackedAttend
    step: int = 128
    sizes: Sequence[Sequence[int]] | None = None
    decisions: list[PackedDecision] = field(default_factory=list)
    """Of the last run, one a gate; overwritten by the next run."""

    def __post_init__(self) -> None:
        spec, device = self.model.spec, self.model.positions.device
        self.total = self.images * spec.tokens
        self.pixels = _buffer(self.model, self.images, 3, *spec.size)
        # One for each stage, so that a stage does not overwrite its input: it runs several times before it is captured.
        self.tokens = [_buffer(self.model, self.total, spec.width) for _ in range(len(spec.gates) + 1)]
        self.limits = [
            Limits(torch.ones(spec.classes, device=device), torch.zeros((), device=device)) for _ in spec.gates
        ]
        self.bounds = [torch.zeros(self.images + 1, dtype=torch.int64, device=device) for _ in spec.gates]
        self.logits = torch.empty(0)
        self._launch = launcher_for(device)
        self._counts = torch.zeros(self.images, dtype=torch.int64, pin_memory=device.type == "cuda")

    @property
    def captured(self) -> int:
        """How many CUDA graphs were captured so far; 0 on the CPU."""
        return self._launch.launches

    def set_thresholds(self, thresholds: Sequence[float]) -> None:
        """One threshold a gate, the same for all classes."""
        for limits, threshold in zip(self.limits, thresholds, strict=True):
            limits.thresholds.fill_(threshold)

    def bucket(self, count: int, gate: int = 0) -> int:
        """`count` tokens of the batch behind `gate`, rounded up; at most all."""
        if self.sizes is not None:
            return next(size for size in self.sizes[gate] if size >= count)
        return min(self.total, -(-count // self.step) * self.step)

    def pretend(self, gate: int, count: int) -> None:
        """Write a decision of `gate` by which `count` tokens run on, in equal parts: for a run that is captured."""
        decision, bounds = self.decisions[gate], self.bounds[gate]
        bounds.copy_(torch.arange(self.images + 1, device=bounds.device) * count // self.images)
        decision.order.copy_(torch.arange(self.total, device=bounds.device))
        decision.counts.copy_(bounds.diff())

    def run(self, pixels: Tensor, replay: Sequence[Sequence[Tensor]] | None = None) -> StagedResult:
        """Pixels (B, 3, H, W) on the device through all stages.

        Args:
            pixels: in any precision.
            replay: per gate and image, the positions (kept,) int64 in the image that run on, extra tokens included, in
                place of the gates' own decisions.
        """
        counts, own = [], []
        with torch.inference_mode():
            self.pixels.copy_(pixels)
            self._launch("stage0", self.first_stage)
            for gate in range(len(self.model.spec.gates)):
                # The gate decides all the same; what it decided is noted and then replaced.
                if replay is not None:
                    own.append(self._kept_mask(gate))
                    self._replace(gate, replay[gate])
                counts.append(self._read_counts(gate))
                bucket = self.bucket(sum(counts[-1]), gate)
                self._launch((gate + 1, bucket), lambda gate=gate, bucket=bucket: self.later_stage(gate + 1, bucket))
        return StagedResult(self.logits, counts, own)

    def first_stage(self) -> None:
        """The work of stage 0, which reads `pixels` and `limits`; it can be captured."""
        tokens, decision = packed_stages.first_stage(self.model, self.pixels, self.limits[0])
        self.tokens[0].copy_(tokens)
        self._keep(0, decision)

    def later_stage(self, number: int, bucket: int) -> None:
        """The work of stage `number` on at most `bucket` tokens, as the gate before it decided; it can be captured."""
        index, bounds = self.decisions[number - 1].order[:bucket], self.bounds[number - 1]
        before, tokens = self.tokens[number - 1], self.tokens[number]
        rows, running, runs = packed_stages.advanced(self.model, number, before, index, bounds, self.attend)
        tokens.copy_(before).index_copy_(0, index, rows)
        if number < len(self.model.spec.gates):
            decision = packed_stages.decision(
                self.model, number, running, index, runs, self.limits[number], images=self.images
            )
            self._keep(number, decision)
        else:
            images = tokens.view(self.images, self.model.spec.tokens, -1)
            self.logits = _stored(self.logits, packed_stages.decoded(self.model, images))

    def _keep(self, gate: int, decision: PackedDecision) -> None:
        """Write a decision where the next stage's graphs will read it."""
        if len(self.decisions) == gate:
            copies = (decision.order, decision.counts, decision.confidence, decision.label)
            self.decisions.append(PackedDecision(*(torch.empty_like(part) for part in copies)))
        stored = self.decisions[gate]
        for target, source in (
            (stored.order, decision.order),
            (stored.counts, decision.counts),
            (stored.confidence, decision.confidence),
            (stored.label, decision.label),
        ):
            target.copy_(source)
        self.bounds[gate][1:].copy_(decision.counts.cumsum(0))

    def _kept_mask(self, gate: int) -> Tensor:
        decision = self.decisions[gate]
        mask = torch.zeros(self.total, dtype=torch.bool, device=decision.order.device)
        mask[decision.order[: int(decision.counts.sum())]] = True
        return mask

    def _replace(self, gate: int, replay: Sequence[Tensor]) -> None:
        tokens, stored = self.model.spec.tokens, self.decisions[gate]
        index = torch.cat([part.to(stored.order.device) + image * tokens for image, part in enumerate(replay)])
        rest = torch.ones(self.total, dtype=torch.bool, device=index.device)
        rest[index] = False
        stored.order.copy_(torch.cat([index, rest.nonzero()[:, 0]]))
        stored.counts.copy_(torch.tensor([len(part) for part in replay]))
        self.bounds[gate][1:].copy_(stored.counts.cumsum(0))

    def _read_counts(self, gate: int) -> list[int]:
        self._counts.copy_(self.decisions[gate].counts, non_blocking=True)
        # The copy to pinned memory does not wait for the GPU, and the counts choose the next graph.
        if self.pixels.is_cuda:
            torch.cuda.current_stream().synchronize()
        counts: list[int] = self._counts.tolist()
        return counts


def _buffer(model: VisionTransformer, *shape: int) -> Tensor:
    positions = model.positions
    return torch.zeros(shape, dtype=positions.dtype, device=positions.device)


def _stored(buffer: Tensor, values: Tensor) -> Tensor:
    """`values` in memory that does not move: copied into `buffer`, or a copy that becomes the buffer."""
    if buffer.shape != values.shape:
        return values.clone()
    return buffer.copy_(values)
