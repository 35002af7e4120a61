"""The result of `prove.py` as data: what ran on which GPU, what did not and why, ready for JSON and for tables."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from dovit_deploy.record import Record

AIMS = {"L": 0.92, "B": 0.85, "S": 0.75}
"""Efficiency to reach at 768 pixels with one image."""
PACKED_AIM = 0.90
"""At 768 pixels with a batch."""


class GpuRecord(Record):
    """A record whose figures may be infinite or none at all, which is what broken work gives; read back, they are."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Gpu(GpuRecord):
    """The GPU, and what PyTorch was built for."""

    name: str
    compute_capability: str
    memory_gb: float
    torch_cuda: str


class Outcome(GpuRecord):
    """Something that was tried."""

    name: str
    ok: bool
    detail: str


class Undone(GpuRecord):
    """Something that was not tried, and why."""

    what: str
    why: str


class SectionOutcome(GpuRecord):
    """How a section of the proof ended."""

    name: str
    outcome: Literal["done", "failed", "not done"]
    """Done: it ran to its end, whatever it found. Not done: this machine or the time lacks what it needs."""
    why: str
    """The error's text, or what is lacking; empty where it is done."""
    seconds: float
    found: dict[str, int] | None = None
    """How many results it has in each field of the report; None: of a run that did not count them."""


class Bandwidth(GpuRecord):
    """A kernel over rows of one shape."""

    kernel: str
    tokens: int
    kept: int
    row_bytes: int
    microseconds: float
    gb_per_s: float
    """Read and written, 10^9 bytes a second."""
    of_copy: float
    """Over what a device-to-device copy of as many bytes reaches."""


class Latency(GpuRecord):
    """Milliseconds from the pixels on the device to the logits on the device."""

    p50: float
    p99: float


class StagedRow(GpuRecord):
    """A model at a size, a batch and a profile: staged against dense, interleaved."""

    model: str
    """S, B or L."""
    pixels: int
    images: int
    profile: str
    attention: str
    thresholds: tuple[float, ...]
    kept: tuple[float, ...]
    """Mean share of all tokens entering each stage behind a gate."""
    dense: Latency
    staged: Latency
    runs: int
    predicted: float
    """Dense MACs over actual MACs."""
    speedup: float
    """Median of paired ratios."""
    graphs: int
    """CUDA graphs captured so far."""

    @property
    def efficiency(self) -> float:
        """Measured over predicted."""
        return self.speedup / self.predicted


class BaselineRow(GpuRecord):
    """Another way to run the dense network, beside dense as the other tables have it, interleaved."""

    model: str
    pixels: int
    images: int
    way: str
    dense: Latency
    """fp16, one CUDA graph, whichever attention PyTorch picks."""
    latency: Latency
    """This way."""
    images_per_s: float
    speedup: float
    """Over `dense`: median of paired ratios."""
    agreement: float
    """Share of the classes at logit positions that are those of `dense`."""


class TraceRow(GpuRecord):
    """What a frame does on average, counted in a trace; the wait at its end is not."""

    model: str
    pixels: int
    images: int
    way: str
    frames: int
    host_syncs: float
    """Calls by which the host waits for the device."""
    waits: dict[str, float]
    """The same by their names."""
    graph_launches: float
    kernels: float
    busy_us: float
    """Microseconds in which the device works, under the profiler."""
    attention: tuple[str, ...]
    """Names of the attention kernels."""


class DenseRatio(GpuRecord):
    """Dense in one of the ways in which PyTorch runs it, beside one graph a frame."""

    name: str
    latency: Latency
    ratio: float
    """Median of paired ratios: dense over one graph a frame."""


class OneGraphRow(GpuRecord):
    """A frame as one CUDA graph, against dense and against the same stages one by one, interleaved."""

    model: str
    """S, B or L."""
    pixels: int
    images: int
    profile: str
    attention: str
    kept: tuple[float, ...]
    """Mean share of all tokens entering each stage behind a gate."""
    buckets: tuple[tuple[int, ...], ...]
    """Behind each gate, the token counts of the whole batch that were captured."""
    chosen: tuple[int, ...]
    """The one of them that the device chose."""
    dense: tuple[DenseRatio, ...]
    staged: Latency
    staged_ratio: float
    """Median of paired ratios: stages over one graph."""
    one_graph: Latency
    images_per_s: float
    predicted: float
    """Dense MACs over actual MACs."""
    graph_seconds: float
    """To make the graph runnable."""
    graph_bytes: int
    """Device memory that this took."""
    graph_nodes: int

    @property
    def efficiency(self) -> float:
        """How much faster it is than the fastest dense way, over what the MACs predict."""
        return min((way.ratio for way in self.dense), default=0.0) / self.predicted

    @property
    def aim(self) -> float:
        """The efficiency to reach: of a batch in images a second, of one image in latency."""
        return PACKED_AIM if self.images > 1 else AIMS[self.model]


class Boundary(GpuRecord):
    """What token passing costs at a gate: everything kept, staged less dense, over the number of gates."""

    model: str
    pixels: int
    images: int
    microseconds: float


class ParityRow(GpuRecord):
    """The contract's rule over the images of a case."""

    name: str
    precision: str
    explained: int
    failures: tuple[str, ...]
    confidence_error: float
    float_error: float
    """Largest, as a share of what is allowed."""


class EngineRow(GpuRecord):
    """An engine of the registry on a bundle, one image."""

    engine: str
    precision: str
    model: str
    dense: Latency
    staged: Latency
    predicted: float
    speedup: float
    parity: tuple[str, ...]
    """Failures; empty where it agrees with the reference."""

    @property
    def efficiency(self) -> float:
        """Measured over predicted."""
        return self.speedup / self.predicted


class GpuReport(GpuRecord):
    """The contents of `results/gpu.json`."""

    command: str
    date: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    minutes: float
    gpu: Gpu | None
    """None where there was none: then only the self-test ran."""
    sections: tuple[SectionOutcome, ...] = ()
    """In the order in which they ran."""
    selftest: tuple[Outcome, ...] = ()
    """The same code on CPU tensors and tiny models."""
    kernels: tuple[Outcome, ...] = ()
    copy_gb_per_s: float | None = None
    bandwidth: tuple[Bandwidth, ...] = ()
    plugin: tuple[Outcome, ...] = ()
    memory: tuple[Outcome, ...] = ()
    parity: tuple[ParityRow, ...] = ()
    staged: tuple[StagedRow, ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    baselines: tuple[BaselineRow, ...] = ()
    traces: tuple[TraceRow, ...] = ()
    frames: tuple[OneGraphRow, ...] = ()
    engines: tuple[EngineRow, ...] = ()
    undone: tuple[Undone, ...] = ()
    """Parts of sections that this machine or the time did not allow."""
    broken: tuple[Outcome, ...] = ()
    """Parts of sections that failed."""

    def with_found(self, field: str, value: Record | float) -> GpuReport:
        """This report with `value` as `field`, or behind what is in it already."""
        before = getattr(self, field)
        return self.model_copy(update={field: (*before, value) if isinstance(before, tuple) else value})

    @property
    def counts_results(self) -> bool:
        """Whether it says which section found what."""
        return all(section.found is not None for section in self.sections)

    def over(self, before: GpuReport) -> GpuReport:
        """This report with what `before`, of the same machine, has of sections that did not run, or not to their end.

        Both count their results. Sections keep their order in `before`; others follow.
        """
        parts = {section.name: (before, section) for section in before.sections}
        for section in self.sections:
            if section.outcome != "not done" or section.name not in parts:
                parts[section.name] = (self, section)
        fields = {
            field: tuple(value for report, section in parts.values() for value in report.results_of(section, field))
            for field in type(self).model_fields
            if field != "sections" and isinstance(getattr(self, field), tuple)
        }
        single = {"copy_gb_per_s": before.copy_gb_per_s} if self.copy_gb_per_s is None else {}
        sections = tuple(section for _, section in parts.values())
        command = f"{before.command}; {self.command}"
        return self.model_copy(update={**fields, **single, "sections": sections, "command": command})

    def results_of(self, section: SectionOutcome, field: str) -> tuple[Record, ...]:
        """What one of its sections found for a field that holds several."""
        first = 0
        for other in self.sections:
            count = (other.found or {}).get(field, 0)
            if other == section:
                values: tuple[Record, ...] = getattr(self, field)
                return values[first : first + count]
            first += count
        return ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Whatever was tried and is wrong; slow is not wrong."""
        tried = (*self.selftest, *self.kernels, *self.plugin, *self.memory, *self.broken)
        wrong = [f"{section.name}: {section.why}" for section in self.sections if section.outcome == "failed"]
        wrong += [f"{outcome.name}: {outcome.detail}" for outcome in tried if not outcome.ok]
        wrong += [f"{row.name}, {failure}" for row in self.parity for failure in row.failures]
        wrong += [f"{row.engine} {row.precision}, {failure}" for row in self.engines for failure in row.parity]
        return tuple(wrong)
