"""One cell: the baseline and one way in turns on the same frames, then the way's answers against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import Sample
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.evaluate import SegmentationTally
from dovit_deploy.measure.intervals import miou_drop_interval
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings, RunsOne
from on_cpu.models import CaseFiles, decisions
from on_cpu.result import DEFAULT, CellAccuracy, CellEffort, CellRow, CpuCell
from on_cpu.runners import runner
from on_cpu.timing import BLOCK, FrameRun, in_streams, milliseconds, paired


def measured(cell: CpuCell, files: CaseFiles, effort: CellEffort) -> CellRow:
    """What is to be known of `cell`; the files are there.

    Raises:
        Unavailable, DovitError: it cannot run here.
    """
    bundle, pixels = Bundle.open(files.bundle_path), files.pixels(effort.timed_frames)
    with ExitStack() as stack:
        first = stack.enter_context(Session(bundle, threads=cell.threads))
        keep = decisions(cell.way.profile, first, pixels) if cell.way.profile else None
        actual = mean_gmacs(bundle, keep)
        baselines = [first, *(stack.enter_context(Session(bundle, threads=cell.threads)) for _ in others(cell))]
        ways = [runner(cell, files, actual_gmacs=actual) for _ in range(cell.streams)]
        replayed = keep if cell.way.runs == "tokens" else None
        dense = [unit(session, pixels, None) for session in baselines]
        row = timed_row(cell, dense, [unit(way, pixels, replayed) for way in ways], len(pixels), effort)
        saved = 1 - actual / cost_model(bundle.manifest.spec).dense().total * 1e9 if keep else 0.0
        row = row.model_copy(update={"macs_saved": saved})
        if cell.case.model == DEFAULT and cell.streams == 1:
            row = row.model_copy(update={"accuracy": accuracy(first, ways[0], files, dense=keep is None)})
        for way in ways:
            if isinstance(way, Session):
                way.close()
    return row


def others(cell: CpuCell) -> range:
    """Streams beyond the first."""
    return range(cell.streams - 1)


def mean_gmacs(bundle: Bundle, keep: Sequence[Keep] | None) -> float:
    """10^9 MACs of a frame, mean over the frames; None: nothing stops."""
    spec, cost = bundle.manifest.spec, cost_model(bundle.manifest.spec)
    if keep is None:
        return cost.dense().total / 1e9
    counts = [(spec.tokens, *(spec.extra_tokens + int(grid.sum()) for grid in frame)) for frame in keep]
    return float(np.mean([cost.actual(kept).total for kept in counts])) / 1e9


def unit(way: RunsOne, pixels: Sequence[Pixels], keep: Sequence[Keep] | None) -> FrameRun:
    """Runs frame i: replaying decisions, or dense."""
    manifest = way.bundle.manifest
    settings = [
        RunSettings.resolve(manifest, dense=True) if keep is None else RunSettings.resolve(manifest, keep=keep[number])
        for number in range(len(pixels))
    ]
    return lambda frame: way.run_one(pixels[frame], settings[frame])


def timed_row(
    cell: CpuCell, baselines: Sequence[FrameRun], ways: Sequence[FrameRun], frames: int, effort: CellEffort
) -> CellRow:
    """The row of `cell` without accuracy."""
    images = 1 if cell.streams == 1 else cell.streams * BLOCK
    with ThreadPoolExecutor(cell.streams) as pool:
        # One stream stays in this thread: a pool would add a hand-over to every run.
        one = baselines[0] if cell.streams == 1 else in_streams(baselines, pool)
        other = ways[0] if cell.streams == 1 else in_streams(ways, pool)
        pairs = paired(one, other, frames=frames, effort=effort)
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
        macs_saved=0.0,
    )


def accuracy(baseline: Session, way: RunsOne, files: CaseFiles, *, dense: bool) -> CellAccuracy:
    """The answers of `way`, by its own decisions, beside those of dense fp32, on all frames of the case."""
    reference, candidate = Predictor(baseline), Predictor(way)
    samples = files.samples()
    tallies = SegmentationTally(), SegmentationTally()
    same = pixels = 0
    for name, rgb, label in samples:
        want = reference.predict(rgb, dense=True)
        got = candidate.predict(rgb, dense=dense)
        same += int((want.class_map == got.class_map).sum())
        pixels += want.class_map.size
        if label is not None:
            for tally, answer in zip(tallies, (want, got), strict=True):
                tally.add(Sample(name, rgb, label), answer)
    found = CellAccuracy(frames=len(samples), agreement=same / pixels)
    return found if samples[0][2] is None else labelled(found, *tallies, [name for name, _, _ in samples])


def labelled(
    found: CellAccuracy, dense: SegmentationTally, own: SegmentationTally, stems: Sequence[str]
) -> CellAccuracy:
    """`found` with what the labels say, the drops as paired differences from `dense`."""
    blocks = SegmentationTally.blocks(stems)
    return found.model_copy(
        update={
            "miou": own.counts.miou,
            "boundary_iou": own.boundary_counts.miou,
            "drop": dense.counts.miou - own.counts.miou,
            "drop_interval": miou_drop_interval(dense.counts, own.counts, blocks),
            "boundary_drop_interval": miou_drop_interval(dense.boundary_counts, own.boundary_counts, blocks),
        }
    )
