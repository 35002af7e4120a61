"""What does a deadline cost? The model step's time and the accuracy of labelled images, as the deadline shrinks.

    OPENBLAS_NUM_THREADS=1 python benchmarks/deadline.py camvid --engine openvino --precision bf16 \\
        -o benchmarks/results/deadline.json --docs docs/benchmarks.md
    python benchmarks/deadline.py --tables benchmarks/results/deadline.json --docs docs/benchmarks.md

The second line writes the table again without measuring. A latency model is fitted first. Deadlines go from what half
of the images take by themselves down to the least that is possible. Every image is run under every deadline, in turns:
at the bundle's own thresholds, and, as the hardest there can be, with gates that stop nothing. Times are CPU time of
one thread, of each image the median of its runs. Exit code 4: the 99th percentile of the hardest is above 1.05 of a
deadline, the model is wrong by more than 3 % (median, on patterns it did not see), or mIoU rises where the deadline
falls, beyond the interval of the rise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from report import at_least, command_text, errors_in_a_line, output_file, page_with, publish, read_figures, write_table
from rich.console import Console
from rich.progress import track
from timed_session import TimedSession, processor_ms

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.datasets.dataset import Dataset, Sample
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.intervals import Blocks, blocks_of, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.record import Record
from dovit_deploy.runtime.deadline import Deadline
from dovit_deploy.runtime.latency import LatencyModel
from dovit_deploy.runtime.latency_fit import SECONDS, fit_latency, run_every_size
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

MARK = "<!-- table: benchmarks/deadline.py -->"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Deadlines, between the least that is possible and what half of the images take."""
FOR_CHOICE = 20
"""Images by which deadlines are chosen."""
CIRCUMSTANCES = ("machine", "date", "command")
"""What the table says beside the figures."""
LATE, WRONG = 1.05, 0.03
"""How far the slowest may be behind a deadline, and how wrong the model may be."""


class DeadlineRow(Record):
    """One deadline, or none."""

    ms: float | None
    p50_ms: float
    p99_ms: float
    """CPU time of the model step."""
    hardest_p50_ms: float
    hardest_p99_ms: float
    """The same where no gate stops anything."""
    kept: tuple[float, ...]
    """Tokens that enter each stage, mean."""
    capped_images: int
    """Of which tokens were cut."""
    miou: float
    drop: float
    """From the images without a deadline, in points, and its 95 % interval."""
    drop_interval: tuple[float, float] | None
    step: float
    """From the longer deadline in the row above."""
    step_interval: tuple[float, float] | None


class DeadlineReport(Record):
    """Everything that was measured."""

    bundle: str
    dataset: str
    split: str
    images: int
    repeat: int
    """Runs of each, whose median is its time."""
    model: LatencyModel
    rows: tuple[DeadlineRow, ...]

    @property
    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.model.error > WRONG:
            found.append(f"the latency model is wrong by {self.model.error:.1%}")
        for row in self.rows:
            if row.ms is not None and row.hardest_p99_ms > LATE * row.ms:
                found.append(f"{row.ms:.1f} ms: the hardest take {row.hardest_p99_ms:.1f} ms at the 99th percentile")
            if row.step_interval is not None and row.step_interval[1] < 0:
                found.append(f"mIoU rises by {-row.step:.2f} where the deadline falls to {row.ms:.1f} ms")
        return found


@dataclass
class DeadlineRuns:
    """What the images did under one deadline."""

    deadline: Deadline | None
    counts: list[ClassCounts] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    hardest: list[float] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    capped: int = 0

    def run(self, predictor: Predictor, sample: Sample, *, repeat: int) -> None:
        """One image, at the bundle's own thresholds, and with gates that stop nothing."""
        manifest = predictor.session.bundle.manifest
        own = [self._run(predictor, sample, RunSettings.resolve(manifest)) for _ in range(repeat)]
        hardest = [self._run(predictor, sample, RunSettings.stop_nothing(manifest.spec)) for _ in range(repeat)]
        self.times.append(float(np.median(list(map(processor_ms, own)))))
        self.hardest.append(float(np.median(list(map(processor_ms, hardest)))))
        self.counts.append(ClassCounts.of(sample.label, own[0].class_map, classes=manifest.spec.classes))
        self.kept.append(own[0].tokens.kept)
        self.capped += own[0].tokens.capped > 0

    def _run(self, predictor: Predictor, sample: Sample, settings: RunSettings) -> SegmentationResult:
        return predictor.run(sample.rgb, dataclasses.replace(settings, deadline=self.deadline))


def measured(
    session: Session,
    data: Dataset,
    indices: Sequence[int],
    *,
    name: str,
    split: str,
    seconds: float,
    repeat: int,
    show: bool,
) -> DeadlineReport:
    """Fit the model, choose deadlines, run the images; `name` and `split` of the data set are for the report."""
    predictor = Predictor(TimedSession(session))
    model = fit_latency(session, seconds=seconds)
    run_every_size(session, session.bundle.manifest.spec.tokens)
    some = [data.sample(index) for index in indices[:: max(1, len(indices) // FOR_CHOICE)]]
    runs = [DeadlineRuns(None), *map(DeadlineRuns, deadlines_between(predictor, model, some))]
    for turn, index in enumerate(track(indices, console=Console(stderr=True), disable=not show)):
        sample = data.sample(index)
        # No deadline always runs first, on cold caches, or last.
        for number in range(len(runs)):
            runs[(turn + number) % len(runs)].run(predictor, sample, repeat=repeat)
    blocks = blocks_of(len(data), data.moments).of(indices)
    above = [runs[0], *runs[:-1]]
    rows = [
        row_of(entry, before=before, none=runs[0], blocks=blocks) for entry, before in zip(runs, above, strict=True)
    ]
    return DeadlineReport(
        bundle=session.bundle.path.name,
        dataset=name,
        split=split,
        images=len(indices),
        repeat=repeat,
        model=model,
        rows=tuple(rows),
    )


def deadlines_between(predictor: Predictor, model: LatencyModel, samples: Sequence[Sample]) -> list[Deadline]:
    """From what half of the samples take by themselves down to the least that is possible."""
    settings = RunSettings.resolve(predictor.session.bundle.manifest)
    kept = [predictor.run(sample.rgb, settings).tokens.kept for sample in samples]
    usual = float(np.median([model.milliseconds(counts) for counts in kept])) * max(1.0, model.slow)
    least = Deadline(usual, model, predictor.spec).least
    return [Deadline(least + share * max(0.0, usual - least), model, predictor.spec) for share in SHARES]


def row_of(entry: DeadlineRuns, *, before: DeadlineRuns, none: DeadlineRuns, blocks: Blocks) -> DeadlineRow:
    """The figures of one deadline."""
    own, above, first = (ClassCounts.stacked(runs.counts) for runs in (entry, before, none))
    alone = entry is none
    return DeadlineRow(
        ms=None if entry.deadline is None else entry.deadline.milliseconds,
        p50_ms=float(np.percentile(entry.times, 50)),
        p99_ms=float(np.percentile(entry.times, 99)),
        hardest_p50_ms=float(np.percentile(entry.hardest, 50)),
        hardest_p99_ms=float(np.percentile(entry.hardest, 99)),
        kept=tuple(float(value) for value in np.mean(entry.kept, axis=0)),
        capped_images=entry.capped,
        miou=own.miou,
        drop=first.miou - own.miou,
        drop_interval=None if alone else miou_drop_interval(first, own, blocks),
        step=above.miou - own.miou,
        step_interval=None if alone else miou_drop_interval(above, own, blocks),
    )


def table(report: DeadlineReport, *, machine: str, date: str, command: str) -> str:
    """The table of docs/benchmarks.md."""
    lines = [
        "| deadline D, ms | CPU ms p50 / p99 | hardest p50 / p99 | hardest p99 over D | tokens per stage | cut | mIoU "
        "| drop (95 %) | drop from the row above (95 %) |",
        "|" + "---|" * 9,
    ]
    for row in report.rows:
        late = "" if row.ms is None else f"{row.hardest_p99_ms / row.ms:.2f}"
        lines.append(
            f"| {'none' if row.ms is None else f'{row.ms:.1f}'} | {row.p50_ms:.1f} / {row.p99_ms:.1f} "
            f"| {row.hardest_p50_ms:.1f} / {row.hardest_p99_ms:.1f} | {late} "
            f"| {' '.join(f'{value:.0f}' for value in row.kept)} | {row.capped_images} of {report.images} "
            f"| {row.miou:.1f} | {lost(row, row.drop, row.drop_interval)} | {lost(row, row.step, row.step_interval)} |"
        )
    model = report.model
    lines += [
        "",
        f"{report.bundle} on {report.dataset}, {report.split} ({report.images} images), {model.engine} "
        f"{model.precision}, one thread, CPU time, of each image the median of {report.repeat}; the latency model "
        f"predicts {model.held_out} other patterns of tokens within {model.error:.1%} (median); "
        f"{machine}, {date}; `{command}`.",
    ]
    return "\n".join(lines)


def lost(row: DeadlineRow, points: float, interval: tuple[float, float] | None) -> str:
    """ "1.2 (0.3 to 2.1)", "1.2" without interval; empty for the row without a deadline."""
    if row.ms is None:
        return ""
    return f"{points:z.2f}" + ("" if interval is None else f" ({interval[0]:z.2f} to {interval[1]:z.2f})")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("dataset", type=Path, nargs="?")
    result.add_argument("--split", default="val")
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--engine", default="onnxruntime")
    result.add_argument("--precision")
    result.add_argument("--images", type=at_least(1), metavar="N", help="evenly spread; default: all of the split")
    result.add_argument("--seconds", type=float, default=SECONDS, help=f"for the latency model (default {SECONDS:g})")
    result.add_argument("--repeat", type=at_least(1), default=3, help="runs of each image; their median counts")
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the table from this result, measure nothing")
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    return result


@errors_in_a_line()
def main(words: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if words is None else words
    command_line = parser()
    options = command_line.parse_args(given)
    if (options.dataset is None) == (options.tables is None):
        command_line.error("a data set to measure on, or --tables JSON, is needed")
    if options.tables is None:
        data = dataset_from_path(options.dataset, options.split)
        indices = range(0, len(data), max(1, len(data) // (options.images or len(data))))[: options.images]
        bundle = Bundle.open(options.bundle or chosen_bundle(None).path)
        if not bundle.manifest.spec.gates:
            command_line.error(f"{bundle.path.name} has no gates: a deadline has nothing to stop")
        with Session(bundle, engine=options.engine, precision=options.precision, threads=1) as session:
            found = measured(
                *(session, data, indices),
                # As it is published: where it lies on this machine says nothing to others.
                name=options.dataset.name,
                split=options.split,
                seconds=options.seconds,
                repeat=options.repeat,
                show=sys.stderr.isatty(),
            )
        figures = {**found.model_dump(mode="json"), "failures": found.failures}
        stored = publish(figures, command=command_text("deadline.py", given), output=options.output)
    else:
        stored = read_figures(options.tables, names=(*DeadlineReport.model_fields, *CIRCUMSTANCES))
    report = DeadlineReport.model_validate({name: stored[name] for name in DeadlineReport.model_fields})
    if options.docs is not None:
        text = table(report, machine=stored["machine"]["cpu"], date=stored["date"], command=stored["command"])
        write_table(options.docs, MARK, text)
    for line in report.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 4 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
