"""ONNX Runtime on the CPU, with its default session options but for threads (docs/decisions/0005)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    FP32,
    GRAPH_NAME,
    GraphInterface,
    Port,
    check_graph_name,
    check_ports,
    graph_interfaces,
    stage_name,
)
from dovit_deploy.bundle.pointers import check_pointers, check_pointers_of_files
from dovit_deploy.bundle.weights import spans_from_bytes
from dovit_deploy.engines.base import Buffer, HostMemory
from dovit_deploy.engines.square import MATRIX, SQUARE_MODEL, check_square
from dovit_deploy.errors import GraphMismatch, ProviderMissing, shown

PROVIDER = "CPUExecutionProvider"
IN_MEMORY = "add_external_initializers_from_files_in_memory"
"""Method of session options that takes weights as bytes; versions before it take them from files alone."""


class OnnxRuntimeEngine:
    """One ONNX graph in one inference session."""

    def __init__(self, session: Any, errors: tuple[type[Exception], ...]) -> None:  # noqa: ANN401  it has no types
        self._session, self._errors = session, errors
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the graph.

        Raises:
            GraphMismatch: it cannot be run, as when one of its nodes asks for more memory than there is.
        """
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except self._errors as error:
            raise GraphMismatch(f"ONNX Runtime cannot run a graph: {shown(str(error).splitlines()[0])}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drop the session, and with it its threads and memory."""
        self._session = None


class OnnxRuntimeBackend(HostMemory):
    """Loads a bundle's graphs; buffers are NumPy arrays.

    Args:
        threads: of one operator; None leaves it to ONNX Runtime (one per physical core).
        fast: use the graphs with contrib operators, made for this runtime; otherwise the portable ones.
        precision: "fp32" or "int8".
    """

    name = "onnxruntime"

    def __init__(self, *, threads: int | None = None, fast: bool = True, precision: str = FP32) -> None:
        self._runtime = packages.onnxruntime()
        self._threads = threads
        self._fast = fast
        self.precision = precision
        # Of the graphs: whoever derives from this class may compute in another precision from those of fp32.
        self._form = precision
        self._weights = WeightsInMemory(fast=fast, precision=precision)

    def load(self, bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        """Load `graph` and its share of the weights.

        Raises:
            UsageError: the bundle was not exported in this precision.
            GraphMismatch: ONNX Runtime refuses the graph.
            ProviderMissing: ONNX Runtime would use another provider than the CPU's.
        """
        options = session_options(self._runtime, threads=self._threads)
        path = bundle.graph(graph, fast=self._fast, precision=self._form)
        errors = load_errors(self._runtime)
        with self._weights.of_graph(bundle, graph, options) as source:
            try:
                session = self._runtime.InferenceSession(source, options, providers=[PROVIDER])
            except errors as error:
                first = str(error).splitlines()[0]
                raise GraphMismatch(f"ONNX Runtime cannot load {bundle.path.name}/{path.name}: {first}") from error
        if session.get_providers() != [PROVIDER]:
            raise ProviderMissing(f"{path.name} runs on {session.get_providers()}, not on the CPU provider")
        check_interface(session, bundle, graph)
        return OnnxRuntimeEngine(session, errors)


def session_options(runtime: Any, *, threads: int | None) -> Any:  # noqa: ANN401
    """ONNX Runtime's defaults, but for `threads` of one operator and two things that would disturb others."""
    options = runtime.SessionOptions()
    # 3: errors, not warnings.
    options.log_severity_level = 3
    # Otherwise the threads of one stage keep spinning while the next stage, or the code after the model, runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class WeightsInMemory:
    """Gives ONNX Runtime a bundle's graphs and weights as the bytes that were checked, rather than as files.

    It would map a file into memory: one that is cut short meanwhile would end the process.
    """

    def __init__(self, *, fast: bool, precision: str) -> None:
        self._fast, self._precision = fast, precision
        self._held: tuple[Bundle, dict[str, bytes]] | None = None

    @contextmanager
    def of_graph(self, bundle: Bundle, graph: str, options: Any) -> Iterator[bytes | str]:  # noqa: ANN401
        """What to make the session of, within the block: the graph's bytes; `options` get the weights.

        Raises:
            BundleError: one of the files was changed since the bundle was opened, or the graph looks for its weights
                where they are not.
        """
        if not hasattr(options, IN_MEMORY):
            # From a copy that nobody else knows.
            with TemporaryDirectory(prefix="dovit-") as folder:
                copy = bundle.copied_graph(graph, Path(folder), fast=self._fast, precision=self._precision)
                check_pointers_of_files(copy, [copy.with_name(name) for name in bundle.weights_files(self._precision)])
                yield str(copy)
            return
        name = bundle.graph(graph, fast=self._fast, precision=self._precision).name
        content, weights = bundle.content(name), self._of(bundle)
        check_pointers(name, content, {file: spans_from_bytes(held) for file, held in weights.items()})
        contents = list(weights.values())
        getattr(options, IN_MEMORY)(list(weights), contents, [len(held) for held in contents])
        yield content
        # A session loads all stages at once, in order; afterwards ONNX Runtime has copies of what it needs.
        if graph == stage_name(bundle.stages - 1):
            self._held = None

    def _of(self, bundle: Bundle) -> dict[str, bytes]:
        """The files of weights of `bundle`, read once for all of its stages."""
        if self._held is None or self._held[0] is not bundle:
            self._held = (bundle, {name: bundle.content(name) for name in bundle.weights_files(self._precision)})
        return self._held[1]


_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
# The stages' form in fp16 hands over what the manifest promises in float32.
_HALF_DTYPES = {**_DTYPES, "tensor(float16)": "float32"}


def check_interface(session: Any, bundle: Bundle, graph: str, *, half: bool = False) -> None:  # noqa: ANN401
    """Raise GraphMismatch unless the graph in `session` is the one, and takes and gives what the manifest promises."""
    check_graph_name(bundle.path.name, graph, session.get_modelmeta().custom_metadata_map.get(GRAPH_NAME, graph))
    dtypes = _HALF_DTYPES if half else _DTYPES
    takes, gives = (
        tuple(Port(one.name, dtypes.get(one.type, one.type), tuple(one.shape)) for one in ports)
        for ports in (session.get_inputs(), session.get_outputs())
    )
    check_ports(bundle.path.name, graph, graph_interfaces(bundle.manifest.spec)[graph], GraphInterface(takes, gives))


def load_errors(runtime: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401
    """The exceptions with which ONNX Runtime refuses a graph, or fails to run it."""
    # They are defined in the extension module, and have no common base but Exception.
    state = runtime.capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidGraph", "InvalidArgument", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError)


def backend(*, precision: str, threads: int | None, callers: int = 1) -> OnnxRuntimeBackend:
    """Entry point of the registry, which has checked `precision`."""
    # A session of ONNX Runtime runs in the threads that call it, as many as there are.
    del callers
    return OnnxRuntimeBackend(threads=threads, precision=precision)


def probe() -> str:
    """Run a small model on the CPU provider."""
    runtime = packages.onnxruntime()
    session = runtime.InferenceSession(SQUARE_MODEL, providers=[PROVIDER])
    (result,) = session.run(["y"], {"x": MATRIX})
    check_square(result)
    return f"{runtime.__version__}, providers: {', '.join(runtime.get_available_providers())}"
