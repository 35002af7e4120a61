"""Would another decision than "this token's confidence is above one threshold" pay? Forms of it at equal MACs.

    python benchmarks/decisions/compare.py road-small distilled.dovit --dataset CAMVID --split train:0006R0 \\
        --fitted train:@benchmarks/protocol/held.txt -o benchmarks/results/better_decisions.json \\
        --docs docs/benchmarks.md
    python benchmarks/decisions/compare.py --tables benchmarks/results/better_decisions.json --docs docs/benchmarks.md

The deployed graphs run with decisions of another kind at each gate. Forms:

    one threshold      for all gates and classes, of the gate's largest probability
    one per gate       the probability is first turned into how often a gate so sure is right: a logistic curve a gate
    one per class      the same with a curve for each gate and class: thresholds per gate and class
    least of 3x3       a token is as sure as the least sure of its neighbours that still run
    mean of 3x3        ... as they are in the mean
    same in 3x3        it also takes neighbours that still run to have the same class
    keep K per class   of those that would stop the K surest of each class run on, as context of the rest

Curves are fitted to other images (--fitted), on which thresholds are also searched that are predicted to save each
share of the MACs; every form really runs at these thresholds. Between them agreement and counts of pixels are
interpolated, image by image, to where the set as a whole saves exactly as much; intervals are those of `dovit eval`.
A look at images that are to stay unseen, by what is frozen in `benchmarks/protocol`, is noted there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from protocol.frozen import keeping_unseen, note_beside
from report import at_least, command_text, errors_in_a_line, output_file, page_with, publish, read_figures, write_table
from rich.console import Console
from rich.progress import track

from decisions.forms import PLAIN, Form, Numbers, fitted_curves, forms, threshold_for
from decisions.steered import FirstStageKept, recorded, run_with
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.evaluate import check_classes
from dovit_deploy.measure.intervals import Blocks, blocks_of, mean_interval, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.transforms import to_class_map

MARK = "<!-- table: benchmarks/decisions/compare.py -->"
RUN_AT = (0.28, 0.35, 0.43, 0.53)
"""Shares of the MACs that thresholds are predicted to save."""
SHOWN_AT = (0.3, 0.4, 0.5)


# What is measured.


@dataclass(frozen=True)
class MeasuredForm:
    """One form at each of its thresholds, on each image."""

    saved: Numbers
    """(thresholds, n): MACs, as a share of dense."""
    agreement: Numbers
    """(thresholds, n): share of the pixels with the dense class."""
    counts: NDArray[np.float64]
    """(thresholds, n, 3, K): of `ClassCounts`."""

    def at(self, share: float) -> tuple[Numbers, ClassCounts] | None:
        """Agreement (n,) and counts (n, K) where the set saves exactly `share`; None: it does nowhere."""
        means = self.saved.mean(axis=1)
        if not means.min() <= share <= means.max():
            return None
        order = np.argsort(means)
        above = int(np.clip(np.searchsorted(means[order], share), 1, len(means) - 1))
        first, second = order[above - 1], order[above]
        weight = (share - means[first]) / max(means[second] - means[first], 1e-12)
        agreement, counts = (
            (1 - weight) * values[first] + weight * values[second] for values in (self.agreement, self.counts)
        )
        return agreement, ClassCounts(*(np.rint(counts[:, part]).astype(np.int64) for part in range(3)))


def measured(
    session: FirstStageKept, data: Dataset, indices: Sequence[int], asked: Mapping[Form, Sequence[float]], *, show: bool
) -> dict[Form, MeasuredForm]:
    """Every form at each of its thresholds on the images numbered `indices`."""
    manifest, predictor, cost = session.bundle.manifest, Predictor(session), cost_model(session.bundle.manifest.spec)
    rows: dict[Form, list[list[tuple[float, float, NDArray[np.int64]]]]] = {form: [] for form in asked}
    for number in track(indices, data.name, console=Console(stderr=True), disable=not show):
        sample = data.sample(number)
        pixels, dense = predictor.to_input(sample.rgb), predictor.predict(sample.rgb, dense=True).class_map
        session.next_image()
        for form, thresholds in asked.items():
            row = []
            for threshold in thresholds:
                logits, kept = run_with(
                    session,
                    pixels,
                    lambda seen, form=form, at=threshold: form.leaving(seen, at),  # type: ignore[misc]
                )
                answer = to_class_map(
                    logits[0],
                    manifest.spec.size,
                    (sample.rgb.shape[0], sample.rgb.shape[1]),
                    cover=manifest.preprocessing.logits_cover,
                    patch=manifest.spec.patch,
                )
                counts = ClassCounts.of(sample.label, answer, classes=manifest.spec.classes)
                saved = 1 - cost.actual(kept).total / cost.dense().total
                parts = np.stack([counts.hit, counts.true, counts.predicted])
                row.append((saved, float((answer == dense).mean()), parts))
            rows[form].append(row)
    return {form: _gathered(found) for form, found in rows.items()}


def _gathered(rows: Sequence[Sequence[tuple[float, float, NDArray[np.int64]]]]) -> MeasuredForm:
    by_threshold = list(zip(*rows, strict=True))
    saved, agreement, counts = (
        np.array([[image[part] for image in column] for column in by_threshold], dtype=np.float64) for part in range(3)
    )
    return MeasuredForm(saved, agreement, counts)


def compared(found: Mapping[Form, MeasuredForm], blocks: Blocks) -> list[dict[str, Any]]:
    """Each form beside the first, where both save as much."""
    (plain, *_), rows = found.values(), []
    for form, one in found.items():
        for share in SHOWN_AT:
            base, here = plain.at(share), one.at(share)
            if base is None or here is None:
                continue
            gains = 100 * (here[0] - base[0])
            rows.append(
                {
                    "form": form.name,
                    "saved": share,
                    "agreement": 100 * float(here[0].mean()),
                    "gain": float(gains.mean()),
                    "gain_interval": mean_interval(gains.tolist(), blocks),
                    "miou": here[1].miou,
                    "miou_gain": here[1].miou - base[1].miou,
                    "miou_gain_interval": miou_drop_interval(here[1], base[1], blocks),
                }
            )
    return rows


def figures_of(path: Path, options: argparse.Namespace, command: str, *, show: bool) -> dict[str, Any]:
    """Everything that is measured of one bundle."""
    bundle = Bundle.open(path)
    data, fitted = (dataset_from_path(options.dataset, split) for split in (options.split, options.fitted))
    for one in (data, fitted):
        check_classes(one, bundle.manifest)
    weights = bundle.manifest.provenance.source_sha256
    note_beside(keeping_unseen(options.dataset, options.split), weights=weights, seed=None, command=command)
    with FirstStageKept(bundle, threads=1) as session:
        spec, predictor = bundle.manifest.spec, Predictor(session)
        chosen = spread(len(fitted), options.count)
        seen = [
            recorded(session, predictor.to_input(fitted.sample(number).rgb))
            for number in track(chosen, fitted.name, console=Console(stderr=True), disable=not show)
        ]
        every = forms(fitted_curves(seen, spec.classes))
        asked = {form: [threshold_for(form, share, seen, spec) for share in RUN_AT] for form in every}
        indices = spread(len(data), options.count)
        found = measured(session, data, indices, asked, show=show)
    blocks = blocks_of(len(data), data.moments).of(indices)
    return {
        "bundle": path.name,
        "images": len(indices),
        "blocks": blocks.count,
        "fitted_images": len(seen),
        "thresholds": {form.name: thresholds for form, thresholds in asked.items()},
        "rows": compared(found, blocks),
    }


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` numbers, evenly."""
    numbers = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return [int(number) for number in numbers]


def page(report: dict[str, Any]) -> str:
    """A table for each bundle: what each form has more than one threshold, at equal MACs."""
    lines: list[str] = []
    for model in report["models"]:
        shares = sorted({row["saved"] for row in model["rows"]})
        cells = {(row["form"], row["saved"]): row for row in model["rows"]}
        lines += [
            f"{model['bundle'].removesuffix('.dovit')}, {model['images']} images in {model['blocks']} blocks:",
            "",
            "| form | " + " | ".join(f"{share:.0%} saved: as dense | mIoU" for share in shares) + " |",
            "|---" * (1 + 2 * len(shares)) + "|",
        ]
        for form in dict.fromkeys(row["form"] for row in model["rows"]):
            row_cells = [_cells(cells.get((form, share)), plain=form == PLAIN) for share in shares]
            lines.append(f"| {form} | " + " | ".join(row_cells) + " |")
        lines.append("")
    machine = report["machine"]["cpu"]
    source = f"{report['dataset']} ({report['split']}), fitted to {report['fitted']}; ONNX Runtime fp32, {machine}, "
    return "\n".join([*lines, f"{source}{report['date']}; `{report['command']}`."])


def _cells(row: dict[str, Any] | None, *, plain: bool) -> str:
    if row is None:
        return " | "
    if plain:
        return f"{row['agreement']:.2f}% | {row['miou']:.2f}"
    return f"{_gain(row['gain'], row['gain_interval'])} | {_gain(row['miou_gain'], row['miou_gain_interval'])}"


def _gain(value: float, ends: Sequence[float] | None) -> str:
    return f"{value:+.2f}" + ("" if ends is None else f" ({ends[0]:z.2f} to {ends[1]:z.2f})")


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="*", help="of models with gates")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--split", default="val", help="as `dovit eval` takes it (default val)")
    parser.add_argument("--fitted", default="train", metavar="SPLIT", help="what curves and thresholds are fitted to")
    parser.add_argument("--count", type=at_least(8), default=32, help="images of each, spread evenly (default 32)")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result, measure nothing")
    parser.add_argument("-o", "--output", type=output_file)
    parser.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    options = parser.parse_args(arguments)
    if (not options.bundles or options.dataset is None) == (options.tables is None):
        parser.error("bundles and --dataset to measure on, or --tables JSON, are needed")
    if options.tables is not None:
        report = read_figures(options.tables, names=("models", "dataset", "split"))
    else:
        command = command_text("decisions/compare.py", sys.argv[1:] if arguments is None else arguments)
        show = sys.stderr.isatty()
        figures: dict[str, object] = {
            "dataset": options.dataset.name,
            "split": options.split,
            "fitted": options.fitted,
            "models": [figures_of(path, options, command, show=show) for path in options.bundles],
        }
        report = publish(figures, command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, page(report))


if __name__ == "__main__":
    main()
