"""The inputs and outputs of every graph of a bundle: names, shapes and element types.

ONNX wants every value name once in a graph, so a stage that takes `tokens` gives `tokens_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.families.spec import ModelSpec

KEPT = "kept"
"""The one symbolic dimension."""

Shape = tuple[int | str, ...]


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


def graph_interfaces(spec: ModelSpec) -> dict[str, GraphInterface]:
    """Interface of `stage0`, ..., `merged` and, where there is one, `dense` for the model of `spec`."""
    pixels = Port("pixels", "float32", (1, 3, *spec.size))
    answers = tuple(Port(name, "float32", shape) for name, shape in spec.outputs.items())
    graphs = _cut_at_gates(spec, pixels, answers) if spec.gates else _in_one_piece(spec, pixels, answers)
    if spec.has_dense:
        graphs["dense"] = GraphInterface((pixels,), answers)
    return graphs


def keep_name(number: int) -> str:
    """The output that tells which tokens choice `number` inside a graph took: (h * w,) of 0 and 1."""
    return f"keep{number}"


def _in_one_piece(spec: ModelSpec, pixels: Port, answers: tuple[Port, ...]) -> dict[str, GraphInterface]:
    """Nothing depends on the data: one graph under both names, with counts and choices as it made them."""
    kept = Port(KEPT, "int64", (len(spec.counts),))
    choices = (
        Port(keep_name(number), "int64", (rows * columns,)) for number, (rows, columns) in enumerate(spec.keep_grids)
    )
    whole = GraphInterface((pixels,), (*answers, kept, *choices))
    return {"stage0": whole, "merged": whole}


def _cut_at_gates(spec: ModelSpec, pixels: Port, answers: tuple[Port, ...]) -> dict[str, GraphInterface]:
    limits = (Port("thresholds", "float32", (spec.classes,)), Port("floor", "float32", ()))
    decision = (
        Port("order", "int64", (spec.tokens,)),
        Port("count", "int64", ()),
        Port("confidence", "float32", (spec.patches,)),
        Port("label", "int64", (spec.patches,)),
    )
    size: Shape = (spec.tokens, spec.width)
    later = (Port("tokens", "float32", size), Port("index", "int64", (KEPT,)))
    first = GraphInterface((pixels, *limits), (Port("tokens", "float32", size), *decision))
    middle = GraphInterface((*later, *limits), (Port("tokens_out", "float32", size), *decision))
    merged_limits = (Port("thresholds", "float32", (len(spec.gates), spec.classes)), limits[1])
    graphs = {"stage0": first}
    graphs.update({f"stage{number}": middle for number in range(1, len(spec.gates))})
    graphs[f"stage{len(spec.gates)}"] = GraphInterface(later, answers)
    kept = Port(KEPT, "int64", (len(spec.gates) + 1,))
    graphs["merged"] = GraphInterface((pixels, *merged_limits), (*answers, kept))
    return graphs
