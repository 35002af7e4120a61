"""Do FLOPs follow difficulty? Rendered scenes of known content: objects in sight against the MACs that a bundle spends.

    python benchmarks/difficulty.py road-tiny.dovit --scenes 200 -o benchmarks/results/difficulty.json \\
        --docs docs/benchmarks.md
    python benchmarks/difficulty.py --tables benchmarks/results/difficulty.json --docs docs/benchmarks.md

The second line writes the table again without measuring. Two sets of scenes, every one a street of its own:

- from bare to full: of all that would stand or move there a share is left, from nothing to everything, chosen so that
  the counts spread about evenly (they saturate, since things hide each other);
- full streets alone, as they are drawn for training: emptier and busier traffic between the same houses.

An object counts when the renderer shows at least one pixel in 10,000 of it; sky, road and pavement are no objects. MACs
are those of the whole model at the bundle's own thresholds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import command_text, errors_in_a_line, output_file, page_with, publish, write_table
from rich.console import Console
from rich.progress import track

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.run import short_thresholds
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_scenes.dataset import scene_sample

MARK = "<!-- table: benchmarks/difficulty.py -->"
GROUPS = 5
AIM = 0.7
"""For the rank correlation of the first set."""

RESAMPLES, LEVEL = 2000, 0.95
"""Of the bootstrap interval of the rank correlation."""

SETS = {"bare to full": "streets from bare to full", "full": "full streets alone"}


def share_of(number: int, scenes: int) -> float:
    """Of the things of scene `number` from bare to full; squared, since the count rises steeply at first."""
    return float(((number + 0.5) / scenes) ** 2)


def measure(predictor: Predictor, *, name: str, scenes: int, seed: int, show: bool = False) -> dict[str, Any]:
    """Render and run the scenes of the set `name` of `SETS`; figures and, scene by scene, what they are made of."""
    objects, gmacs, dense = [], [], []
    # Each set has streets of its own.
    world = seed + list(SETS).index(name)
    for number in track(range(scenes), description=name, console=Console(stderr=True), disable=not show):
        share = share_of(number, scenes) if name == "bare to full" else 1.0
        scene = scene_sample(world, number, size=predictor.spec.size, share=share)
        tokens = predictor.predict(scene.rgb).tokens
        objects.append(scene.objects)
        gmacs.append(tokens.gmacs_actual)
        dense.append(tokens.gmacs_dense)
    return {
        "scenes": scenes,
        "rank_correlation": spearman(objects, gmacs),
        "interval": spearman_interval(objects, gmacs, seed=seed),
        "groups": groups(objects, gmacs, dense),
        "objects": objects,
        "gmacs": gmacs,
    }


def groups(objects: Sequence[int], gmacs: Sequence[float], dense: Sequence[float]) -> list[dict[str, Any]]:
    """Fifths of the scenes by their number of objects, fewest first; scenes of equal number in their own order."""
    # Stable, so that the groups do not depend on how ties are broken.
    rows = np.array([objects, gmacs, dense], dtype=np.float64)[:, np.argsort(objects, kind="stable")]
    return [
        {
            "scenes": part.shape[1],
            "objects": [int(part[0].min()), int(part[0].max())],
            "objects_mean": float(part[0].mean()),
            "gmacs": float(part[1].mean()),
            "flops_saved": float(1 - part[1].sum() / part[2].sum()),
        }
        for part in np.array_split(rows, GROUPS, axis=1)
    ]


def table(report: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md, and the correlations below it."""
    lines = ["| scenes | objects in sight | GMAC an image, mean | MACs saved |", "|---|---|---|---|"]
    for name, title in SETS.items():
        for number, group in enumerate(report["sets"][name]["groups"]):
            low, high = group["objects"]
            first = f"{title}, fifth with fewest objects" if number == 0 else f"fifth {number + 1}"
            lines.append(f"| {first} | {low} to {high} | {group['gmacs']:.3f} | {group['flops_saved']:.1%} |")
    lines += [""]
    for name, title in SETS.items():
        figures = report["sets"][name]
        low, high = figures["interval"]
        lines.append(
            f"- Rank correlation of objects and MACs over {figures['scenes']} {title}: "
            f"**{figures['rank_correlation']:.2f}** ({low:.2f} to {high:.2f})."
        )
    reached = report["sets"]["bare to full"]["rank_correlation"] >= AIM
    lines.append(f"- Aim for streets from bare to full: {AIM}, {'reached' if reached else '**missed**'}.")
    thresholds = ", ".join(str(value) for value in report["thresholds"])
    lines += [
        "",
        f"{report['bundle']} at its own thresholds ({thresholds}), {report['engine']} {report['precision']}; "
        f"{report['machine']['cpu']}, {report['date']}; `{report['command']}`.",
    ]
    return "\n".join(lines)


def figures_of(bundle: Path, *, scenes: int, seed: int, show: bool) -> dict[str, object]:
    """Everything that is measured of one bundle."""
    with Session(Bundle.open(bundle), threads=1) as session:
        manifest, predictor = session.bundle.manifest, Predictor(session)
        if not manifest.spec.gates:
            raise SystemExit(f"{bundle} has no gates; it spends the same on every image")
        return {
            "bundle": bundle.name,
            "engine": session.backend.name,
            "precision": session.backend.precision,
            "thresholds": short_thresholds(np.asarray(manifest.defaults.thresholds, dtype=np.float32)),
            "size": manifest.spec.size,
            "seed": seed,
            "sets": {name: measure(predictor, name=name, scenes=scenes, seed=seed, show=show) for name in SETS},
        }


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
    first: Sequence[float], second: Sequence[float], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """An interval of `spearman`: percentiles over sets of pairs drawn with replacement.

    The pairs are taken to be independent of each other.
    """
    rng, pairs = np.random.default_rng(seed), np.array([first, second], dtype=np.float64)
    drawn = [pairs[:, rng.integers(0, pairs.shape[1], pairs.shape[1])] for _ in range(resamples)]
    # A set that drew one pair alone has no correlation.
    low, high = np.nanquantile([spearman(*rows) for rows in drawn], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--scenes", type=int, default=200, help="of each of the two sets (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, metavar="JSON", help="write the table from this result, measure nothing")
    parser.add_argument("-o", "--output", type=output_file)
    parser.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    options = parser.parse_args(arguments)
    if (options.bundle is None) == (options.tables is None):
        parser.error("a bundle to measure, or --tables JSON, is needed")
    if options.scenes < GROUPS:
        parser.error(f"--scenes {options.scenes}: at least {GROUPS} are needed")
    if options.tables is not None:
        report = json.loads(options.tables.read_text(encoding="utf-8"))
    else:
        figures = figures_of(options.bundle, scenes=options.scenes, seed=options.seed, show=sys.stderr.isatty())
        words = [options.bundle.name, "--scenes", str(options.scenes), "--seed", str(options.seed)]
        report = publish(figures, command=command_text("difficulty.py", words), output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, table(report))


if __name__ == "__main__":
    main()
