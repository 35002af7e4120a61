"""What does a server cost? A request to NVIDIA Triton against the same call of a `Session` in this process.

python benchmarks/serving.py --bundle road-tiny -o benchmarks/results/serving.json

One client asks for a frame directly, over gRPC and over HTTP, then for the next, so that whatever else the machine
does falls on all three alike. Where others use the machine, too, wall times show how it is shared: read cpu_ratio.
p50_ms, p99_ms   wall time of a call, and their ratios to those of the direct calls
cpu_ms           processor time of a call in all processes, client, server and model: median
cpu_ratio        that over the direct call before it: median of the pairs

The server is the one of the nvidia-pytriton wheel (pip install --no-deps nvidia-pytriton), on loopback.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
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
Ask = Callable[[Pixels], Any]
"""A frame -> the logits."""


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

    def ask(pixels: Pixels) -> Any:  # noqa: ANN401  nor do its arrays
        given = module.InferInput("pixels", list(pixels.shape), "FP32")
        given.set_data_from_numpy(pixels)
        return client.infer(NAME, [given]).as_numpy("logits")

    return ask


@dataclass(frozen=True)
class TimedCall:
    """Milliseconds of one call."""

    wall: float
    cpu: float
    """Of all processes that had a part in it."""


def processor_ms(processes: list[int]) -> float:
    """Processor time of all threads of these processes so far; Linux counts it at each of its ticks."""
    threads = (path for number in processes for path in Path("/proc", str(number), "task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e6


def measured(
    session: Session, ways: dict[str, Ask], frames: list[Pixels], *, processes: list[int]
) -> dict[str, list[TimedCall]]:
    """What the calls took, per way and frame.

    Args:
        session: answers directly.
        ways: ask for the same.
        frames: (1, 3, H, W) each.
        processes: numbers of those that may have a part in a call.

    Raises:
        CheckError: an answer is not the direct one, bit for bit.
    """
    found: dict[str, list[TimedCall]] = {name: [] for name in ways}
    for pixels in frames:
        expected, _ = session.run(pixels)
        for name, ask in ways.items():
            cpu, start = processor_ms(processes), time.perf_counter()
            logits = ask(pixels)
            wall = 1e3 * (time.perf_counter() - start)
            found[name].append(TimedCall(wall, processor_ms(processes) - cpu))
            if not np.array_equal(logits, expected):
                raise CheckError(f"{name}: the answer differs from that of a direct call")
    return found


def figures_of(found: dict[str, list[TimedCall]]) -> dict[str, dict[str, float]]:
    """Percentiles of each way, and the ratios to the direct calls."""
    direct = found["direct"]
    figures = {}
    for name, calls in found.items():
        figures[name] = {}
        for percent in (50, 99):
            mine, other = (float(np.percentile([call.wall for call in each], percent)) for each in (calls, direct))
            figures[name] |= {f"p{percent}_ms": round(mine, 2), f"p{percent}_ratio": round(mine / other, 3)}
        pairs = zip(calls, direct, strict=True)
        figures[name]["cpu_ms"] = round(median(call.cpu for call in calls), 2)
        figures[name]["cpu_ratio"] = round(median(call.cpu / other.cpu for call, other in pairs), 3)
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
            "direct": lambda pixels: session.run(pixels)[0],
            "grpc": asking(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(server.grpc)),
            "http": asking(tritonclient.http, tritonclient.http.InferenceServerClient(server.http)),
        }
        children = psutil.Process(server.process.pid).children(recursive=True)
        processes = [os.getpid(), server.process.pid, *(child.pid for child in children)]
        found = measured(session, ways, [frames[0], *frames], processes=processes)
    # The first round is cold.
    figures = figures_of({name: calls[1:] for name, calls in found.items()})
    publish(
        {"bundle": bundle.path.name, "engine": "onnxruntime fp32", "frames": len(frames), "ways": figures},
        command=command_text("serving.py", given),
        output=arguments.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
