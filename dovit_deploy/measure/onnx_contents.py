"""What is in an ONNX file: inputs, outputs, operators, weights; read from its bytes, with no package and no weights.

Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dovit_deploy.errors import InputError
from dovit_deploy.measure.protobuf import bytes_of, integers_of, text_of
from dovit_deploy.record import Record

MODEL_PRODUCER, MODEL_PRODUCER_VERSION, MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA, MODEL_FUNCTION = 2, 3, 7, 8, 14, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL = 1, 8, 13
FUNCTION_NODE = 7

ELEMENT_TYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz"),
    *("float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1"),
)
"""In the order of TensorProto.DataType."""

DEEPEST = 16
"""Graphs within graphs; a file that nests deeper is made to do harm."""


class OnnxPort(Record):
    """An input or output; a dimension is a number, a name, or "?"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OnnxContents(Record):
    """An ONNX file."""

    kind: Literal["onnx"] = "onnx"
    path: str
    bytes: int
    producer: str
    opsets: dict[str, int]
    """By domain; the standard one is called "ai.onnx"."""
    inputs: tuple[OnnxPort, ...]
    outputs: tuple[OnnxPort, ...]
    operators: dict[str, int]
    """How many nodes of each type, those of inner graphs and functions included; the most frequent first."""
    weights: int
    """Number of initialisers."""
    parameters: int
    """Their elements."""
    external_files: tuple[str, ...]
    """Files that the weights lie in."""
    metadata: dict[str, str]

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What a user reads: label and text."""
        nodes = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        return (
            ("made by", self.producer or "unknown"),
            ("opset", ", ".join(f"{domain} {version}" for domain, version in self.opsets.items())),
            *(("input", port_text(port)) for port in self.inputs),
            *(("output", port_text(port)) for port in self.outputs),
            ("weights", f"{self.weights} tensors, {self.parameters:,} parameters"),
            *(("weights lie in", name) for name in self.external_files),
            ("operators", f"{sum(self.operators.values())}: {nodes}"),
            *(("metadata", f"{key} = {value}") for key, value in self.metadata.items()),
        )


def port_text(port: OnnxPort) -> str:
    """As in "pixels float32 (1, 3, 512, 512)"."""
    return f"{port.name} {port.dtype} ({', '.join(str(side) for side in port.shape)})"


def onnx_contents(path: Path) -> OnnxContents:
    """Read the ONNX file at `path`.

    Raises:
        InputError: it is not one, or is cut short.
    """
    raw = path.read_bytes()
    try:
        return _contents(path, memoryview(raw))
    except ValueError as error:
        raise InputError(f"{path} is not an ONNX file, or is cut short ({error})") from error


def _contents(path: Path, model: memoryview) -> OnnxContents:
    graphs = bytes_of(model, MODEL_GRAPH)
    if not graphs:
        raise ValueError("it holds no graph")
    opsets = {
        text_of(entry, 1) or "ai.onnx": max(integers_of(entry, 2), default=0) for entry in bytes_of(model, MODEL_OPSET)
    }
    graph, tally = graphs[-1], _Tally()
    tally.add_graph(graph, depth=0)
    for function in bytes_of(model, MODEL_FUNCTION):
        tally.add_nodes(bytes_of(function, FUNCTION_NODE), depth=0)
    # Older files list their weights among the inputs.
    inputs = (_port(entry) for entry in bytes_of(graph, GRAPH_INPUT))
    return OnnxContents(
        path=str(path),
        bytes=len(model),
        producer=f"{text_of(model, MODEL_PRODUCER)} {text_of(model, MODEL_PRODUCER_VERSION)}".strip(),
        opsets=opsets,
        inputs=tuple(port for port in inputs if port.name not in tally.names),
        outputs=tuple(_port(entry) for entry in bytes_of(graph, GRAPH_OUTPUT)),
        operators=dict(tally.operators.most_common()),
        weights=tally.weights,
        parameters=tally.parameters,
        external_files=tuple(sorted(tally.files)),
        metadata={text_of(entry, 1): text_of(entry, 2) for entry in bytes_of(model, MODEL_METADATA)},
    )


@dataclass
class _Tally:
    """Counts over a graph and all graphs within it."""

    operators: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    parameters: int = 0
    names: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def add_graph(self, graph: memoryview, *, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"graphs nested more than {DEEPEST} deep")
        for tensor in bytes_of(graph, GRAPH_INITIALIZER):
            self.weights += 1
            self.parameters += math.prod(integers_of(tensor, TENSOR_DIMS))
            self.names.add(text_of(tensor, TENSOR_NAME))
            self.files.update(_locations(tensor))
        self.add_nodes(bytes_of(graph, GRAPH_NODE), depth=depth)

    def add_nodes(self, nodes: list[memoryview], *, depth: int) -> None:
        for node in nodes:
            domain, operator = text_of(node, NODE_DOMAIN), text_of(node, NODE_OPERATOR)
            self.operators[f"{domain}.{operator}" if domain not in ("", "ai.onnx") else operator] += 1
            for attribute in bytes_of(node, NODE_ATTRIBUTE):
                for number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                    for inner in bytes_of(attribute, number):
                        self.add_graph(inner, depth=depth + 1)


def _locations(tensor: memoryview) -> Iterator[str]:
    for entry in bytes_of(tensor, TENSOR_EXTERNAL):
        if text_of(entry, 1) == "location":
            yield text_of(entry, 2)


def _port(value: memoryview) -> OnnxPort:
    """A ValueInfoProto: name 1, type 2; in it tensor_type 1 with elem_type 1 and shape 2, whose dims are field 1."""
    tensors = [tensor for kind in bytes_of(value, 2) for tensor in bytes_of(kind, 1)]
    if not tensors:
        return OnnxPort(name=text_of(value, 1), dtype="not a tensor", shape=())
    code = max(integers_of(tensors[-1], 1), default=0)
    sides = [side for shape in bytes_of(tensors[-1], 2) for side in bytes_of(shape, 1)]
    return OnnxPort(
        name=text_of(value, 1),
        dtype=ELEMENT_TYPES[code] if 0 <= code < len(ELEMENT_TYPES) else f"type {code}",
        shape=tuple(_side(side) for side in sides),
    )


def _side(side: memoryview) -> int | str:
    """dim_value 1, or dim_param 2."""
    values = integers_of(side, 1)
    return values[-1] if values else text_of(side, 2) or "?"
