"""Cells that one process measures: the baseline and their ways in turns on the same frames, then the ways' answers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import DovitError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings, RunsOne
from on_cpu.accuracy import Answers, compared
from on_cpu.models import CaseFiles, decisions
from on_cpu.result import DEFAULT, CellAccuracy, CellEffort, CellRow, CellsDone, CpuCell, UndoneCell
from on_cpu.runners import Unavailable, peer
from on_cpu.timing import BLOCK, FrameRun, PairTimes, in_streams, in_turns, milliseconds

ON_CORES = 2
"""Frames that are timed with several threads or streams."""


class Workbench:
    """What the cells of one process have in common.

    Args:
        cell: one of them: all have its case, threads and streams.
        files: of the case; they are there.
        frames: how many to time.
        stack: closes the sessions.
    """

    def __init__(self, cell: CpuCell, files: CaseFiles, frames: int, stack: ExitStack) -> None:
        self.threads, self.streams, self.files = cell.threads, cell.streams, files
        self.bundle, self._stack = Bundle.open(files.bundle_path), stack
        self.pixels = files.pixels(frames if self.alone else min(frames, ON_CORES))
        self._sessions: dict[tuple[str, str], list[Session]] = {}
        self.baselines = [self._opened("onnxruntime", "fp32") for _ in range(self.streams)]
        self._decisions: dict[str, list[Keep]] = {}

    @property
    def alone(self) -> bool:
        """One thread and one stream."""
        return (self.threads, self.streams) == (1, 1)

    def ways(self, cell: CpuCell) -> list[RunsOne]:
        """The way of `cell`, once for each stream; dense and with tokens in the same sessions.

        Raises:
            Unavailable, DovitError: it cannot run here.
        """
        way = cell.way
        if way.runs not in ("dense", "tokens"):
            return [peer(cell, self.files, actual_gmacs=self.gmacs(cell)) for _ in range(self.streams)]
        key = (way.engine, way.precision)
        if key not in self._sessions:
            self._sessions[key] = [self._opened(*key) for _ in range(self.streams)]
        return list(self._sessions[key])

    def keep(self, cell: CpuCell) -> list[Keep] | None:
        """The decisions of each frame that `cell` replays, or whose MACs it saves; None: nothing stops."""
        profile = cell.way.profile
        if not profile:
            return None
        if profile not in self._decisions:
            self._decisions[profile] = decisions(profile, self.baselines[0], self.pixels)
        return self._decisions[profile]

    def gmacs(self, cell: CpuCell) -> float:
        """10^9 MACs of a frame, mean over the frames."""
        spec, cost, keep = self.bundle.manifest.spec, cost_model(self.bundle.manifest.spec), self.keep(cell)
        if keep is None:
            return cost.dense().total / 1e9
        counts = [(spec.tokens, *(spec.extra_tokens + int(grid.sum()) for grid in frame)) for frame in keep]
        return float(np.mean([cost.actual(kept).total for kept in counts])) / 1e9

    def macs_saved(self, cell: CpuCell) -> float:
        """Share of the dense MACs."""
        return 1 - self.gmacs(cell) / (cost_model(self.bundle.manifest.spec).dense().total / 1e9)

    def timed(self, computations: Sequence[tuple[CpuCell, list[RunsOne]]], effort: CellEffort) -> list[PairTimes]:
        """The baseline and all `computations` in turns."""
        with ThreadPoolExecutor(self.streams) as pool:
            baseline = self._all_streams(self.baselines, None, pool)
            others = [
                self._all_streams(ways, self.keep(cell) if cell.way.runs == "tokens" else None, pool)
                for cell, ways in computations
            ]
            return in_turns(baseline, others, frames=len(self.pixels), effort=effort, wall=not self.alone)

    def accuracy(self, cell: CpuCell, way: RunsOne) -> CellAccuracy:
        """The answers of `way`, by its own decisions, on all frames of the default model."""
        files, samples = self.files, self.files.samples()
        own = Answers.of(way, samples, dense=not cell.way.profile)
        # Nothing in ONNX Runtime fp32 runs like merged tokens.
        same = None if cell.way.runs == "merging" else files.answers(dense=not cell.way.profile)
        classes = self.bundle.manifest.spec.classes
        return compared(own, files.answers(dense=True), same, samples, classes=classes)

    def _opened(self, engine: str, precision: str) -> Session:
        return self._stack.enter_context(Session(self.bundle, engine=engine, precision=precision, threads=self.threads))

    def _all_streams(self, ways: Sequence[RunsOne], keep: Sequence[Keep] | None, pool: ThreadPoolExecutor) -> FrameRun:
        units = [unit(way, self.pixels, keep) for way in ways]
        # One stream stays in this thread: a pool would add a hand-over to every run.
        return units[0] if self.streams == 1 else in_streams(units, pool)


def measured(cells: Sequence[CpuCell], files: CaseFiles, effort: CellEffort) -> CellsDone:
    """What is to be known of `cells`, which have case, threads and streams in common; the files are there."""
    undone: list[UndoneCell] = []
    computations: list[tuple[CpuCell, list[RunsOne]]] = []
    with ExitStack() as stack:
        bench = Workbench(cells[0], files, effort.timed_frames, stack)
        for cell in cells:
            try:
                computations.append((cell, bench.ways(cell)))
            except (DovitError, Unavailable) as error:
                undone.append(UndoneCell.because(cell, error))
        if not computations:
            return CellsDone(undone=tuple(undone))
        rows = []
        for (cell, ways), times in zip(computations, bench.timed(computations, effort), strict=True):
            row = row_from_times(cell, times, bench.macs_saved(cell))
            if cell.case.model == DEFAULT and bench.alone:
                row = row.model_copy(update={"accuracy": bench.accuracy(cell, ways[0])})
            rows.append(row)
    return CellsDone(rows=tuple(rows), undone=tuple(undone))


def unit(way: RunsOne, pixels: Sequence[Pixels], keep: Sequence[Keep] | None) -> FrameRun:
    """Runs frame i: replaying decisions, or dense."""
    manifest = way.bundle.manifest
    settings = [
        RunSettings.resolve(manifest, dense=True) if keep is None else RunSettings.resolve(manifest, keep=keep[number])
        for number in range(len(pixels))
    ]
    return lambda frame: way.run_one(pixels[frame], settings[frame])


def row_from_times(cell: CpuCell, pairs: PairTimes, macs_saved: float) -> CellRow:
    """The row of `cell` without accuracy."""
    images = 1 if cell.streams == 1 else cell.streams * BLOCK
    ratios = pairs.ratios(wall=(cell.threads, cell.streams) != (1, 1))
    walls = [timed.wall / images for timed in pairs.other]
    low, middle, high = (float(np.percentile(ratios, percent)) for percent in (25, 50, 75))
    return CellRow(
        cell=cell,
        p50=milliseconds(walls, 50),
        p99=milliseconds(walls, 99),
        first=milliseconds([timed.wall / images for timed in pairs.first], 100),
        cpu=milliseconds([timed.cpu / images for timed in pairs.other], 50),
        ratio=middle,
        low=low,
        high=high,
        pairs=len(ratios),
        macs_saved=macs_saved,
    )
