"""What every graph of a bundle is called, and its inputs and outputs: names, shapes and element types.

Only this file knows how graphs, tensors and files are named; engines, passes and sessions take the names from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dovit_deploy.errors import GraphMismatch, shown
from dovit_deploy.families.spec import ModelSpec

MERGED = "merged"
"""All stages in one graph, which decides for itself."""
DENSE = "dense"
"""The network without gates; not every model has one."""
_STAGE, _KEEP = "stage", "keep"

PIXELS, THRESHOLDS, FLOOR = "pixels", "thresholds", "floor"
TOKENS, INDEX = "tokens", "index"
ORDER, COUNT, CONFIDENCE, LABEL = "order", "count", "confidence", "label"
LOGITS = "logits"
KEPT = "kept"
"""Tokens that entered each stage; also the name of the one symbolic dimension."""

CARRY = "carry."
"""What begins the name of a tensor that stages pass on beside the tokens."""
_OUT = "_out"
"""ONNX wants every value name once in a graph: what a stage takes and gives anew has this at the end of its output."""

Shape = tuple[int | str, ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Port:
    """One input or output: element type is "float32" or "int64"."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class GraphInterface:
    """What a graph takes and gives, in order."""

    takes: tuple[Port, ...]
    gives: tuple[Port, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order."""
        return tuple(port.name for port in self.takes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output names in order."""
        return tuple(port.name for port in self.gives)


def stage_name(number: int) -> str:
    """The graph of stage `number`, counted from 0."""
    return f"{_STAGE}{number}"


def stage_number(graph: str) -> int | None:
    """The number of a stage's graph; None for `merged` and `dense`."""
    number = graph.removeprefix(_STAGE)
    return int(number) if graph.startswith(_STAGE) and number.isdecimal() else None


FP32 = "fp32"
"""The precision that every bundle has; files of others carry their names."""
GRAPH_NAME = "dovit.graph"
"""Key of each file's metadata under which it says which graph it holds."""


def graph_file(graph: str, *, fast: bool = False, precision: str = FP32) -> str:
    """The file of a graph in its portable form, or in the one for ONNX Runtime, which has operators of its own."""
    return f"{_of_precision(graph, precision)}.ort.onnx" if fast else f"{_of_precision(graph, precision)}.onnx"


def weights_file(precision: str = FP32) -> str:
    """The file of the weights in fp32, or of what another precision has beside them."""
    return f"{_of_precision('weights', precision)}.safetensors"


def _of_precision(name: str, precision: str) -> str:
    return name if precision == FP32 else f"{name}.{precision}"


def tokens_output(stage: int) -> str:
    """The output of stage `stage` that the next one takes as `tokens`."""
    return f"{TOKENS}{_OUT}" if stage else TOKENS


def is_crossing(name: str) -> bool:
    """Whether an input or output is a float tensor that one stage makes for another: tokens, or what is carried."""
    return name.removesuffix(_OUT) == TOKENS or name.startswith(CARRY)


def carried_from_outputs(outputs: Mapping[str, Value]) -> dict[str, Value]:
    """What a stage's outputs hold for later stages beside the tokens, by the names under which these take it."""
    return {name.removesuffix(_OUT): value for name, value in outputs.items() if name.startswith(CARRY)}


def carry_inputs(spec: ModelSpec, stage: int) -> tuple[str, ...]:
    """The inputs of stage `stage` that earlier ones give beside the tokens, in order."""
    return tuple(f"{CARRY}{one.name}" for one in spec.carried if stage in one.taken_by)


def keep_name(number: int) -> str:
    """The output that says which tokens choice `number` inside a graph took: (h * w,) of 0 and 1."""
    return f"{_KEEP}{number}"


def is_keep_name(name: str) -> bool:
    """Whether an output says which tokens a choice inside the graph took."""
    return name.startswith(_KEEP)


def graph_interfaces(spec: ModelSpec) -> dict[str, GraphInterface]:
    """Interface of `stage0`, ..., `merged` and, where there is one, `dense` for the model of `spec`."""
    pixels = Port(PIXELS, "float32", (1, 3, *spec.size))
    answers = tuple(Port(name, "float32", shape) for name, shape in spec.outputs.items())
    graphs = _cut_at_gates(spec, pixels, answers) if spec.gates else _in_one_piece(spec, pixels, answers)
    if spec.has_dense:
        graphs[DENSE] = GraphInterface((pixels,), answers)
    return graphs


def _in_one_piece(spec: ModelSpec, pixels: Port, answers: tuple[Port, ...]) -> dict[str, GraphInterface]:
    """Nothing depends on the data: one graph under both names, with the counts and choices that it made."""
    # A session runs it as its only stage, and `merged` is in every bundle.
    kept = Port(KEPT, "int64", (len(spec.counts),))
    choices = (
        Port(keep_name(number), "int64", (rows * columns,)) for number, (rows, columns) in enumerate(spec.keep_grids)
    )
    whole = GraphInterface((pixels,), (*answers, kept, *choices))
    return {stage_name(0): whole, MERGED: whole}


def _cut_at_gates(spec: ModelSpec, pixels: Port, answers: tuple[Port, ...]) -> dict[str, GraphInterface]:
    """A graph up to each gate, which ends in its decision, and one behind the last."""
    gates, tokens = len(spec.gates), (spec.tokens, spec.width)
    limits = (Port(THRESHOLDS, "float32", (spec.classes,)), Port(FLOOR, "float32", ()))
    decision = (
        Port(ORDER, "int64", (spec.tokens,)),
        Port(COUNT, "int64", ()),
        Port(CONFIDENCE, "float32", (spec.patches,)),
        Port(LABEL, "int64", (spec.patches,)),
    )
    later = (Port(TOKENS, "float32", tokens), Port(INDEX, "int64", (KEPT,)))
    stages = {}
    for number in range(gates):
        takes = (*(later if number else (pixels,)), *limits, *_carry_taken(spec, number))
        gives = (Port(tokens_output(number), "float32", tokens), *decision, *_carry_given(spec, number))
        stages[stage_name(number)] = GraphInterface(takes, gives)
    # A stage takes its own gate's row of thresholds, the merged graph all rows.
    all_limits = (Port(THRESHOLDS, "float32", (gates, spec.classes)), Port(FLOOR, "float32", ()))
    return {
        **stages,
        stage_name(gates): GraphInterface((*later, *_carry_taken(spec, gates)), answers),
        MERGED: GraphInterface((pixels, *all_limits), (*answers, Port(KEPT, "int64", (gates + 1,)))),
    }


def _carry_taken(spec: ModelSpec, stage: int) -> Iterator[Port]:
    return (Port(f"{CARRY}{one.name}", "float32", one.shape) for one in spec.carried if stage in one.taken_by)


def _carry_given(spec: ModelSpec, stage: int) -> Iterator[Port]:
    for one in spec.carried:
        if stage in one.given_by:
            end = _OUT if stage in one.taken_by else ""
            yield Port(f"{CARRY}{one.name}{end}", "float32", one.shape)


def check_graph_name(bundle: str, graph: str, found: str) -> None:
    """Raise GraphMismatch unless the file of `graph` in the bundle called `bundle` names itself so.

    Stages of equal width have equal inputs and outputs: only the name within the file tells them apart.
    """
    if found != graph:
        raise GraphMismatch(f"{bundle}: the file of graph '{graph}' holds '{shown(found)}'; export again")


def check_ports(bundle: str, graph: str, promised: GraphInterface, found: GraphInterface) -> None:
    """Compare what the file of `graph` in the bundle called `bundle` takes and gives with what is promised.

    Raises:
        GraphMismatch: it is something else; sides that the file leaves open fit any.
    """
    for wanted, given in ((promised.takes, found.takes), (promised.gives, found.gives)):
        if len(given) != len(wanted) or not all(map(_fits, given, wanted)):
            raise GraphMismatch(
                f"{bundle}: graph '{graph}' has {shown(_in_words(given))}",
                f"the manifest promises {shown(_in_words(wanted))}; export the checkpoint again",
            )


def _fits(port: Port, wanted: Port) -> bool:
    """Equal but for sides that the graph leaves open."""
    if (port.name, port.dtype) != (wanted.name, wanted.dtype) or len(port.shape) != len(wanted.shape):
        return False
    sides = zip(port.shape, wanted.shape, strict=True)
    return all(one == other for one, other in sides if isinstance(one, int) and isinstance(other, int))


def _in_words(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"{port.name} {port.dtype} {'x'.join(map(str, port.shape)) or 'scalar'}" for port in ports)
