"""What did TensorRT make of a graph? Read from the builder's own log: its layer table and what it says of memory.

TensorRT for RTX logs one message `Layers:` with a line `Name: ..., LayerType: ..., ...` for each layer, followed by the
inputs and outputs; TensorRT 10 logs `Engine Layer Information:` with lines `Layer(TYPE): NAME, ...`. With several
optimisation profiles the table lists the layers of one profile after the other, and the tensors of all but the first
are called `NAME [profile N]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dovit_deploy.record import Record

TABLE = re.compile(r"^(?:Layers:|Engine Layer Information:)")
LINE = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w*),|^Layer\((?P<kind2>[^)]*)\): (?P<name2>.+?), ")
PROFILE = re.compile(r"\[profile (\d+)\]")
PLUGIN_KINDS = frozenset({"custom_layer", "PluginV3", "PluginV2", "Plugin"})
FUSED_ATTENTION = re.compile(r"(?:^|_)f?mh(?:a|ca)(?:_|$)", re.IGNORECASE)
"""TensorRT's fused kernels are called mha, fmha or mhca (multi-head attention, fused, cross)."""
HOST_COPY = re.compile(r"DeviceToHost|HostToDevice|ShapeHost|DeviceToShape|HostSync", re.IGNORECASE)
HOST_TENSOR = re.compile(r"^ Name: (?P<name>.+?), IOMode: .*(?:Location: Host|IsShapeInferenceIO: true)")
ACTIVATIONS = re.compile(r"^Total Activation Memory: (\d+)")


class LayerSummary(Record):
    """Figures from the layer table; with several profiles, each is that of the profile where it is worst."""

    layers: int
    attention: int
    """Attentions in the graph."""
    fused_attention: int
    """Layers that compute a whole attention: the scores never reach memory."""
    plugin_layers: int
    host_syncs: int
    """Layers that move data between host and device, and inputs or outputs in host memory."""
    activation_bytes: int | None
    """Device memory for activations at the largest profile; None where the log does not say."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, which is one line of the table."""

    name: str
    kind: str
    profile: int
    """Number of the optimisation profile that runs it."""


def layer_table(messages: Iterable[str]) -> str:
    """The message that holds the layer table; empty if there is none."""
    return next((message for message in messages if TABLE.match(message)), "")


def layers_from_table(table: str) -> tuple[Layer, ...]:
    """The layers of a table, in order."""
    layers, profile = [], 0
    for line in table.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        # A layer of constants has no tensor with a number; it belongs to the same profile as the line before it.
        number = PROFILE.search(line)
        profile = int(number[1]) if number else profile
        layers.append(Layer(match["name"] or match["name2"], match["kind"] or match["kind2"] or "", profile))
    return tuple(layers)


def summary_of_log(messages: Iterable[str], *, attention: int) -> LayerSummary:
    """The figures of one build.

    Args:
        messages: of every severity.
        attention: number of attentions in the graph.
    """
    messages = tuple(messages)
    table = layer_table(messages)
    by_profile: dict[int, list[Layer]] = {}
    for layer in layers_from_table(table):
        by_profile.setdefault(layer.profile, []).append(layer)
    profiles = list(by_profile.values())
    memory = [int(match[1]) for match in map(ACTIVATIONS.match, messages) if match]
    return LayerSummary(
        layers=max(map(len, profiles), default=0),
        attention=attention,
        fused_attention=min((sum(map(_is_fused_attention, layers)) for layers in profiles), default=0),
        plugin_layers=max((sum(layer.kind in PLUGIN_KINDS for layer in layers) for layers in profiles), default=0),
        host_syncs=max((sum(map(_copies_to_or_from_host, layers)) for layers in profiles), default=0)
        + sum(bool(HOST_TENSOR.match(line)) for line in table.splitlines()),
        # The builder logs it once for each attempt; the last one is of the engine that was built.
        activation_bytes=memory[-1] if memory else None,
    )


def _is_fused_attention(layer: Layer) -> bool:
    return bool(FUSED_ATTENTION.search(layer.name))


def _copies_to_or_from_host(layer: Layer) -> bool:
    return bool(HOST_COPY.search(f"{layer.kind} {layer.name}"))
