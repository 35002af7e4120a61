"""The inputs and outputs of every graph of a bundle: names, shapes and element types.

ONNX wants every value name once in a graph, so a stage that takes `tokens` gives `tokens_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.bundle.spec import ModelSpec

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
    """Interface of `stage0`, ..., `merged` and `dense` for the model of `spec`."""
    pixels = Port("pixels", "float32", (1, 3, *spec.size))
    logits = Port("logits", "float32", (1, spec.classes, *spec.logits_grid))
    dense = GraphInterface((pixels,), (logits,))
    kept = Port(KEPT, "int64", (len(spec.gates) + 1,))
    if not spec.gates:
        whole = GraphInterface((pixels,), (logits, kept))
        return {"stage0": whole, "merged": whole, "dense": dense}
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
    last = GraphInterface(later, (logits,))
    merged_limits = (Port("thresholds", "float32", (len(spec.gates), spec.classes)), limits[1])
    graphs = {"stage0": first}
    graphs.update({f"stage{number}": middle for number in range(1, len(spec.gates))})
    graphs[f"stage{len(spec.gates)}"] = last
    graphs["merged"] = GraphInterface((pixels, *merged_limits), (logits, kept))
    graphs["dense"] = dense
    return graphs
