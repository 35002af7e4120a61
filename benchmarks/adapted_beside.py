"""Which of two adapted bundles of one network keeps more of its dense answer? At equal MACs, image by image.

    python benchmarks/adapted_beside.py none.dovit pooled.dovit IMAGES --taken 64 -o benchmarks/results/context.json

Both run at the same thresholds, one for all gates, and what the second agrees with the dense network by is set beside
the first's curve of the same image, between its points, where it saves as much. IMAGES is a folder; of its images those
are left out that `dovit adapt --limit TAKEN` took.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import at_least, command_text, errors_in_a_line, output_file, publish

from dovit_deploy.adapt.images import spread
from dovit_deploy.errors import UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.intervals import Blocks, mean_interval
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.images import read_image

AgreementCurves = NDArray[np.float64]
THRESHOLDS = (0.99, 0.98, 0.95, 0.9)


def held_out(folder: Path, taken: int, count: int) -> list[Path]:
    """At most `count` images of `folder` that `adapt` did not take; raises UsageError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    known = set(spread(len(paths), taken))
    others = [path for number, path in enumerate(paths) if number not in known]
    if not others:
        raise UsageError(f"{folder}: {len(paths)} images, of which {taken} were taken; none is left")
    return [others[number] for number in spread(len(others), count)]


def curves(sessions: Sequence[Session], paths: Sequence[Path], thresholds: Sequence[float]) -> AgreementCurves:
    """(images, sessions, thresholds, 2): share of the MACs saved, and of the pixels with the dense class."""
    found = np.zeros((len(paths), len(sessions), len(thresholds), 2))
    predictors = [Predictor(session) for session in sessions]
    for number, path in enumerate(paths):
        rgb = read_image(path)
        dense = predictors[0].run(rgb, RunSettings.resolve(sessions[0].bundle.manifest, dense=True))
        for row, predictor in enumerate(predictors):
            manifest = predictor.session.bundle.manifest
            for column, threshold in enumerate(thresholds):
                result = predictor.run(rgb, RunSettings.resolve(manifest, thresholds=threshold))
                saved = 1 - result.tokens.gmacs_actual / result.tokens.gmacs_dense
                found[number, row, column] = saved, 1 - result.differing(dense)
        print(f"{number + 1} of {len(paths)} images", file=sys.stderr, flush=True)
    return found


def gains(found: AgreementCurves, nothing: float) -> tuple[AgreementCurves, AgreementCurves]:
    """(images, thresholds): what the first one's curve has where the second saves as much, and how much more that has.

    Args:
        found: as `curves` gives it, of two, at falling thresholds.
        nothing: what the first saves with nothing stopped, where it agrees with dense.
    """
    beside = np.array(
        [
            np.interp(second[:, 0], [nothing, *first[:, 0]], [1.0, *first[:, 1]])
            for first, second in zip(found[:, 0], found[:, 1], strict=True)
        ]
    )
    return beside, found[:, 1, :, 1] - beside


def rows_of(found: AgreementCurves, thresholds: Sequence[float], nothing: float) -> list[dict[str, object]]:
    """A row a threshold: means over the images, and the interval of the gain."""
    beside, more = gains(found, nothing)
    rows: list[dict[str, object]] = []
    for column, threshold in enumerate(thresholds):
        first, second = found[:, 0, column].mean(0), found[:, 1, column].mean(0)
        rows.append(
            {
                "threshold": threshold,
                "first": {"saved": float(first[0]), "agreement": float(first[1])},
                "second": {"saved": float(second[0]), "agreement": float(second[1])},
                "first_there": float(beside[:, column].mean()),
                "gain": float(more[:, column].mean()),
                "gain_interval": mean_interval(more[:, column].tolist(), Blocks(np.arange(len(more)))),
            }
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="adapted_beside.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="a bundle")
    parser.add_argument("second", type=Path, help="another one of the same network and size")
    parser.add_argument("images", type=Path, help="a folder")
    parser.add_argument("--taken", type=at_least(0), default=0, help="images that adapt took, left out (default 0)")
    parser.add_argument("--count", type=at_least(1), default=48, help="images at most (default 48)")
    parser.add_argument("-o", "--output", type=output_file)
    given = parser.parse_args()
    thresholds = sorted(THRESHOLDS, reverse=True)
    with errors_in_a_line():
        paths = held_out(given.images, given.taken, given.count)
        with Session(given.first, threads=1) as first, Session(given.second, threads=1) as second:
            spec = first.bundle.manifest.spec
            if second.bundle.manifest.spec.size != spec.size:
                raise UsageError("the two bundles take images of different sizes")
            found = curves((first, second), paths, thresholds)
            cost = cost_model(spec)
            nothing = 1 - cost.actual(spec.counts).total / cost.dense().total
        figures: dict[str, object] = {"images": len(paths), "size": list(spec.size)}
        figures["rows"] = rows_of(found, thresholds, nothing)
        publish(figures, command=command_text("adapted_beside.py", sys.argv[1:]), output=given.output)


if __name__ == "__main__":
    main()
