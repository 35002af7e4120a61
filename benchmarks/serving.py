"""What does a server cost? A request to NVIDIA Triton against the same call of a `Session` in this process.

python benchmarks/serving.py --bundle road-tiny -o benchmarks/results/serving.json

One client asks for a frame directly, over gRPC and over HTTP, then for the next, so that whatever else the machine
does falls on all three alike. Wall times: where others use the machine, too, only the ratios mean something.
ratio        the request over the direct call before it: median of the pairs
outside_ms   what of a request is not the model's own time, as the response states that: the way, the queue, the server

The server is the one of the nvidia-pytriton wheel (pip install --no-deps nvidia-pytriton), on loopback.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import at_least, command_text, errors_in_a_line, output_file, publish
from triton_server import RunningServer, running_server, why_not

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.errors import CheckError, EnvironmentProblem
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.triton.config import ServingPlan
from dovit_deploy.triton.repository import write_repository
from dovit_scenes import street_frames

NAME = "served"
Ask = Callable[[Pixels], tuple[Any, float]]
"""A frame -> the logits, and the model's own milliseconds."""


@contextmanager
def served(bundle: Bundle) -> Iterator[RunningServer]:
    """The bundle behind a server: ONNX Runtime in fp32, one thread."""
    reason = why_not()
    if reason is not None:
        raise EnvironmentProblem(reason)
    plan = ServingPlan(bundle, NAME, engine="onnxruntime", precision="fp32", threads=1, max_batch=8, merged=False)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, "server")
        scratch.mkdir()
        write_repository(plan, Path(folder, "models"))
        with running_server(
            Path(folder, "models"), scratch, flags=("--model-control-mode=explicit", "--load-model=*")
        ) as one:
            yield one


def asking(module: Any, client: Any) -> Ask:  # noqa: ANN401  tritonclient's two halves have no type in common
    """A request over one of tritonclient's two protocols."""

    def ask(pixels: Pixels) -> tuple[Any, float]:
        given = module.InferInput("pixels", list(pixels.shape), "FP32")
        given.set_data_from_numpy(pixels)
        result = client.infer(NAME, [given])
        return result.as_numpy("logits"), float(result.as_numpy("milliseconds")[0, 0])

    return ask


def measured(session: Session, ways: dict[str, Ask], frames: list[Pixels]) -> dict[str, list[tuple[float, float]]]:
    """Per way and frame: wall milliseconds of the call, and the model's own of it.

    Raises:
        CheckError: an answer is not the direct one, bit for bit.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for pixels in frames:
        expected, _ = session.run(pixels)
        for name, ask in ways.items():
            start = time.perf_counter()
            logits, model_ms = ask(pixels)
            found[name].append((1e3 * (time.perf_counter() - start), model_ms))
            if not np.array_equal(logits, expected):
                raise CheckError(f"{name}: the answer differs from that of a direct call")
    return found


def figures_of(found: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Percentiles of each way, and the ratios to the direct calls."""
    direct = [wall for wall, _ in found["direct"]]
    figures = {}
    for name, calls in found.items():
        walls = [wall for wall, _ in calls]
        figures[name] = {
            **{f"p{percent}_ms": round(float(np.percentile(walls, percent)), 2) for percent in (50, 99)},
            "ratio": round(median(wall / other for wall, other in zip(walls, direct, strict=True)), 3),
            "outside_ms": round(median(wall - model for wall, model in calls), 2),
        }
        for percent in (50, 99):
            ratio = np.percentile(walls, percent) / np.percentile(direct, percent)
            figures[name][f"p{percent}_ratio"] = round(float(ratio), 3)
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--frames", type=at_least(2), default=100, help="rendered street frames")
    result.add_argument("-o", "--output", type=output_file)
    return result


@errors_in_a_line()
def main(words: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if words is None else words
    arguments = parser().parse_args(given)
    bundle = Bundle.open(chosen_bundle(arguments.bundle).path)
    height, width = bundle.manifest.spec.size
    with Session(bundle, threads=1) as session, served(bundle) as server:
        # Here, so that whoever has no server is told so in a line.
        import tritonclient.grpc
        import tritonclient.http

        predictor = Predictor(session)
        frames = [
            predictor.to_input(frame.rgb) for frame in street_frames(arguments.frames, seed=0, size=(height, width))
        ]
        ways: dict[str, Ask] = {
            "direct": lambda pixels: _direct(session, pixels),
            "grpc": asking(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(server.grpc)),
            "http": asking(tritonclient.http, tritonclient.http.InferenceServerClient(server.http)),
        }
        found = measured(session, ways, [frames[0], *frames])
    # The first round is cold.
    figures = figures_of({name: calls[1:] for name, calls in found.items()})
    publish(
        {"bundle": bundle.path.name, "engine": "onnxruntime fp32", "frames": len(frames), "ways": figures},
        command=command_text("serving.py", given),
        output=arguments.output,
    )
    return 0


def _direct(session: Session, pixels: Pixels) -> tuple[Any, float]:
    logits, report = session.run(pixels)
    (one,) = report if isinstance(report, list) else [report]
    return logits, one.timing.model


if __name__ == "__main__":
    sys.exit(main())
