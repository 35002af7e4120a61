"""TensorRT's own words about a build: the layer table of its VERBOSE log, and what it says about memory.

TensorRT for RTX prints one message `Layers:` with a line `Name: ..., LayerType: ..., ...` for each layer and the
inputs and outputs after them; TensorRT 10 prints `Engine Layer Information:` with lines `Layer(TYPE): NAME, ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dovit_deploy.engines.engine_record import LayerSummary

TABLE = re.compile(r"^(?:Layers:|Engine Layer Information:)")
LINE = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w*),|^Layer\((?P<kind2>[^)]*)\): (?P<name2>.+?), ")
PLUGIN_KINDS = frozenset({"custom_layer", "PluginV3", "PluginV2", "Plugin"})
FUSED_ATTENTION = re.compile(r"(?:^|_)f?mh(?:a|ca)(?:_|$)", re.IGNORECASE)
HOST_COPY = re.compile(r"DeviceToHost|HostToDevice|ShapeHost|DeviceToShape|HostSync", re.IGNORECASE)
HOST_TENSOR = re.compile(r"^ Name: (?P<name>.+?), IOMode: .*(?:Location: Host|IsShapeInferenceIO: true)")
ACTIVATIONS = re.compile(r"^Total Activation Memory: (\d+)")


@dataclass(frozen=True)
class Layer:
    """A line of the table."""

    name: str
    kind: str


def layer_table(messages: Iterable[str]) -> str:
    """The message that holds the layer table; empty where there is none."""
    return next((message for message in messages if TABLE.match(message)), "")


def layers_from_table(table: str) -> tuple[Layer, ...]:
    """The layers of a table, in order."""
    found = (LINE.match(line) for line in table.splitlines())
    return tuple(
        Layer(match["name"] or match["name2"], match["kind"] or match["kind2"] or "") for match in found if match
    )


def summary_of_log(messages: Iterable[str], *, attention: int) -> LayerSummary:
    """What the log of a build says.

    Args:
        messages: of every severity.
        attention: how many attentions the graph has.
    """
    kept = tuple(messages)
    table = layer_table(kept)
    layers = layers_from_table(table)
    memory = [int(match[1]) for match in map(ACTIVATIONS.match, kept) if match]
    return LayerSummary(
        layers=len(layers),
        attention=attention,
        fused_attention=sum(bool(FUSED_ATTENTION.search(layer.name)) for layer in layers),
        plugin_layers=sum(layer.kind in PLUGIN_KINDS for layer in layers),
        host_syncs=sum(bool(HOST_COPY.search(f"{layer.kind} {layer.name}")) for layer in layers)
        + sum(bool(HOST_TENSOR.match(line)) for line in table.splitlines()),
        activation_bytes=memory[-1] if memory else None,
    )
