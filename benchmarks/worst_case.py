"""What does a frame cost in which nothing stops? The staged and the merged graph against the dense one.

    python benchmarks/worst_case.py --engine openvino --precision bf16 -o worst.json

raised    noise, and thresholds above which no confidence is
built     an image that was built to keep every token at the bundle's own thresholds (built_inputs.py)

Ratios are medians of interleaved pairs in process CPU time, one thread, with their quartiles; every size is compiled
before the first pair. `macs_over_dense` is what the auxiliary heads cost by count. Exit code 4: a median is above 1.02.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from built_inputs import built_image
from numpy.typing import NDArray
from on_cpu.timing import FrameRun, timed
from report import at_least, command_text, errors_in_a_line, output_file, publish

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.bundle.interface import FLOOR, KEPT, MERGED, PIXELS, THRESHOLDS
from dovit_deploy.record import Record
from dovit_deploy.runtime.paint import save_image
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import predictor_for

ALLOWED = 1.02
"""Times the dense graph."""


class WorstRatio(Record):
    """What a form takes over the dense graph on the same pixels."""

    case: str
    """raised or built."""
    form: str
    """staged or merged."""
    over_dense: float
    quartiles: tuple[float, float]
    pairs: int
    dense_ms: float
    macs_over_dense: float
    kept: tuple[int, ...]


def merged_run(session: Session, pixels: Pixels, settings: RunSettings) -> tuple[int, ...]:
    """One run of the merged graph, until its result is on the host: the tokens that entered each stage."""
    backend, engine = session.backend, session.engine(MERGED)
    inputs = {PIXELS: pixels, THRESHOLDS: settings.thresholds, FLOOR: np.asarray(settings.floor)}
    outputs = engine.run({name: backend.upload(array) for name, array in inputs.items()})
    for name in session.bundle.manifest.spec.outputs:
        backend.download(outputs[name])
    return tuple(int(count) for count in backend.download(outputs[KEPT]))


def worst_cases(session: Session, *, pairs: int, rounds: int, image: Path | None = None) -> list[WorstRatio]:
    """All figures of the session's engine; the built image is written to `image`."""
    manifest = session.bundle.manifest
    built = built_image(session, rounds=rounds)
    if image is not None:
        save_image(image, built.rgb)
    noise = np.random.default_rng(0).normal(size=(1, 3, *manifest.spec.size)).astype(np.float32)
    cases = {
        "raised": (noise, RunSettings.stop_nothing(manifest.spec)),
        "built": (predictor_for(session).to_input(built.rgb), RunSettings.resolve(manifest)),
    }
    return [row for name, given in cases.items() for row in both_forms(session, name, *given, pairs=pairs)]


def both_forms(
    session: Session, case: str, pixels: Pixels, settings: RunSettings, *, pairs: int
) -> Iterator[WorstRatio]:
    """The staged and the merged graph on `pixels`."""
    dense = RunSettings.resolve(session.bundle.manifest, dense=True)
    report = session.run_one(pixels, settings)[1]
    forms: dict[str, FrameRun] = {
        "staged": lambda _: session.run_one(pixels, settings),
        "merged": lambda _: merged_run(session, pixels, settings),
    }
    for form, run in forms.items():
        baseline, other = paired_ms(lambda _: session.run_one(pixels, dense), run, pairs=pairs)
        low, middle, high = np.quantile(other / baseline, (0.25, 0.5, 0.75)).round(4)
        yield WorstRatio(
            case=case,
            form=form,
            over_dense=float(middle),
            quartiles=(float(low), float(high)),
            pairs=pairs,
            dense_ms=round(float(np.median(baseline)), 2),
            macs_over_dense=round(report.gmacs_actual / report.gmacs_dense, 4),
            kept=report.kept,
        )


def paired_ms(baseline: FrameRun, other: FrameRun, *, pairs: int) -> NDArray[np.float64]:
    """CPU milliseconds (2, pairs) of both, in turns, the order alternating."""
    for run in (baseline, other) * 2:
        # What is compiled, and the memory that is taken, at the first runs.
        run(0)
    times = np.empty((2, pairs))
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which, number] = 1e3 * timed((baseline, other)[which], 0).cpu
    return times


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--engine", default="onnxruntime")
    result.add_argument("--precision")
    result.add_argument("--pairs", type=at_least(1), default=60, help="of each of the four comparisons")
    result.add_argument("--rounds", type=at_least(0), default=100, help="attempts to build an image that keeps all")
    result.add_argument("--image", type=output_file, help="write the built image there")
    result.add_argument("-o", "--output", type=output_file)
    return result


@errors_in_a_line()
def main(words: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if words is None else words
    command_line = parser()
    arguments = command_line.parse_args(given)
    bundle = Bundle.open(arguments.bundle or chosen_bundle(None).path)
    if not bundle.manifest.spec.gates:
        command_line.error(f"{bundle.path.name} has no gates: it costs the same at every frame")
    with Session(bundle, engine=arguments.engine, precision=arguments.precision, threads=1) as session:
        rows = worst_cases(session, pairs=arguments.pairs, rounds=arguments.rounds, image=arguments.image)
        precision = session.backend.precision
    failures = [f"{row.case}, {row.form}: {row.over_dense:.3f} of dense" for row in rows if row.over_dense > ALLOWED]
    figures = {
        "bundle": bundle.path.name,
        "engine": f"{arguments.engine} {precision}",
        "rows": [row.model_dump(mode="json") for row in rows],
        "failures": failures,
    }
    publish(figures, command=command_text("worst_case.py", given), output=arguments.output)
    return 4 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
