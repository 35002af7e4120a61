"""Do FLOPs follow difficulty? Where depth gains an image much, a rule that knows what it does spends much on it.

    python benchmarks/difficulty.py BUNDLE CAMVID --split train:0006R0 \\
        -o benchmarks/results/difficulty.json --docs docs/benchmarks.md
    python benchmarks/difficulty.py --tables benchmarks/results/difficulty.json --docs docs/benchmarks.md

The second line writes the table again without measuring. What depth gains an image is the cross-entropy of its labels
by the first gate less that by the decode head with nothing stopped, in nats a pixel, both from the reference in
PyTorch. It is compared with the MACs that the deployed bundle spends on the image at its own thresholds: Spearman's
rank correlation within a drive, since drives differ in more than difficulty, with its interval over blocks of ten
seconds of recording. Rendered full streets stand beside it, each a block of its own. A look at images that are to stay
unseen, by what is frozen in `benchmarks/protocol`, is noted there before it is taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from protocol.frozen import keeping_unseen, note_beside
from report import (
    command_text,
    errors_in_a_line,
    output_file,
    page_with,
    publish,
    read_figures,
    write_table,
)
from rich.console import Console
from rich.progress import track

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import IGNORE, Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.errors import UsageError
from dovit_deploy.families.registry import model_from_spec, state_from_bundle
from dovit_deploy.families.vit.network import TokenGate, VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.measure.evaluate import check_classes
from dovit_deploy.measure.intervals import FEWEST_BLOCKS, Blocks, blocks_of
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import short_thresholds

MARK = "<!-- table: benchmarks/difficulty.py -->"
AIM = 0.3
"""For the rank correlation on photographs, with its interval above 0."""

RESAMPLES, LEVEL = 2000, 0.95
"""Of the bootstrap interval of the rank correlation."""

FULL = "rendered full streets"


class DepthGain:
    """How much better the whole network knows an image than its first gate.

    Args:
        bundle: of a vision transformer with gates that look at one token at a time.

    Raises:
        UsageError: of another network.
    """

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.spec
        if not isinstance(spec, VisionTransformerSpec) or not spec.gates:
            raise UsageError(f"{bundle.path.name} has no gates; it spends the same on every image")
        model = model_from_spec(spec, state_from_bundle(bundle)).eval()
        assert isinstance(model, VisionTransformer)
        gate = model.gates[0]
        if not isinstance(gate, TokenGate):
            raise UsageError(
                f"{bundle.path.name}: its first gate up-samples; only gates of single tokens are read here"
            )
        self.spec, self.model, self.head = spec, model, gate.head

    def of(self, pixels: NDArray[np.float32], label: NDArray[np.uint8]) -> float:
        """In nats a labelled pixel, positive where depth helps; NaN where nothing is labelled.

        Args:
            pixels: (1, 3, H, W), the model's input.
            label: (h, w) of the whole image, `IGNORE` where nothing is known.
        """
        spec, model = self.spec, self.model
        first, depth = spec.stage_layers[0][1], spec.depth
        with torch.inference_mode():
            tokens, tapped = model.run_layers(model.embed(torch.from_numpy(pixels)), (0, first), model.attend_at())
            early = self.head(tokens[spec.extra_tokens :])
            tokens, later = model.run_layers(tokens, (first, depth), model.attend_at())
            final = model.decode(tokens, [*tapped, *later])[0]
        rows, columns = spec.grid
        gate = early.T.reshape(-1, rows, columns).numpy()
        return cross_entropy(gate, label, spec) - cross_entropy(final.numpy(), label, spec)


def cross_entropy(logits: NDArray[np.float32], label: NDArray[np.uint8], spec: VisionTransformerSpec) -> float:
    """Of the labelled pixels, each judged by the cell of `logits` (K, rows, columns) that it lies in; mean, in nats."""
    rows, columns = logits.shape[1:]
    sides = tuple(spec.patch * own // cells for own, cells in zip(spec.grid, (rows, columns), strict=True))
    counts = label_counts(label, spec, cells=(rows, columns), sides=(sides[0], sides[1]), classes=len(logits))
    shifted = logits.astype(np.float64) - logits.max(axis=0)
    surprise = np.log(np.exp(shifted).sum(axis=0)) - shifted
    total = counts.sum()
    return float((counts * surprise).sum() / total) if total else float("nan")


def label_counts(
    label: NDArray[np.uint8],
    spec: VisionTransformerSpec,
    *,
    cells: tuple[int, int],
    sides: tuple[int, int],
    classes: int,
) -> NDArray[np.int64]:
    """Pixels of each class in each cell of the model's input: (K, rows, columns).

    The label is stretched to the input as the image is, by nearest neighbours, and padded as the network pads.
    """
    height, width = spec.size
    y = ((np.arange(height) + 0.5) * label.shape[0] / height).astype(int)
    x = ((np.arange(width) + 0.5) * label.shape[1] / width).astype(int)
    top, left = spec.pads_before
    whole = np.full((cells[0] * sides[0], cells[1] * sides[1]), IGNORE, dtype=np.uint8)
    whole[top : top + height, left : left + width] = label[y][:, x]
    by_cell = whole.reshape(cells[0], sides[0], cells[1], sides[1])
    return np.stack([(by_cell == number).sum(axis=(1, 3)) for number in range(classes)])


def measure(
    session: Session, gain: DepthGain, data: Dataset, *, name: str, seed: int, show: bool = False
) -> list[dict[str, Any]]:
    """Run every image of `data`; figures of each drive in it, with what they are made of."""
    check_classes(data, session.bundle.manifest)
    predictor = Predictor(session)
    gains, gmacs = [], []
    for number in track(range(len(data)), description=name, console=Console(stderr=True), disable=not show):
        sample = data.sample(number)
        pixels = predictor.to_input(sample.rgb)
        if pixels.shape[2:] != tuple(gain.spec.size):
            raise UsageError(f"{session.bundle.path.name} slides over {sample.stem}; images of one window are needed")
        gains.append(gain.of(pixels, sample.label))
        gmacs.append(predictor.predict(sample.rgb).tokens.gmacs_actual)
    blocks, moments = blocks_of(len(data), data.moments), data.moments
    drives = [name] * len(data) if moments is None else [moment.drive for moment in moments]
    return [
        drive_figures(
            drive,
            [gains[index] for index in indices],
            [gmacs[index] for index in indices],
            blocks.of(indices),
            seed=seed,
        )
        for drive in dict.fromkeys(drives)
        for indices in [[index for index, own in enumerate(drives) if own == drive and not np.isnan(gains[index])]]
        if indices
    ]


def drive_figures(
    name: str, gains: Sequence[float], gmacs: Sequence[float], blocks: Blocks, *, seed: int
) -> dict[str, Any]:
    """The rank correlation of one drive, and what it is made of."""
    return {
        "name": name,
        "images": len(gains),
        "blocks": blocks.count,
        "rank_correlation": number_or_none(spearman(gains, gmacs)),
        "interval": spearman_interval(gains, gmacs, blocks, seed=seed),
        "gains": list(gains),
        "gmacs": list(gmacs),
    }


def number_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else value


def table(report: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [
        "| drive | images, blocks | gain of depth, nats a pixel: p10, median, p90 | GMAC: p10, median, p90 "
        "| rank correlation (95 %) |",
        "|---|---|---|---|---|",
    ]
    for figures in (*report["photographs"], *report["rendered"]):
        gain, macs = (", ".join(f"{value:.2f}" for value in spread_of(figures[key])) for key in ("gains", "gmacs"))
        lines.append(
            f"| {figures['name']} | {figures['images']}, {figures['blocks']} | {gain} | {macs} | {_value(figures)} |"
        )
    judged = [figures for figures in report["photographs"] if figures["interval"] is not None]
    verdict = "no drive is long enough"
    if judged:
        verdict = "reached" if all(map(_reached, judged)) else "**missed**"
    thresholds = ", ".join(str(value) for value in report["thresholds"])
    return "\n".join(
        [
            *lines,
            "",
            f"Aim on drives of photographs that have an interval: at least {AIM}, the interval above 0: {verdict}.",
            "",
            f"{report['bundle']} at its own thresholds ({thresholds}), {report['engine']} {report['precision']}; "
            f"{report['machine']['cpu']}, {report['date']}; `{report['command']}`.",
        ]
    )


def spread_of(values: Sequence[float]) -> list[float]:
    """The tenth, fiftieth and ninetieth percentile."""
    return [float(value) for value in np.percentile(values, [10, 50, 90])]


def _value(figures: dict[str, Any]) -> str:
    if figures["rank_correlation"] is None:
        return "-"
    ends = figures["interval"]
    return f"**{figures['rank_correlation']:.2f}**" + ("" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})")


def _reached(figures: dict[str, Any]) -> bool:
    value, ends = figures["rank_correlation"], figures["interval"]
    return value is not None and ends is not None and value >= AIM and ends[0] > 0


def ranks(values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """1 for the smallest; equal values share the mean of the ranks they take up together."""
    _, group, size = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    # The mean of the first and the last rank of a group of equal values.
    shared: NDArray[np.float64] = (last - (size - 1) / 2)[group]
    return shared


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The linear correlation of both rows' ranks, -1 to 1; NaN where all values of a row are equal."""
    one, other = ranks(first), ranks(second)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else float("nan")


def spearman_interval(
    first: Sequence[float],
    second: Sequence[float],
    blocks: Blocks,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """An interval of `spearman`: percentiles over sets of whole blocks drawn with replacement; None for too few."""
    if blocks.count < FEWEST_BLOCKS:
        return None
    rng, pairs = np.random.default_rng(seed), np.array([first, second], dtype=np.float64)
    members = [np.flatnonzero(blocks.number == number) for number in range(blocks.count)]
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate([members[number] for number in rng.integers(0, blocks.count, blocks.count)])
        drawn.append(spearman(*pairs[:, chosen]))
    # A set whose values are all equal has no correlation.
    if np.isnan(drawn).all():
        return None
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difficulty_command(options: argparse.Namespace, splits: Sequence[str]) -> str:
    """That measures, without the folders of this machine."""
    words = [options.bundle.name, options.dataset.name, *(word for split in splits for word in ("--split", split))]
    return command_text("difficulty.py", [*words, "--scenes", str(options.scenes)])


def figures_of(options: argparse.Namespace, *, show: bool) -> dict[str, object]:
    """Everything that is measured of one bundle."""
    bundle = Bundle.open(options.bundle)
    gain = DepthGain(bundle)
    splits = options.split or ["val"]
    # All splits are found before the first is measured.
    parts = [dataset_from_path(options.dataset, split) for split in splits]
    for split in splits:
        note_beside(
            keeping_unseen(options.dataset, split),
            weights=bundle.manifest.provenance.source_sha256,
            seed=None,
            command=difficulty_command(options, splits),
        )
    full = RenderedScenes("difficulty", size=gain.spec.size, count=options.scenes)
    with Session(bundle, threads=1) as session:
        manifest = bundle.manifest

        def found(data: Dataset, name: str) -> list[dict[str, Any]]:
            return measure(session, gain, data, name=name, seed=options.seed, show=show)

        return {
            "bundle": options.bundle.name,
            "engine": session.backend.name,
            "precision": session.backend.precision,
            "thresholds": short_thresholds(np.asarray(manifest.defaults.thresholds, dtype=np.float32)),
            "seed": options.seed,
            "splits": splits,
            "photographs": [row for data, split in zip(parts, splits, strict=True) for row in found(data, split)],
            "rendered": found(full, FULL) if manifest.spec.classes == len(full.classes.names) else [],
        }


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--split", action="append", help="as `dovit eval` takes it; may be repeated; default: val")
    parser.add_argument("--scenes", type=int, default=100, help="rendered full streets (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="write the table from this result, measure nothing")
    parser.add_argument("-o", "--output", type=output_file)
    parser.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    options = parser.parse_args(arguments)
    if (options.bundle is None or options.dataset is None) == (options.tables is None):
        parser.error("a bundle and a data set to measure on, or --tables JSON, are needed")
    if options.scenes < FEWEST_BLOCKS:
        parser.error(f"--scenes {options.scenes}: at least {FEWEST_BLOCKS} are needed")
    torch.set_num_threads(1)
    if options.tables is not None:
        report = read_figures(options.tables, names=("photographs", "rendered"))
    else:
        figures = figures_of(options, show=sys.stderr.isatty())
        command = difficulty_command(options, figures["splits"])  # type: ignore[arg-type]
        report = publish(figures, command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, table(report))


if __name__ == "__main__":
    main()
