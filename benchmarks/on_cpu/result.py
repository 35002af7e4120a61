"""The result of `cpu.py` as data: what was compared, in which cells, what was measured, what was not done and why."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dovit_deploy.record import Record
from on_cpu.frames import FrameChoice

DEFAULT = "default"
"""Name of the case whose bundle is the default model, or the one that was given."""
OWN = "own"
"""Profile of the default model: its own decisions on the frames, recorded once and replayed in every engine."""
BASELINE = ("dense", "onnxruntime", "fp32")
"""What every ratio refers to: our dense graph in ONNX Runtime."""

Runs = Literal["dense", "tokens", "plain", "nncf", "eager", "compiled", "merging"]


class CpuCase(Record):
    """A network at an input size."""

    model: str
    """`DEFAULT`, or a size of the bench model."""
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def name(self) -> str:
        """Unique, and good for a folder."""
        return f"{self.model}-{self.size[0]}x{self.size[1]}"


class CpuWay(Record):
    """One way to run it."""

    runs: Runs
    """dense, tokens: this project's session. Peers: plain (the export that all make), nncf (the dense graph, quantised
    by NNCF), eager and compiled (PyTorch), merging (similar tokens merged, in ONNX Runtime)."""
    engine: str
    precision: str
    profile: str = ""
    """Of tokens and merging: whose token counts; else empty."""


class CpuCell(Record):
    """One way on one case: what is measured, and resumed, as a whole."""

    case: CpuCase
    way: CpuWay
    threads: int = 1
    """Of one operator."""
    streams: int = 1
    """Images that run at the same time, each in a session of its own."""

    @property
    def label(self) -> str:
        """All of it in a line."""
        words = (self.way.runs, self.way.engine, self.way.precision, self.way.profile)
        return f"{self.case.name} {' '.join(filter(None, words))}, threads {self.threads}, streams {self.streams}"


class CellAccuracy(Record):
    """The answers of one way against those of dense fp32, and against labels where there are any."""

    frames: int
    agreement: float
    """Share of the pixels whose class is that of dense ONNX Runtime fp32."""
    miou: float | None = None
    boundary_iou: float | None = None
    drop: float | None = None
    """Points of mIoU below dense fp32."""
    drop_interval: tuple[float, float] | None = None
    """95 %, paired block bootstrap."""
    boundary_drop_interval: tuple[float, float] | None = None
    same_agreement: float | None = None
    """As `agreement`, but with the same run in ONNX Runtime fp32: dense with dense, tokens with tokens."""
    same_drop: float | None = None
    """Points of mIoU below that run: what engine and precision lose, apart from what tokens lose."""
    same_drop_interval: tuple[float, float] | None = None


class CellRow(Record):
    """What was measured in a cell. Times are of one image's model step, in milliseconds."""

    cell: CpuCell
    p50: float
    """Wall time; with several streams the time of a block of images over their number."""
    p99: float
    first: float
    """The slowest first run of a frame: with what is compiled at its first use."""
    cpu: float
    """Median of the process's CPU time."""
    ratio: float
    """Median over the pairs of baseline / this: CPU time of one thread and one stream, else wall time."""
    low: float
    high: float
    """Quartiles of the same."""
    pairs: int
    """Rounds in which both ran."""
    macs_saved: float
    accuracy: CellAccuracy | None = None
    """None of random weights."""


class UndoneCell(Record):
    """A cell that was not measured."""

    cell: CpuCell
    why: str

    @classmethod
    def because(cls, cell: CpuCell, error: Exception) -> UndoneCell:
        """With the message of `error`, in a line."""
        return cls(cell=cell, why=str(error).replace("\n", " "))


class CellsDone(Record):
    """What a process that measures cells answers."""

    rows: tuple[CellRow, ...] = ()
    undone: tuple[UndoneCell, ...] = ()


class CellEffort(Record):
    """How much is measured in each cell."""

    seconds: float
    """After which no further round begins, for ways that are measured together."""
    fewest: int
    """At least so many runs of each frame."""
    timed_frames: int
    """Of the default model alone; the bench model has one, and two threads or streams have two."""
    limit_s: float
    """A process that takes longer is given up."""


class CpuSettings(Record):
    """What a result is of: only rows with equal settings stand in one file."""

    bundle: str
    frames: str
    """Where the default model's images come from."""
    count: int
    effort: CellEffort


class CellsWanted(Record):
    """What such a process is asked."""

    cells: tuple[CpuCell, ...]
    """Of one case, with equal threads and streams."""
    bundle: Path
    """The default model."""
    work: Path
    """Folder of the files of all cases."""
    frames: FrameChoice
    effort: CellEffort
    prepare: bool = False
    """Make the files of the case; measure nothing."""


class CpuReport(Record):
    """The contents of `results/cpu.json`."""

    command: str
    date: str
    machine: dict[str, str | int]
    features: tuple[str, ...]
    """Instruction sets of the processor that matter here."""
    versions: dict[str, str]
    settings: CpuSettings
    rows: tuple[CellRow, ...] = ()
    undone: tuple[UndoneCell, ...] = ()

    def row(self, cell: CpuCell) -> CellRow | None:
        """What was measured in `cell`."""
        return next((row for row in self.rows if row.cell == cell), None)

    def like(self, cell: CpuCell, *, runs: tuple[Runs, ...]) -> list[CellRow]:
        """The rows of the same case, threads and streams that run in one of these ways."""
        same = (cell.case, cell.threads, cell.streams)
        return [
            row
            for row in self.rows
            if (row.cell.case, row.cell.threads, row.cell.streams) == same and row.cell.way.runs in runs
        ]
