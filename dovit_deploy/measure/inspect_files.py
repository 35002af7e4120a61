"""What is in a single file: an ONNX graph, a safetensors file, an image (or a folder of them), a video?

Nothing of a file is run, and of weights only names, types and shapes are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dovit_deploy import packages
from dovit_deploy.engines.onnxruntime import PROVIDER, load_errors
from dovit_deploy.errors import InputError, PackageMissing, UntrustedError
from dovit_deploy.record import Record
from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame, Source

Facts = tuple[tuple[str, str], ...]
"""What a user reads about a file: label and text, in order."""


# ONNX, read by the package `onnx`; where that is absent, ONNX Runtime knows less: inputs, outputs and metadata.


class OnnxPort(Record):
    """An input or output; a dimension is a number, a name, or "?"."""

    name: str
    dtype: str
    """As NumPy calls it: "float32"."""
    shape: tuple[int | str, ...]


class OnnxContents(Record):
    """An ONNX file; what needs the package `onnx` is None where ONNX Runtime read the file."""

    kind: Literal["onnx"] = "onnx"
    path: str
    bytes: int
    producer: str
    opsets: dict[str, int] | None
    """By domain; the standard one is called "ai.onnx"."""
    inputs: tuple[OnnxPort, ...]
    outputs: tuple[OnnxPort, ...]
    operators: dict[str, int] | None
    """How many nodes of each type, those of inner graphs and functions included; the most frequent first."""
    weights: int | None
    """Number of initialisers."""
    parameters: int | None
    """Their elements."""
    external_files: tuple[str, ...] | None
    """Files that hold the weights."""
    metadata: dict[str, str]

    @property
    def facts(self) -> Facts:
        """What a user reads."""
        return (
            ("made by", self.producer or "unknown"),
            *((("opset", _listed(self.opsets)),) if self.opsets is not None else ()),
            *(("input", port_text(port)) for port in self.inputs),
            *(("output", port_text(port)) for port in self.outputs),
            *self._graph_facts(),
            *(("metadata", f"{key} = {value}") for key, value in self.metadata.items()),
        )

    def _graph_facts(self) -> Facts:
        if self.operators is None:
            return (("note", "operators and weights are read with the package 'onnx': pip install onnx"),)
        return (
            ("weights", f"{self.weights} tensors, {self.parameters:,} parameters"),
            *(("weights in", name) for name in self.external_files or ()),
            ("operators", f"{sum(self.operators.values())}: {_listed(self.operators)}"),
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def port_text(port: OnnxPort) -> str:
    """As in "pixels float32 (1, 3, 512, 512)"."""
    return f"{port.name} {port.dtype} ({', '.join(str(side) for side in port.shape)})"


def onnx_contents(path: Path) -> OnnxContents:
    """Describe the ONNX file at `path`.

    Raises:
        InputError: it is no ONNX file, or is truncated.
        UntrustedError: it states a shape that no tensor can have.
        PackageMissing: neither `onnx` nor ONNX Runtime is installed.
    """
    try:
        onnx = packages.onnx()
    except PackageMissing:
        return _contents_from_runtime(path)
    try:
        # The weights' own file may be gigabytes, or absent: the graph says what is in it.
        model = onnx.load(path, load_external_data=False)
    except packages.protobuf_decode_error() as error:
        raise InputError(f"{path} is not an ONNX file, or is truncated ({error})") from error
    # Bytes that are no model may parse, as an empty file does.
    if not model.HasField("graph"):
        raise InputError(f"{path} is not an ONNX file, or is truncated (it holds no graph)")
    return _contents_from_model(onnx, path, model)


def _contents_from_model(onnx: Any, path: Path, model: Any) -> OnnxContents:  # noqa: ANN401
    tally = _Tally()
    tally.add_graph(model.graph)
    if tally.impossible is not None:
        raise UntrustedError(f"{path}: no tensor can have the shape that it states for {tally.impossible!r}")
    for function in model.functions:
        tally.add_nodes(function.node)
    # Older files list their weights among the inputs.
    inputs = (value for value in model.graph.input if _text(value.name) not in tally.names)
    return OnnxContents(
        path=str(path),
        bytes=path.stat().st_size,
        producer=f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
        opsets={_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=tuple(_port_from_value(onnx, value) for value in inputs),
        outputs=tuple(_port_from_value(onnx, value) for value in model.graph.output),
        operators=dict(tally.operators.most_common()),
        weights=tally.weights,
        parameters=tally.parameters,
        external_files=tuple(sorted(tally.files)),
        metadata={_text(entry.key): _text(entry.value) for entry in model.metadata_props},
    )


MOST_ELEMENTS = 2**63 - 1
"""Of one tensor: its shape is int64, and so is what ONNX's operators say of its size."""


@dataclass
class _Tally:
    """Counts over a graph and all graphs within it; protobuf itself refuses files that nest without end."""

    operators: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    parameters: int = 0
    names: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    impossible: str | None = None
    """A weight with a negative side, or with more elements than ONNX can number."""

    def add_graph(self, graph: Any) -> None:  # noqa: ANN401
        for tensor in graph.initializer:
            self.weights += 1
            elements = math.prod(tensor.dims)
            # A file may state any sides: their product can have more digits than Python agrees to print.
            if min(tensor.dims, default=0) < 0 or elements > MOST_ELEMENTS:
                self.impossible = _text(tensor.name)
            self.parameters += elements
            self.names.add(_text(tensor.name))
            self.files.update(_text(entry.value) for entry in tensor.external_data if entry.key == "location")
        self.add_nodes(graph.node)

    def add_nodes(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            domain, operator = _text(node.domain), _text(node.op_type)
            self.operators[operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"] += 1
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    self.add_graph(inner)


def _port_from_value(onnx: Any, value: Any) -> OnnxPort:  # noqa: ANN401
    if not value.type.HasField("tensor_type"):
        return OnnxPort(name=_text(value.name), dtype=NO_TENSOR, shape=())
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else f"type {tensor.elem_type}"
    sides = tuple(
        side.dim_value if side.HasField("dim_value") else _text(side.dim_param) or "?" for side in tensor.shape.dim
    )
    return OnnxPort(name=_text(value.name), dtype=_NUMPY_NAMES.get(name, name), shape=sides)


def _text(value: str | bytes) -> str:
    """A text field of a model; protobuf gives bytes where it is not UTF-8, as in a damaged file."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")


NO_TENSOR = "not a tensor"
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
"""Where ONNX calls a type otherwise than NumPy."""


def _contents_from_runtime(path: Path) -> OnnxContents:
    try:
        runtime = packages.onnxruntime()
    except PackageMissing as error:
        raise PackageMissing(
            f"{path}: ONNX files are read with the package 'onnx' or 'onnxruntime', and neither can be imported; "
            "install one with: pip install onnx"
        ) from error
    options = runtime.SessionOptions()
    # The graph is looked at, not run: no optimisation, and no lines of its own beside our error.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
    except load_errors(runtime) as error:
        raise InputError(
            f"{path} is not an ONNX file that ONNX Runtime can load ({str(error).splitlines()[0]}); "
            "if it holds operators of another runtime, it can be read after: pip install onnx"
        ) from error
    about = session.get_modelmeta()
    return OnnxContents(
        path=str(path),
        bytes=path.stat().st_size,
        producer=about.producer_name,
        opsets=None,
        inputs=tuple(_port_from_argument(argument) for argument in session.get_inputs()),
        outputs=tuple(_port_from_argument(argument) for argument in session.get_outputs()),
        operators=None,
        weights=None,
        parameters=None,
        external_files=None,
        metadata=dict(about.custom_metadata_map),
    )


def _port_from_argument(argument: Any) -> OnnxPort:  # noqa: ANN401
    """Of ONNX Runtime, whose types are called as "tensor(float)"."""
    if not argument.type.startswith("tensor("):
        return OnnxPort(name=argument.name, dtype=NO_TENSOR, shape=())
    name = argument.type.removeprefix("tensor(").removesuffix(")")
    sides = tuple("?" if side is None else side for side in argument.shape)
    return OnnxPort(name=argument.name, dtype=_NUMPY_NAMES.get(name, name), shape=sides)


# safetensors, from its header alone: no tensor is loaded.


class TensorEntry(Record):
    """A tensor as the header lists it."""

    name: str
    dtype: str
    """As safetensors calls it: "F32", "BF16"."""
    shape: tuple[int, ...]


SHOWN_TENSORS = 12
"""Tensors that the text lists; the JSON report lists all."""


class SafetensorsContents(Record):
    """A safetensors file."""

    kind: Literal["safetensors"] = "safetensors"
    path: str
    bytes: int
    parameters: int
    dtypes: dict[str, int]
    """How many tensors of each type."""
    metadata: dict[str, str]
    tensors: tuple[TensorEntry, ...]
    """In the order of their names."""

    @property
    def facts(self) -> Facts:
        """What a user reads."""
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        more = len(self.tensors) - SHOWN_TENSORS
        return (
            ("tensors", f"{len(self.tensors)} ({types})" if self.tensors else "none"),
            ("parameters", f"{self.parameters:,}"),
            *(("metadata", f"{key} = {value}") for key, value in self.metadata.items()),
            *(("tensor", f"{entry.name} {entry.dtype} {entry.shape}") for entry in self.tensors[:SHOWN_TENSORS]),
            *((("tensor", f"... {more} more: all with --json"),) if more > 0 else ()),
        )


def safetensors_contents(path: Path) -> SafetensorsContents:
    """Describe the safetensors file at `path`.

    Raises:
        InputError: it is no safetensors file, or is truncated.
    """
    try:
        # Slices are only views of the header, so types that NumPy lacks (BF16) do no harm.
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = tuple(_tensor_entry(name, opened.get_slice(name)) for name in sorted(opened.keys()))
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated or damaged ({error})") from error
    return SafetensorsContents(
        path=str(path),
        bytes=path.stat().st_size,
        parameters=sum(math.prod(entry.shape) for entry in tensors),
        dtypes=dict(Counter(entry.dtype for entry in tensors).most_common()),
        metadata=metadata,
        tensors=tensors,
    )


def _tensor_entry(name: str, view: Any) -> TensorEntry:  # noqa: ANN401
    return TensorEntry(name=name, dtype=view.get_dtype(), shape=tuple(view.get_shape()))


# Images and videos: size, number of frames, rate, sound.


class SourceContents(Record):
    """An image, a folder of images, or a video."""

    kind: Literal["images", "video"]
    path: str
    bytes: int | None
    """None for a folder."""
    height: int | None
    """Upright, in pixels; of the first image of a folder, None when that cannot be read."""
    width: int | None
    frames: int | None
    """None where the file does not say."""
    rate: str | None
    """Frames per second, exact, as in "30000/1001"; None for images."""
    seconds: float | None
    audio: bool
    warnings: tuple[str, ...]

    @property
    def facts(self) -> Facts:
        """What a user reads."""
        size = "unknown" if self.height is None else f"{self.width}x{self.height} pixels (width x height)"
        seconds = "" if self.seconds is None else f", {self.seconds:.2f} s"
        return (
            ("size", size),
            ("frames", f"{'unknown' if self.frames is None else self.frames}{seconds}"),
            *((("rate", f"{self.rate} frames per second"),) if self.rate is not None else ()),
            *((("sound", "yes" if self.audio else "no"),) if self.kind == "video" else ()),
            *(("note", warning) for warning in self.warnings),
        )


def source_contents(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> SourceContents:
    """Describe the image, folder or video at `path`.

    Raises:
        SourceError: it does not open, cannot be decoded, or holds no image.
        PackageMissing: what reads it is not installed.
    """
    with closing(open_source(str(path), max_pixels=max_pixels)) as source:
        # Before the warnings are taken: some come up while the first image is read.
        size = _size(source)
        rate = None if source.video is None else source.video.rate
        return SourceContents(
            kind="images" if source.video is None else "video",
            path=str(path),
            bytes=path.stat().st_size if path.is_file() else None,
            height=size[0] if size else None,
            width=size[1] if size else None,
            frames=source.count,
            rate=None if rate is None else str(rate),
            seconds=float(source.count / rate) if rate and source.count is not None else None,
            audio=source.video is not None and source.video.has_audio,
            warnings=tuple(source.warnings),
        )


def _size(source: Source) -> tuple[int, int] | None:
    """Height and width; those of images are known only once the first was read."""
    if source.video is not None:
        return source.video.size
    first = next(iter(source), None)
    if first is None or isinstance(first, FailedFrame):
        return None
    return first.rgb.shape[0], first.rgb.shape[1]
