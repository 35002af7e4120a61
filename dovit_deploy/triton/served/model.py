"""What NVIDIA Triton's Python backend runs: each image of a request goes through a `Session` of the bundle beside this.

`dovit triton` wrote it; nothing in it is of one bundle. `settings.json` beside it says which engine runs, with how many
threads. The Python of the server needs dovit-deploy and the engine's package: pip install 'dovit-deploy[cpu]'.
"""

from __future__ import annotations

import ctypes
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# Part of the server, which has no types.
import triton_python_backend_utils as pb_utils

try:
    from dovit_deploy import DovitError, InputError, Session, TokenReport, UsageError
except ModuleNotFoundError as error:
    # A plain one: the server adds its own exceptions to `pb_utils` after this file was imported.
    raise ModuleNotFoundError(f"{error}; into the Python of this server: pip install 'dovit-deploy[cpu]'") from error

TensorArray = np.ndarray[Any, Any]
Ran = tuple[Any, TokenReport]
"""The answer to one image, a batch of one, and what was done to reach it."""


class TritonPythonModel:
    """One instance of the model: a session, and threads that run images side by side."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle; what is wrong with it, or missing here, ends up in the server's log in a line."""
        here = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((here / "settings.json").read_text(encoding="utf-8"))
        most = max(1, json.loads(args["model_config"])["max_batch_size"])
        at_once = min(most, settings["side_by_side"] or max(1, _cores() // settings["threads"]))
        try:
            self.session = Session(
                here / settings["bundle"],
                engine=settings["engine"],
                precision=settings["precision"],
                threads=settings["threads"],
                callers=at_once,
            )
        except DovitError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        spec = self.session.bundle.manifest.spec
        self.gates, self.outputs = (len(spec.gates), spec.classes), tuple(spec.outputs)
        self.pool = ThreadPoolExecutor(at_once)
        self.meter = Meter(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request, in their order; one that is refused leaves the others as they are."""
        # All are begun before the first is waited for: the images of a whole batch share the threads.
        begun = [self._begin(request) for request in requests]
        return [self._answered(request, futures) for request, futures in zip(requests, begun, strict=True)]

    def finalize(self) -> None:
        """Free what was loaded."""
        self.pool.shutdown()
        self.session.close()

    def _begin(self, request: Any) -> list[Future[Ran]]:  # noqa: ANN401
        pixels = _array(request, "pixels")
        if pixels is None:
            # Where some inputs are optional, the server does not ask for the others.
            refused: Future[Ran] = Future()
            refused.set_exception(InputError("no pixels given, (B, 3, H, W) float32 needed"))
            return [refused]
        thresholds, floor = _array(request, "thresholds"), _array(request, "floor")
        return [
            self.pool.submit(
                self._run,
                pixels[number : number + 1],
                None if thresholds is None else self._limits(thresholds[number]),
                None if floor is None else float(floor[number, 0]),
            )
            for number in range(len(pixels))
        ]

    def _run(self, pixels: TensorArray, thresholds: float | TensorArray | None, floor: float | None) -> Ran:
        """One image, (1, 3, H, W), as it would be alone."""
        answer, report = self.session.run(pixels, thresholds, floor)
        # A list is of several images.
        assert isinstance(report, TokenReport)
        return answer, report

    def _limits(self, given: TensorArray) -> float | TensorArray:
        """One number for all gates, one for each, or one for each gate and class, row by row."""
        if given.size == 1:
            return float(given[0])
        return given.reshape(self.gates) if given.size == self.gates[0] * self.gates[1] else given

    def _answered(self, request: Any, futures: list[Future[Ran]]) -> Any:  # noqa: ANN401
        try:
            ran = [future.result() for future in futures]
        except DovitError as error:
            self.meter.refused()
            # 400 in HTTP and INVALID_ARGUMENT in gRPC for what the client can fix, else 500 and INTERNAL.
            client = isinstance(error, InputError | UsageError)
            code = pb_utils.TritonError.INVALID_ARG if client else pb_utils.TritonError.INTERNAL
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        for _, report in ran:
            self.meter.answered(report)
        arrays, wanted = self._arrays(ran), request.requested_output_names()
        tensors = [pb_utils.Tensor.from_dlpack(name, Lent(array)) for name, array in arrays.items() if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _arrays(self, ran: list[Ran]) -> dict[str, TensorArray]:
        answers = [answer if isinstance(answer, dict) else {"logits": answer} for answer, _ in ran]
        reports = [report for _, report in ran]
        return {
            **{name: np.concatenate([answer[name] for answer in answers]) for name in self.outputs},
            "kept": np.array([report.kept for report in reports], np.int64),
            "gmacs_dense": np.array([[report.gmacs_dense] for report in reports], np.float64),
            "gmacs_actual": np.array([[report.gmacs_actual] for report in reports], np.float64),
            "milliseconds": np.array([[report.timing.model] for report in reports], np.float64),
        }


class Meter:
    """Counters that Triton shows among its own metrics, in Prometheus' format."""

    def __init__(self, model: str, version: str) -> None:
        self.labels = {"model": model, "version": version}
        # Kept, by name: a metric is taken away when its family is.
        self.families: dict[str, Any] = {}
        self.images = self._counter("dovit_images_total", "Images answered")
        self.dense = self._counter("dovit_gmacs_dense_total", "10^9 MACs that the answered images take when dense")
        self.actual = self._counter("dovit_gmacs_actual_total", "10^9 MACs that were computed for them")
        self.milliseconds = self._counter("dovit_model_milliseconds_total", "Milliseconds that the model took for them")
        self.refusals = self._counter("dovit_requests_refused_total", "Requests whose pixels or limits were refused")
        self.tokens: dict[int, Any] = {}

    def answered(self, report: TokenReport) -> None:
        """Count an image."""
        self.images.increment(1)
        self.dense.increment(report.gmacs_dense)
        self.actual.increment(report.gmacs_actual)
        self.milliseconds.increment(report.timing.model)
        for stage, kept in enumerate(report.kept):
            if stage not in self.tokens:
                self.tokens[stage] = self._counter("dovit_tokens_total", "Tokens that entered a stage", stage=stage)
            self.tokens[stage].increment(kept)

    def refused(self) -> None:
        """Count a request that could not be answered."""
        self.refusals.increment(1)

    def _counter(self, name: str, description: str, *, stage: int | None = None) -> Any:  # noqa: ANN401
        family = self.families.get(name)
        if family is None:
            family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
            self.families[name] = family
        return family.Metric(labels=self.labels | ({} if stage is None else {"stage": str(stage)}))


class Lent:
    """An array as the server takes it: through DLPack, since the stubs of servers as 24.10 take the arrays of NumPy 2
    for those of NumPy 1, whose records lie otherwise in memory, and see no values."""

    def __init__(self, array: TensorArray) -> None:
        self.array = array

    def __dlpack__(self, stream: object = None) -> object:
        """The server frees what the capsule holds."""
        capsule = self.array.__dlpack__()
        # It marks the capsule as used by a name that NumPy does not know, which NumPy would complain of, every time.
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def _array(request: Any, name: str) -> Any:  # noqa: ANN401
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    # Through DLPack, too.
    return None if tensor is None else np.from_dlpack(tensor)


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
