"""Why not just a smaller input, fewer layers, or merged tokens? On the same frames, in one engine and thread a table.

    python benchmarks/why_not/compare.py CAMVID --split val --split train:0006R0 --bundle BUNDLE \\
        --smaller 384x288.dovit 320x240.dovit --dense-trained dense.dovit --dense-trained-smaller dense-384x288.dovit \\
        --shallower 10.dovit 8.dovit 6.dovit --merge 8 16 24 32 40 48 56 \\
        --runtimes onnxruntime:fp32 openvino:fp32 openvino:int8 \\
        -o benchmarks/results/why_not.json --readme README.md --docs docs/benchmarks.md
    python benchmarks/why_not/compare.py --tables benchmarks/results/why_not.json \\
        --readme README.md --docs docs/benchmarks.md

For int8 every bundle is exported with `--precision fp32,int8`; merging has no graphs in 8 bits and runs in fp32. The
second command writes the tables again without measuring. docs/benchmarks.md explains each row and how it is
compared. All ways run on a frame one after the other, the order turning from frame to frame. A split of what is to stay
unseen, by what is frozen in `benchmarks/protocol`, is measured only where that is committed, and the look is noted.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol.frozen import keeping_unseen, note_beside
from report import command_text, errors_in_a_line, output_file, publish

from dovit_deploy.datasets.dataset import Dataset, DatasetPart
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.evaluate import SegmentationTally, check_classes
from dovit_deploy.measure.intervals import blocks_of
from why_not.result import Report, SplitReport, figures_of, split_report
from why_not.tables import write_tables
from why_not.ways import Alternatives, Runtime, Way, WayComparison

CURVE = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.98")


def measure(comparison: WayComparison, data: Dataset, split: str, *, show: bool = False) -> SplitReport:
    """Run every way on every frame of `data`."""
    ways = measured_ways(comparison, data, split, show=show)
    names = [entry.name for entry in comparison.manifest.classes]
    return split_report(split, data.stems, ways, names, blocks_of(len(data), data.moments), comparison.runtime)


def measured_ways(comparison: WayComparison, data: Dataset, split: str, *, show: bool = False) -> list[Way]:
    """Every way after all frames of `data`, the order of the ways turning from frame to frame."""
    check_classes(data, comparison.manifest)
    ways = [dataclasses.replace(way, tally=SegmentationTally(), model_ms=[], wall_ms=[]) for way in comparison.ways]
    comparison.warm_up()
    # One untimed run each: the first allocates.
    warm = comparison.frame(data.sample(0), 0)
    for way in ways:
        way.run(warm)
    console = Console(stderr=True)
    for number in track(range(len(data)), description=split, console=console, disable=not show):
        frame = comparison.frame(data.sample(number), number)
        for way in turned(ways, number):
            way.measure(frame)
    return ways


def turned(ways: Sequence[Way], number: int) -> list[Way]:
    """The order on frame `number`: begins one later from frame to frame, every second time backwards."""
    start = number % len(ways)
    order = [*ways[start:], *ways[:start]]
    # Turning alone would leave every way behind the same neighbour.
    return order[::-1] if number % 2 else order


def part(data: Dataset, every: int) -> Dataset:
    """Each `every`th image."""
    return data if every == 1 else DatasetPart(data, range(0, len(data), every))


def runtime(text: str) -> Runtime:
    """A type for `argparse`: ENGINE:PRECISION."""
    engine, colon, precision = text.partition(":")
    if not (engine and colon and precision):
        raise argparse.ArgumentTypeError(f"{text} given; ENGINE:PRECISION is needed, as openvino:int8")
    return Runtime(engine, precision)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("dataset", type=Path, nargs="?")
    result.add_argument("--split", action="append", help="as `dovit eval` takes it; may be repeated; default: val")
    result.add_argument("--bundle", type=Path, help="the model with gates")
    result.add_argument("--thresholds", nargs="*", default=["0.8", "0.9"], help="further operating points: T or T,T,T")
    result.add_argument("--curve", nargs="*", default=list(CURVE), help="thresholds for the curve alone")
    result.add_argument("--smaller", type=Path, nargs="*", default=[], help="its weights exported at smaller inputs")
    result.add_argument("--dense-trained", type=Path, help="trained dense with the same budget")
    result.add_argument("--dense-trained-smaller", type=Path, nargs="*", default=[], help="that at smaller inputs")
    result.add_argument("--shallower", type=Path, nargs="*", default=[], help="trained dense with fewer layers")
    result.add_argument("--merge", type=int, nargs="*", default=[], help="tokens merged per layer")
    result.add_argument(
        "--runtimes", nargs="+", type=runtime, default=[Runtime()], metavar="ENGINE:PRECISION", help="a table for each"
    )
    result.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=True, help="random stopping, and the first gate"
    )
    result.add_argument("--every", type=int, default=1)
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result; measure nothing")
    result.add_argument("--readme", type=Path)
    result.add_argument("--docs", type=Path)
    return result


def measured(arguments: argparse.Namespace, command: str) -> Report:
    """Measure all splits and publish the result."""
    chosen = Alternatives(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Alternatives)})
    splits = arguments.split or ["val"]
    # All splits are found before the first is measured.
    parts = [part(dataset_from_path(arguments.dataset, split), arguments.every) for split in splits]
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        # All bundles are loaded in all engines before the first frame runs: what one of them refuses shows now.
        comparisons = [WayComparison(chosen, folder=Path(folder), runtime=one) for one in arguments.runtimes]
        for split in splits:
            # A look at what is to stay unseen, of weights that nobody froze.
            weights = comparisons[0].manifest.provenance.source_sha256
            note_beside(keeping_unseen(arguments.dataset, split), weights=weights, seed=None, command=command)
        reports = [
            measure(comparison, data, split, show=True)
            for comparison in comparisons
            for data, split in zip(parts, splits, strict=True)
        ]
    figures = figures_of(arguments.dataset.name, arguments.every, reports)
    return Report.model_validate(publish(figures, command=command, output=arguments.output))


@errors_in_a_line()
def main() -> None:
    """Measure, or read what was measured, and write the tables."""
    command_line = parser()
    arguments = command_line.parse_args()
    if arguments.tables is not None:
        report = Report.model_validate_json(arguments.tables.read_text(encoding="utf-8"))
        # Results from before this folder existed name the script by its old path, which a reader could not run.
        command = report.command.replace("benchmarks/why_not.py", "benchmarks/why_not/compare.py")
        report = report.model_copy(update={"command": command})
    elif arguments.dataset is None or arguments.bundle is None:
        command_line.error("DATASET and --bundle are needed, or --tables")
    else:
        report = measured(arguments, command_text("why_not/compare.py", sys.argv[1:]))
    write_tables(report, readme=arguments.readme, docs=arguments.docs)


if __name__ == "__main__":
    main()
