"""Three ways of saving tokens on the same data: gates (DoViT), a fixed share (Evo-ViT), semantic tokens (STViT-R).

    python benchmarks/families.py CAMVID --split val --split train:0006R0 --dense dense.dovit \\
        dovit.dovit evovit.dovit stvit.dovit -o benchmarks/results/families.json --docs docs/families.md
    python benchmarks/families.py --tables benchmarks/results/families.json --docs docs/families.md

The second line writes the table again without measuring. The networks are trained alike (`benchmarks/recipes`). All
run on a frame one after the other, in ONNX Runtime with one thread; the order turns from frame to frame. Latency is the
CPU time of the model step; speed-ups are medians over the frames, against the dense-trained network (`--dense`; without
it the first network's own dense run) and, where there is one, against the network's own dense run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import command_text, errors_in_a_line, output_file, page_with, publish, write_table
from rich.console import Console
from rich.progress import track
from timed_session import TimedSession, processor_ms

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import Dataset, Sample
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.bench import median, median_ratio
from dovit_deploy.measure.evaluate import SegmentationTally, check_classes
from dovit_deploy.measure.intervals import blocks_of, miou_drop_interval
from dovit_deploy.record import Record
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session

MARK = "<!-- table: benchmarks/families.py -->"
SAVES = {
    "dovit": "stops tokens that a gate is sure of",
    "evovit-deit": "runs a fixed share, chosen by class attention",
    "stvit-r": "a few semantic tokens a window",
}
"""By family of the spec."""


class NetworkRow(Record):
    """One network on one split, as deployed or dense."""

    name: str
    saves: str
    miou: float
    boundary_iou: float
    gmacs: float
    """10^9 MACs, mean over the frames."""
    macs_saved: float
    """Against the network's own dense form, for STViT-R a Swin of its widths and depths."""
    speedup: float
    """Median over the frames of the baseline's CPU time over this one's; the baseline is the first row."""
    own_speedup: float | None
    """Likewise against the network's own dense run; None where it has none, or is it."""
    model_ms: float
    drop: float
    """Points of mIoU below the baseline."""
    drop_interval: tuple[float, float] | None
    """95 %, paired block bootstrap; None for the baseline itself."""


@dataclass
class NetworkRun:
    """One network, as deployed or dense, and what it gave on the frames of one split."""

    name: str
    saves: str
    predict: Callable[[Sample], SegmentationResult]
    own_dense: NetworkRun | None = None
    tally: SegmentationTally = field(default_factory=SegmentationTally)
    model_ms: list[float] = field(default_factory=list)
    dense_gmacs: list[float] = field(default_factory=list)

    def measure(self, sample: Sample) -> None:
        """Segment `sample` and count it."""
        result = self.predict(sample)
        self.tally.add(sample, result)
        self.model_ms.append(processor_ms(result))
        self.dense_gmacs.append(result.tokens.gmacs_dense)


def runs_of(dense: Predictor | None, networks: Sequence[tuple[str, Predictor]]) -> list[NetworkRun]:
    """The dense-trained network first; each network as deployed, after its own dense run where it has one."""
    runs = [] if dense is None else [NetworkRun("dense-trained", "nothing", _runner(dense, dense=True))]
    for name, predictor in networks:
        # STViT-R has no dense network of the same weights.
        own = None
        if predictor.spec.has_dense:
            own = NetworkRun(f"{name}, nothing saved", "nothing", _runner(predictor, dense=True))
            runs.append(own)
        runs.append(NetworkRun(name, SAVES[predictor.spec.family], _runner(predictor, dense=False), own))
    return runs


def _runner(predictor: Predictor, *, dense: bool) -> Callable[[Sample], SegmentationResult]:
    return lambda sample: predictor.predict(sample.rgb, dense=dense)


def measure(runs: Sequence[NetworkRun], data: Dataset, *, show: bool) -> tuple[NetworkRow, ...]:
    """Segment every frame of `data` in every run."""
    # One untimed run each: the first allocates.
    for run in runs:
        run.predict(data.sample(0))
    for number in track(range(len(data)), description=data.name, console=Console(stderr=True), disable=not show):
        sample = data.sample(number)
        # The first to run finds the caches cold, so all take turns.
        start = number % len(runs)
        for run in (*runs[start:], *runs[:start]):
            run.measure(sample)
    blocks, first = blocks_of(len(data), data.moments), runs[0].tally.counts
    return tuple(
        NetworkRow(
            name=run.name,
            saves=run.saves,
            miou=run.tally.counts.miou,
            boundary_iou=run.tally.boundary_counts.miou,
            gmacs=sum(run.tally.gmacs) / len(run.tally.gmacs),
            macs_saved=1 - sum(run.tally.gmacs) / sum(run.dense_gmacs),
            speedup=median_ratio(runs[0].model_ms, run.model_ms),
            own_speedup=None if run.own_dense is None else median_ratio(run.own_dense.model_ms, run.model_ms),
            model_ms=median(run.model_ms),
            drop=first.miou - run.tally.counts.miou,
            drop_interval=None if run is runs[0] else miou_drop_interval(first, run.tally.counts, blocks),
        )
        for run in runs
    )


def table(report: dict[str, Any]) -> str:
    """The table of docs/families.md, split by split."""
    lines = []
    for split in report["splits"]:
        rows = [NetworkRow.model_validate(row) for row in split["rows"]]
        lines += [
            f"`{split['split']}` ({split['frames']} frames):",
            "",
            "| network | saves tokens by | mIoU | boundary IoU | drop from the first (95 %) | GMAC | MACs saved "
            "| speed-up over the first | over its own dense run |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(row, drop="-" if row is rows[0] and row.drop_interval is None else _drop(row)) for row in rows),
            "",
        ]
    lines.append(
        f"{report['dataset']}, ONNX Runtime fp32, one thread, same frames, interleaved; "
        f"{report['machine']['cpu']}, {report['date']}; `{report['command']}`."
    )
    return "\n".join(lines)


def _drop(row: NetworkRow) -> str:
    ends = row.drop_interval
    return f"{row.drop:.2f}" + ("" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})")


def _line(row: NetworkRow, *, drop: str) -> str:
    own = "-" if row.own_speedup is None else f"{row.own_speedup:.2f}x"
    return (
        f"| {row.name} | {row.saves} | {row.miou:.1f} | {row.boundary_iou:.1f} | {drop} | {row.gmacs:.2f} "
        f"| {row.macs_saved:.0%} | {row.speedup:.2f}x | {own} |"
    )


def figures_of(dataset: Path, splits: Sequence[str], dense: Path | None, networks: Sequence[Path]) -> dict[str, object]:
    """Everything that is measured."""
    parts = [dataset_from_path(dataset, split) for split in splits]
    baseline = None if dense is None else _predictor(dense)
    predictors = [(path.stem, _predictor(path)) for path in networks]
    manifest = predictors[0][1].session.bundle.manifest
    reports = []
    for split, data in zip(splits, parts, strict=True):
        check_classes(data, manifest)
        runs = runs_of(baseline, predictors)
        rows = measure(runs, data, show=sys.stderr.isatty())
        reports.append(
            {"split": split, "frames": len(data), "rows": [row.model_dump(mode="json") for row in rows]},
        )
    return {"dataset": dataset.name, "splits": reports}


def _predictor(path: Path) -> Predictor:
    return Predictor(TimedSession(Session(Bundle.open(path), threads=1)))


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("networks", type=Path, nargs="*", help="bundles of the families")
    parser.add_argument("--dense", type=Path, help="bundle of the network trained without saving any")
    parser.add_argument("--split", action="append", help="as `dovit eval` takes it; may be repeated; default: val")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="write the table of this result; measure nothing")
    parser.add_argument("-o", "--output", type=output_file)
    parser.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    options = parser.parse_args(arguments)
    if options.tables is None and (options.dataset is None or not options.networks):
        parser.error("DATASET and bundles are needed, or --tables")
    if options.tables is not None:
        report = json.loads(options.tables.read_text(encoding="utf-8"))
    else:
        words = sys.argv[1:] if arguments is None else arguments
        command = command_text("families.py", words)
        figures = figures_of(options.dataset, options.split or ["val"], options.dense, options.networks)
        report = publish(figures, command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, table(report))


if __name__ == "__main__":
    main()
