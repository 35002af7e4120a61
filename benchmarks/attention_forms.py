"""Forms of one attention layer as graphs, timed against each other in ONNX Runtime at several token counts."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from report import at_least, output_file, publish

Step = Callable[[], np.ndarray]
"""One run of a form; gives what it computed."""
Figures = dict[str, dict[str, float]]
"""Of each form: median milliseconds (`ms`), and median ratio to the first form (`ratio`)."""


def step_of(model: ir.Model, folder: Path, feed: Mapping[str, np.ndarray]) -> Step:
    """One run of `model` in one thread on what it takes of `feed`."""
    path = folder / "form.onnx"
    ir.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {port.name: feed[port.name] for port in session.get_inputs()}
    return lambda: session.run(None, taken)[0]


def timed(steps: Mapping[str, Step], repeat: int) -> Figures:
    """CPU time of the process for each of `steps`, in turns; ratios are to the first."""
    seconds: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(repeat):
        for form, step in steps.items():
            start = time.process_time()
            step()
            seconds[form].append(time.process_time() - start)
    first = next(iter(seconds.values()))
    return {
        form: {
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median(value / base for value, base in zip(values, first, strict=True)),
        }
        for form, values in seconds.items()
    }


def command_line(
    script: str, purpose: str, *, counts: Sequence[int], measure: Callable[[int, int, Path], Figures]
) -> None:
    """The command line of `benchmarks/SCRIPT`: `measure(tokens, repeat, folder)` at each count, published."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--tokens", type=int, nargs="*", default=list(counts))
    parser.add_argument("--repeat", type=at_least(1), default=40)
    parser.add_argument("-o", "--output", type=output_file)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {f"{count} tokens": measure(count, arguments.repeat, Path(folder)) for count in arguments.tokens}
    tokens = " ".join(map(str, arguments.tokens))
    command = f"python benchmarks/{script} --tokens {tokens} --repeat {arguments.repeat}"
    publish({"figures": figures}, command=command, output=arguments.output)
