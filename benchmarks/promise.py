"""Is what `calibrate --max-disagree` promises true as often as it says, and does `run --audit` notice what ends it?

    python benchmarks/promise.py --work work/promise --drives 40 -o benchmarks/results/promise.json

Drives along rendered streets, each a unit of a few frames far apart, by day, in fog and at night; of every frame the
share of pixels that differ from dense is measured at a sequence of thresholds. What is measured lies in --work, drive
by drive, and is not measured again. Then, without running anything:

- calibrations are simulated on drives drawn anew each time, so that the truth is known: the mean of all drives. Broken
  is a promise whose setting is above the limit there. Resplits divide the drives that there are, each into one part.
- streams of audited frames are drawn drive by drive, in control and from day to fog or night.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import at_least, command_text, errors_in_a_line, output_file, publish
from rich.console import Console
from rich.progress import track

from dovit_deploy.betting import DriftEvidence, best_bet, p_value, shown_in_sequence, units_needed
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_scenes import street_frames

THRESHOLDS = (0.98, 0.95, 0.9, 0.8, 0.7)
"""From cautious to bold."""
SHIFTED = 2
"""The one of them that is measured in fog and at night, too."""
FRAMES = 2
"""Of each drive, five seconds apart."""
SIZE = (240, 320)
CONFIDENCE = 0.95
TIMES_LEAST = 20
"""Drives of a simulated test, in least numbers: enough for most to promise something."""
RESPLIT_LIMITS = (0.15, 0.175, 0.2)
"""For which the drives that there are suffice, with some left to be judged on."""

StreetImage = NDArray[np.uint8]
DriveLosses = NDArray[np.float64]
"""(drives, settings): mean share of differing pixels over the frames of a drive; in fog and at night of one setting."""


def fog(rgb: StreetImage) -> StreetImage:
    """Dense: half of what is near has faded into grey, and nearly all that is far, in the upper part."""
    down = np.maximum(np.linspace(0, 1, rgb.shape[0]) - 0.4, 0) / 0.6
    haze = (0.85 - 0.35 * down)[:, None, None]
    return np.asarray(np.rint(rgb * (1 - haze) + 205 * haze), dtype=np.uint8)


def night(rgb: StreetImage) -> StreetImage:
    """A tenth of the light, and the noise of a sensor."""
    noise = np.random.default_rng(0).normal(0, 6, rgb.shape)
    return np.asarray(np.clip(np.rint(rgb * 0.12 + noise), 0, 255), dtype=np.uint8)


CONDITIONS: dict[str, Callable[[StreetImage], StreetImage]] = {"day": lambda rgb: rgb, "fog": fog, "night": night}


def measured(bundle: Path, work: Path, drives: int) -> dict[str, DriveLosses]:
    """The losses of each condition; what lies in `work` is not measured again."""
    work.mkdir(parents=True, exist_ok=True)
    with Session(Bundle.open(bundle), threads=1) as session:
        predictor = Predictor(session)
        for drive in track(range(drives), "drives", console=Console(stderr=True)):
            file = work / f"drive-{drive:04}.json"
            known = json.loads(file.read_text()) if file.exists() else {}
            missing = [name for name in CONDITIONS if name not in known]
            if missing:
                aside = file.with_suffix(".partial")
                aside.write_text(json.dumps(known | _drive(predictor, drive, missing)))
                aside.rename(file)
    rows = [json.loads((work / f"drive-{drive:04}.json").read_text()) for drive in range(drives)]
    return {name: np.array([row[name] for row in rows]) for name in CONDITIONS}


def _drive(predictor: Predictor, drive: int, conditions: Sequence[str]) -> dict[str, list[float]]:
    """Of each of these conditions the mean share of differing pixels, setting by setting."""
    frames = [frame.rgb for frame in street_frames(FRAMES, seed=1000 + drive, size=SIZE, fps=0.2)]
    found = {}
    for name in conditions:
        losses = []
        for rgb in map(CONDITIONS[name], frames):
            dense = predictor.predict(rgb, dense=True)
            values = THRESHOLDS if name == "day" else THRESHOLDS[SHIFTED : SHIFTED + 1]
            losses.append([predictor.predict(rgb, thresholds=value).differing(dense) for value in values])
        found[name] = np.mean(losses, axis=0).tolist()
    return found


def promised(searched: DriveLosses, tested: DriveLosses, limit: float) -> int:
    """How many settings are shown to keep `limit`, as `dovit calibrate` tests them."""
    # What the search takes for the boldest that keeps the limit ends the sequence.
    means = searched.mean(axis=0)
    last = int(np.flatnonzero(means <= limit).max(initial=-1)) + 1
    bets = [best_bet(searched[:, number], limit=limit) for number in range(last)]
    p_values = (p_value(tested[:, number], limit=limit, bet=bet) for number, bet in enumerate(bets))
    return shown_in_sequence(p_values, confidence=CONFIDENCE)


def drawn_anew(losses: DriveLosses, limit: float, rounds: int) -> dict[str, Any]:
    """Calibrations on drives drawn with replacement, so that all drives together are the truth."""
    generator, truth = np.random.default_rng(0), losses.mean(axis=0)
    least = units_needed(limit, confidence=CONFIDENCE)
    searched, tested = least, TIMES_LEAST * least
    shown, broken = 0, 0
    for _ in range(rounds):
        first, second = (losses[generator.integers(0, len(losses), count)] for count in (searched, tested))
        count = promised(first, second, limit)
        shown += count > 0
        broken += count > 0 and bool(truth[count - 1] > limit)
    return {"limit": limit, "units": tested, "rounds": rounds, "shown": shown / rounds, "broken": broken / rounds}


def resplit(losses: DriveLosses, limit: float, rounds: int) -> dict[str, Any]:
    """Calibrations on some of the drives, judged on those that are left."""
    generator, count = np.random.default_rng(1), len(losses)
    least = units_needed(limit, confidence=CONFIDENCE)
    ends = count // 6, count // 6 + max(least, count // 2)
    shown, broken = 0, 0
    for _ in range(rounds):
        order = losses[generator.permutation(count)]
        first, second, rest = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
        settings = promised(first, second, limit)
        shown += settings > 0
        broken += settings > 0 and bool(rest[:, settings - 1].mean() > limit)
    return {"limit": limit, "units": ends[1] - ends[0], "left": count - ends[1], "shown": shown / rounds} | {
        "rounds": rounds,
        "broken": broken / rounds,
    }


def streams(losses: dict[str, DriveLosses], limit: float, count: int, units: int) -> dict[str, Any]:
    """Streams drawn drive by drive: how many have any alarm in control, and how soon one comes after a change."""
    generator, found = np.random.default_rng(2), {}
    day = losses["day"][:, SHIFTED]
    found["in control"] = {
        "streams": count,
        "alarms": sum(_alarm(generator.choice(day, units), limit) is not None for _ in range(count)) / count,
    }
    for name in ("fog", "night"):
        after = losses[name][:, 0]
        frames = []
        for _ in range(count // 5):
            calm = generator.choice(day, 30)
            number = _alarm(np.concatenate([calm, generator.choice(after, units)]), limit)
            frames.append(np.inf if number is None else FRAMES * max(0, number - len(calm)))
        found[name] = {
            "median_frames": float(np.median(frames)),
            "p95_frames": float(np.quantile(frames, 0.95, method="higher")),
            "within_400": float(np.mean(np.array(frames) <= 400)),
        }
    return found


def _alarm(values: NDArray[np.float64], limit: float) -> int | None:
    """After how many values the evidence is enough; None: never."""
    evidence = DriftEvidence(limit)
    for value in values:
        if evidence.add(float(value)) >= 1 / (1 - CONFIDENCE):
            return evidence.values
    return None


def results_of(losses: dict[str, DriveLosses], rounds: int) -> dict[str, Any]:
    """Everything that follows from what was measured."""
    day = losses["day"]
    means = {name: part.mean(axis=0).round(5).tolist() for name, part in losses.items()}
    # Just below what a setting does in truth, where a promise about it is the easiest to break.
    limits = [0.99 * float(mean) for mean in day.mean(axis=0)[1:]]
    limit = 1.05 * float(day.mean(axis=0)[SHIFTED])
    return {
        "drives": len(day),
        "frames_per_drive": FRAMES,
        "confidence": CONFIDENCE,
        "thresholds": THRESHOLDS,
        "differing": means,
        "drawn_anew": [drawn_anew(day, limit, rounds) for limit in limits],
        "resplit_by_drive": [resplit(day, limit, rounds) for limit in RESPLIT_LIMITS],
        "streams": {"threshold": THRESHOLDS[SHIFTED], "limit": limit} | streams(losses, limit, count=500, units=200),
    }


def main() -> int:
    """Measure, simulate, publish; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("models/road-tiny/dovit_model_road_tiny/road-tiny.dovit"))
    parser.add_argument("--work", type=Path, required=True, help="what was measured, drive by drive")
    parser.add_argument("--drives", type=at_least(36), default=40)
    parser.add_argument("--rounds", type=at_least(100), default=1000, help="calibrations that are simulated")
    parser.add_argument("-o", "--output", type=output_file, required=True)
    options = parser.parse_args()
    results = results_of(measured(options.bundle, options.work, options.drives), options.rounds)
    publish(results, command=command_text("promise.py", sys.argv[1:]), output=options.output)
    return 0


if __name__ == "__main__":
    with errors_in_a_line():
        sys.exit(main())
