"""TensorRT's own words about a build: the layer table of its VERBOSE log, and what it says about memory.

TensorRT for RTX prints one message `Layers:` with a line `Name: ..., LayerType: ..., ...` for each layer and the
inputs and outputs after them; TensorRT 10 prints `Engine Layer Information:` with lines `Layer(TYPE): NAME, ...`.
Of several optimisation profiles each has its layers, one profile after the other, and the tensors of all but the first
are called `NAME [profile N]`.
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
PROFILE = re.compile(r"\[profile (\d+)\]")
ACTIVATIONS = re.compile(r"^Total Activation Memory: (\d+)")


@dataclass(frozen=True)
class Layer:
    """A line of the table."""

    name: str
    kind: str
    profile: int
    """Number of the optimisation profile that runs it."""


def layer_table(messages: Iterable[str]) -> str:
    """The message that holds the layer table; empty where there is none."""
    return next((message for message in messages if TABLE.match(message)), "")


def layers_from_table(table: str) -> tuple[Layer, ...]:
    """The layers of a table, in order."""
    layers, profile = [], 0
    for line in table.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        # A layer of constants alone bears no number; it belongs with what stands before it.
        number = PROFILE.search(line)
        profile = int(number[1]) if number else profile
        layers.append(Layer(match["name"] or match["name2"], match["kind"] or match["kind2"] or "", profile))
    return tuple(layers)


def summary_of_log(messages: Iterable[str], *, attention: int) -> LayerSummary:
    """What the log of a build says, of the optimisation profile that is worst in each respect.

    Args:
        messages: of every severity.
        attention: how many attentions the graph has.
    """
    kept = tuple(messages)
    table = layer_table(kept)
    profiles: dict[int, list[Layer]] = {}
    for layer in layers_from_table(table):
        profiles.setdefault(layer.profile, []).append(layer)
    each = list(profiles.values())
    memory = [int(match[1]) for match in map(ACTIVATIONS.match, kept) if match]
    return LayerSummary(
        layers=max(map(len, each), default=0),
        attention=attention,
        fused_attention=min((sum(map(_is_fused_attention, layers)) for layers in each), default=0),
        plugin_layers=max((sum(layer.kind in PLUGIN_KINDS for layer in layers) for layers in each), default=0),
        host_syncs=max((sum(map(_copies_to_or_from_host, layers)) for layers in each), default=0)
        + sum(bool(HOST_TENSOR.match(line)) for line in table.splitlines()),
        activation_bytes=memory[-1] if memory else None,
    )


def _is_fused_attention(layer: Layer) -> bool:
    return bool(FUSED_ATTENTION.search(layer.name))


def _copies_to_or_from_host(layer: Layer) -> bool:
    return bool(HOST_COPY.search(f"{layer.kind} {layer.name}"))
