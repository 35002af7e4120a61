"""The default model on CamVid's validation clip: accuracy beside latency, against what one would do otherwise.

    python benchmarks/default_model.py CAMVID --bundle road-tiny.dovit --smaller smaller.dovit \\
        -o benchmarks/results/default_model.json --readme README.md

Rows: dense; token passing at the bundle's own thresholds and at others; the same weights exported at a smaller input
and run dense. mIoU in percent over 11 classes, void ignored, one confusion matrix over the set, at the labels' own
size. Latency is the model step in one thread; ratios are medians over frames of interleaved runs.
The validation clip is one scene next to training frames: these figures compare rows, they are no claim about roads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.runtime.images import read_image
from dovit_deploy.runtime.predictor import Predictor
from dovit_deploy.runtime.session import Session

VOID = 11
MARKS = ("<!-- table: benchmarks/default_model.py -->", "<!-- end of table -->")


@dataclass
class Row:
    """One way to run the model."""

    name: str
    predictor: Predictor
    options: dict[str, Any]
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((VOID, VOID), dtype=np.int64))
    latency: list[float] = field(default_factory=list)
    gmacs: list[float] = field(default_factory=list)

    def add(self, rgb: np.ndarray, labels: np.ndarray) -> None:
        """Segment one image and count it."""
        result = self.predictor.predict(rgb, **self.options)
        valid = labels < VOID
        pairs = VOID * labels[valid].astype(np.int64) + result.class_map[valid]
        self.confusion += np.bincount(pairs, minlength=VOID * VOID).reshape(VOID, VOID)
        self.latency.append(result.timing.model)
        self.gmacs.append(result.tokens.gmacs_actual)

    def figures(self, dense: Row) -> dict[str, Any]:
        """mIoU, MACs, and latency against `dense`."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        ratios = [theirs / ours for theirs, ours in zip(dense.latency, self.latency, strict=True)]
        return {
            "row": self.name,
            "miou": 100 * float(np.mean(hits[union > 0] / union[union > 0])),
            "pixel_accuracy": 100 * float(hits.sum() / self.confusion.sum()),
            "gmacs": statistics.mean(self.gmacs),
            "macs_saved": 1 - statistics.mean(self.gmacs) / statistics.mean(dense.gmacs),
            "speedup": statistics.median(ratios),
            "model_ms_p50": statistics.median(self.latency),
        }


def rows_of(bundle: Path, smaller: list[Path], thresholds: list[float]) -> list[Row]:
    """Dense first."""
    main = Predictor(Session(Bundle.open(bundle), threads=1))
    own = main.session.bundle.manifest.defaults.thresholds
    rows = [
        Row("dense", main, {"dense": True}),
        Row(f"token passing, own thresholds ({', '.join(f'{gate[0]:g}' for gate in own)})", main, {}),
    ]
    rows += [Row(f"token passing, threshold {value:g}", main, {"thresholds": value}) for value in thresholds]
    for path in smaller:
        predictor = Predictor(Session(Bundle.open(path), threads=1))
        height, width = predictor.spec.size
        rows.append(Row(f"dense, smaller image ({width}x{height})", predictor, {"dense": True}))
    return rows


def measure(dataset: Path, rows: list[Row], every: int) -> list[dict[str, Any]]:
    """Run every row on every image, interleaved, the order turning."""
    stems = (dataset / "val.txt").read_text().split()[::every]
    images = {path.stem: path for path in (dataset / "images" / "val").iterdir()}
    for row in rows:
        row.predictor.predict(read_image(images[stems[0]]), **row.options)
    for number, stem in enumerate(stems):
        rgb = read_image(images[stem])
        labels = np.asarray(Image.open(dataset / "labels" / "val" / f"{stem}.png"))
        for offset in range(len(rows)):
            rows[(number + offset) % len(rows)].add(rgb, labels)
    return [row.figures(rows[0]) for row in rows]


def table(report: dict[str, Any]) -> str:
    """The README's table."""
    lines = ["| | mIoU | MACs saved | speed-up over dense |", "|---|---|---|---|"]
    lines += [
        f"| {row['row']} | {row['miou']:.1f} | {row['macs_saved']:.0%} | {row['speedup']:.2f}x |"
        for row in report["rows"]
    ]
    machine = report["machine"]
    lines += [
        "",
        f"Default model, CamVid val ({report['images']} images of one clip), ONNX Runtime fp32, one thread, same "
        f"frames, interleaved; {machine['cpu']}, {report['date']}; `{report['command']}`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--smaller", type=Path, nargs="*", default=[])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.8, 0.95])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    figures = measure(
        arguments.dataset, rows_of(arguments.bundle, arguments.smaller, arguments.thresholds), arguments.every
    )
    report = {
        "command": "python benchmarks/default_model.py CAMVID --bundle road-tiny.dovit --smaller smaller.dovit",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_facts(),
        "versions": package_versions(),
        "images": len((arguments.dataset / "val.txt").read_text().split()[:: arguments.every]),
        "rows": figures,
    }
    print(json.dumps(report, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.readme is not None:
        text = arguments.readme.read_text()
        before, _, rest = text.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        arguments.readme.write_text(f"{before}{MARKS[0]}\n{table(report)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
