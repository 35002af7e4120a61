"""What is a network worth that `dovit adapt` made, beside one whose gates were trained with labels?

    python benchmarks/adapted.py distilled.dovit CAMVID --given dense.dovit --trained trained.dovit \\
        --split val --split train:0006R0 -o benchmarks/results/adapted-distilled.json
    python benchmarks/adapted.py frozen.dovit CAMVID --split val --split train:0006R0 \\
        -o benchmarks/results/adapted-frozen.json
    python benchmarks/adapted.py --tables benchmarks/results/adapted-distilled.json \\
        benchmarks/results/adapted-frozen.json --docs docs/adapt.md

Of each split the table of `dovit adapt --labels`, at the bundle's own thresholds (with --saved at those that its
calibration predicts to save as much) and along the curve of that calibration: the rule, random stopping at the same
counts, everything at each gate, smaller inputs. --given is the network as it was given, of a fine-tuned bundle
(`--keep-dense`); all is held to it. --trained runs beside it on the same images: the difference is paired. A look at
images that are to stay unseen, by what is frozen in `benchmarks/protocol`, is noted there before it is taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from protocol.frozen import keeping_unseen, note_beside
from report import command_text, errors_in_a_line, output_file, page_with, publish, read_figures, write_table
from rich.console import Console
from rich.progress import Progress, track

from dovit_deploy.adapt.comparison import ComparedWith, table_of
from dovit_deploy.adapt.comparison import beside as beside_curve
from dovit_deploy.adapt.report import TableEntry, WayEntry
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import Interval
from dovit_deploy.calibrate.images import SplitImages
from dovit_deploy.commands.smaller_input import smaller_inputs
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import UsageError
from dovit_deploy.measure.controls import Steering
from dovit_deploy.measure.evaluate import check_classes
from dovit_deploy.measure.intervals import miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session

MARK = "<!-- table: benchmarks/adapted.py -->"


class ScoredAnswers:
    """What one bundle answers to the images of a split, image by image, in one way."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts: list[ClassCounts] = []
        self.gmacs: list[tuple[float, float]] = []
        """Actual and dense."""

    def add(self, label: ClassMap | None, result: SegmentationResult) -> None:
        """Take the answer to the next image."""
        assert label is not None
        self.counts.append(ClassCounts.of(label, result.class_map, classes=self.classes))
        self.gmacs.append((result.tokens.gmacs_actual, result.tokens.gmacs_dense))

    @property
    def stacked(self) -> ClassCounts:
        """(n, K)."""
        return ClassCounts.stacked(self.counts)

    @property
    def flops_saved(self) -> float:
        """Over all images."""
        actual, dense = (sum(column) for column in zip(*self.gmacs, strict=True))
        return float(1 - actual / dense)


def beside(ours: Session, trained: Session, images: SplitImages, *, show: bool) -> dict[str, Any]:
    """Both bundles as they run, on the same images; of the trained one also dense and random stopping."""
    classes = ours.bundle.manifest.spec.classes
    own, dense, rule, random = (ScoredAnswers(classes) for _ in range(4))
    mine, theirs, steering = Predictor(ours), Predictor(trained), Steering(trained)
    numbers = track(range(len(images.stems)), "trained with labels", console=Console(stderr=True), disable=not show)
    for number in numbers:
        image = images.image(number)
        result = theirs.predict(image.rgb)
        rule.add(image.label, result)
        random.add(image.label, steering.random(image.rgb, result.tokens, number=number))
        dense.add(image.label, theirs.predict(image.rgb, dense=True))
        own.add(image.label, mine.predict(image.rgb))

    def less(before: ScoredAnswers, after: ScoredAnswers) -> dict[str, Any]:
        ends = miou_drop_interval(before.stacked, after.stacked, images.blocks)
        return {"points": before.stacked.miou - after.stacked.miou, "interval": ends}

    return {
        "bundle": trained.bundle.path.name,
        "thresholds": trained.bundle.manifest.defaults.thresholds,
        "flops_saved": rule.flops_saved,
        "dense_miou": dense.stacked.miou,
        "miou": rule.stacked.miou,
        "drop": less(dense, rule),
        "random": less(rule, random),
        "ahead_of_adapted": less(rule, own) | {"flops_saved": own.flops_saved},
    }


def measured(options: argparse.Namespace, command: str, *, show: bool) -> dict[str, object]:
    """Everything that is asked of one bundle."""
    bundle = Bundle.open(options.bundle)
    calibration = bundle.calibration()
    if calibration is None:
        raise UsageError(f"{bundle.path.name} is not calibrated, so that its curve is unknown: dovit calibrate")
    given, trained = (None if path is None else Bundle.open(path) for path in (options.given, options.trained))
    # All splits are found before the first is measured.
    parts = {split: dataset_from_path(options.dataset, split) for split in options.split or ["val"]}
    for data in parts.values():
        check_classes(data, bundle.manifest)
    for split in parts:
        for one in filter(None, (bundle, trained)):
            weights = one.manifest.provenance.source_sha256
            note_beside(keeping_unseen(options.dataset, split), weights=weights, seed=None, command=command)
    found = []
    with ExitStack() as stack:
        session, other, label = (
            None if one is None else stack.enter_context(Session(one, threads=1)) for one in (bundle, given, trained)
        )
        assert session is not None
        smaller = stack.enter_context(smaller_inputs(given or bundle, threads=1))
        rivals = ComparedWith.of(calibration, smaller=smaller.sessions, left_out=smaller.left_out, original=other)
        if options.saved is not None:
            rivals = replace(rivals, chosen=beside_curve(calibration.curve, options.saved))
        if rivals.chosen is None:
            raise UsageError(f"{bundle.path.name}: no thresholds of its curve are predicted to save that much")
        for split, data in parts.items():
            images = SplitImages(data, name=f"{options.dataset.name} ({split})", split=split)
            with Progress(console=Console(stderr=True), disable=not show) as bars:
                bar = bars.add_task(split, total=len(data))
                entry = table_of(session, images, range(len(data)), rivals, advance=lambda: bars.advance(bar))  # noqa: B023
            found.append(
                {
                    "split": split,
                    "table": entry.model_dump(mode="json"),
                    "trained": None if label is None else beside(session, label, images, show=show),
                }
            )
    return {
        "bundle": bundle.path.name,
        "budget": calibration.budget.text if options.saved is None else f"{options.saved:.0%} saved, predicted",
        "splits": found,
    }


def page(reports: Sequence[dict[str, Any]]) -> str:
    """The networks, and what is simpler than each, split by split."""
    networks = [
        "| network | images | dense | MACs saved | mIoU | drop (95 %) | as given (95 %) | random has less (95 %) |"
    ]
    ways = ["| instead of | on | is | MACs saved | drop (95 %) | the rule there has more (95 %) |"]
    networks.append("|---" * 8 + "|")
    ways.append("|---" * 6 + "|")
    for report in reports:
        for part in report["splits"]:
            if part["trained"] is not None:
                networks.append(_trained_row(part["trained"], part["split"]))
            table = TableEntry.model_validate(part["table"])
            networks.append(_adapted_row(report["bundle"], table, part["split"]))
            simpler = [way for way in table.ways if way.kind in ("static", "smaller-input")]
            ways += [_simpler_row(report["bundle"], way, part["split"]) for way in simpler]
    return "\n".join([*networks, "", *ways, "", f"{_source(reports)}"])


def _trained_row(trained: dict[str, Any], split: str) -> str:
    drop, random = trained["drop"], trained["random"]
    return _row(
        _name(trained["bundle"]),
        split,
        f"{trained['dense_miou']:.1f}",
        f"{trained['flops_saved']:.1%}",
        f"{trained['miou']:.1f}",
        _points(drop["points"], drop["interval"]),
        "",
        _points(random["points"], random["interval"]),
    )


def _adapted_row(bundle: str, table: TableEntry, split: str) -> str:
    rule, dense = table.rule, table.dense
    (random,) = (way for way in table.ways if way.kind == "random")
    assert rule is not None and rule.miou is not None and rule.drop is not None
    assert random.rule is not None and table.dense_miou is not None
    own = table.dense_miou if dense is None or dense.miou is None else dense.miou
    return _row(
        _name(bundle),
        split,
        f"{own:.1f}",
        f"{rule.flops_saved:.1%}",
        f"{rule.miou:.1f}",
        _points(rule.drop, _ends(rule.drop_interval)),
        _points(100 * rule.agreement, _ends(rule.agreement_interval, scale=100)),
        _points(random.rule.gain, _ends(random.rule.gain_interval)),
    )


def _simpler_row(bundle: str, way: WayEntry, split: str) -> str:
    assert way.drop is not None
    gain = "" if way.rule is None else _points(way.rule.gain, _ends(way.rule.gain_interval))
    drop = _points(way.drop, _ends(way.drop_interval))
    return _row(_name(bundle), split, way.name, f"{way.flops_saved:.1%}", drop, gain)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(bundle: str) -> str:
    return bundle.removesuffix(".dovit")


def _points(value: float, ends: Sequence[float] | None) -> str:
    return f"{value:z.2f}" + ("" if ends is None else f" ({ends[0]:z.2f} to {ends[1]:z.2f})")


def _ends(interval: Interval | None, *, scale: float = 1.0) -> tuple[float, float] | None:
    return None if interval is None else (scale * interval.low, scale * interval.high)


def _source(reports: Sequence[dict[str, Any]]) -> str:
    machine, date = reports[0]["machine"], max(report["date"] for report in reports)
    commands = "; ".join(f"`{report['command']}`" for report in reports)
    return f"ONNX Runtime fp32, one thread, {machine['cpu']}, {date}; {commands}."


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="that was adapted, and calibrated")
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--given", type=Path, help="bundle of the network as it was given, of a fine-tuned one")
    parser.add_argument("--trained", type=Path, help="bundle of a network whose gates were trained with labels")
    parser.add_argument("--split", action="append", help="as `dovit eval` takes it; may be repeated; default: val")
    parser.add_argument(
        "--saved", type=float, metavar="FRACTION", help="at the curve's thresholds that are predicted to save as much"
    )
    parser.add_argument("--tables", type=Path, nargs="+", metavar="JSON", help="write the tables of these results")
    parser.add_argument("-o", "--output", type=output_file)
    parser.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    options = parser.parse_args(arguments)
    if (options.bundle is None or options.dataset is None) == (options.tables is None):
        parser.error("a bundle and a data set to measure on, or --tables JSON, are needed")
    if options.saved is not None and options.trained is not None:
        parser.error("--trained runs beside the bundle's own thresholds: not with --saved")
    if options.tables is not None:
        reports = [read_figures(path, names=("bundle", "splits")) for path in options.tables]
    else:
        command = command_text("adapted.py", sys.argv[1:] if arguments is None else arguments)
        figures = measured(options, command, show=sys.stderr.isatty())
        reports = [publish(figures, command=command, output=options.output)]
    if options.docs is not None:
        write_table(options.docs, MARK, page(reports))


if __name__ == "__main__":
    main()
