"""Which network does a run train? From what a recipe chooses, from scratch or around a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from dovit_deploy.bounds import MOST_STAGES, Channels, Heads, Layers, Share
from dovit_deploy.checkpoints.settings import invalid_as_config_error
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.evovit.spec import EvoDeitSpec, TokenSelection
from dovit_deploy.families.parts import (
    AnyHead,
    ConvStem,
    FcnHead,
    GateSpec,
    LightHead,
    LinearHead,
    MaskHead,
    PatchStem,
    SetrHead,
)
from dovit_deploy.families.spec import Size
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.spec import Answer, VisionTransformerSpec
from dovit_deploy.record import Record

FamilyName = Literal["dovit", "evovit", "stvit"]
BELONGS = {
    "depth": ("dovit", "evovit"),
    "gates": ("dovit",),
    "gate_channels": ("dovit",),
    "answer": ("dovit",),
    "aggregate_rate": ("dovit",),
    "taps": ("dovit",),
    "ratio": ("evovit",),
    "depths": ("stvit",),
    "window": ("stvit",),
}
"""Choices that only some families have."""


class NetworkChoice(Record):
    """The network, as far as the data set and `--init` leave it open."""

    family: FamilyName = "dovit"
    """dovit: gates decide how many tokens run on. evovit: a fixed share. stvit: a few semantic tokens a window."""
    size: Size | None = None
    """Height and width of the input in pixels; default: those of the first image."""
    stem: Literal["conv", "patch"] = "conv"
    width: Channels = 192
    """Of stvit at its third stage, where the decode head reads: four times that of the first."""
    depth: Layers = 12
    """With `--init`, up to the checkpoint's: so many of its first layers, all of them by default."""
    depths: tuple[Layers, Layers, Layers] = (2, 2, 6)
    """Of stvit: blocks of each stage, the third a multiple of 6."""
    heads: Heads | None = None
    """Default: one for every 64 of the width (stvit: for every 32)."""
    window: int = Field(default=7, ge=2, le=1_024)
    """Of stvit: tokens on a side of a window."""
    head: Literal["setr", "mask", "linear", "light"] = "setr"
    head_channels: Channels = 96
    """Of the setr and the light head."""
    taps: tuple[Layers, ...] = Field(default=(), max_length=MOST_STAGES)
    """The decode head sees the tokens after so many layers, too, beside those of the last one."""
    gates: tuple[Layers, ...] | None = Field(default=None, max_length=MOST_STAGES - 1)
    """Layers before which a gate stands; none: a dense network. Default: a quarter, half and three quarters of the
    depth; with `--init`, the checkpoint's gates or, where it has none, those that `dovit adapt` would add."""
    gate_channels: int = Field(default=128, ge=0, le=65_536)
    """Inner width of a gate's head; 0: one linear layer."""
    answer: Answer = "feature"
    """What the decode head sees of a stopped token: its value, or that through an affine map of its gate (lens); gate:
    nothing, the gate answers, where the head looks at one token at a time."""
    aggregate_rate: Share = 0.1
    """The class token takes in the mean of the stopped tokens once this share of all has stopped; 1: never."""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """Of evovit: share of the patches that run in the second and third thirds of the layers."""

    @model_validator(mode="after")
    def _own_choices(self) -> Self:
        for name, families in BELONGS.items():
            default = type(self).model_fields[name].default
            if self.family not in families and getattr(self, name) != default:
                raise ValueError(f"{name} is a choice of {' and '.join(families)}, the family is {self.family}")
        if self.family == "evovit" and self.head == "light":
            raise ValueError("head 'light' is a choice of dovit and stvit, the family is evovit")
        return self


OPEN_WITH_INIT = frozenset({"family", "size", "depth", "gates", "gate_channels", "answer", "aggregate_rate", "ratio"})
"""What a checkpoint leaves open."""
OPEN_WITH_BACKBONE = OPEN_WITH_INIT | {"head", "head_channels", "taps"}
"""What a checkpoint without a head leaves open."""


def spec_from_choice(choice: NetworkChoice, size: tuple[int, int], classes: int) -> AnySpec:
    """The network to train from scratch on images of `size` (height, width); raises ValidationError when there is
    none of these parts."""
    if choice.family == "evovit":
        dense = _dovit_spec(choice.model_copy(update={"gates": ()}), size, classes)
        return evovit_spec(dense, choice.ratio)
    return _stvit_spec(choice, size, classes) if choice.family == "stvit" else _dovit_spec(choice, size, classes)


def _dovit_spec(choice: NetworkChoice, size: tuple[int, int], classes: int) -> VisionTransformerSpec:
    heads = choice.heads or max(1, choice.width // 64)
    layers = quarter_layers(choice.depth) if choice.gates is None else choice.gates
    return VisionTransformerSpec(
        family="dovit" if layers else "segmenter",
        size=size,
        stem=_stem(choice),
        width=choice.width,
        depth=choice.depth,
        heads=heads,
        hidden=4 * choice.width,
        classes=classes,
        gates=gate_specs(layers, choice.gate_channels),
        position_mode="bilinear",
        head=_decode_head(choice, choice.width, heads),
        answer=choice.answer,
        taps=choice.taps,
        aggregate_rate=choice.aggregate_rate,
    )


def evovit_spec(spec: VisionTransformerSpec, ratio: float) -> EvoDeitSpec:
    """The vision transformer `spec` with Evo-ViT's selections in place of gates, a third of the layers each."""
    first, second = max(1, spec.depth // 3), max(2, 2 * spec.depth // 3)
    # As published: before the first choice a score is the last layer's, then half of what it was stays.
    tradeoffs = tuple(1.0 if layer < first else 0.5 for layer in range(spec.depth))
    shared = {name: getattr(spec, name) for name in EvoDeitSpec.model_fields if name in type(spec).model_fields}
    return EvoDeitSpec.model_validate(
        {
            **{name: value for name, value in shared.items() if name != "family"},
            "selections": (
                TokenSelection(first=first, last=second, ratio=ratio),
                TokenSelection(first=second, last=spec.depth, ratio=ratio),
            ),
            "tradeoffs": tradeoffs,
        }
    )


def _stvit_spec(choice: NetworkChoice, size: tuple[int, int], classes: int) -> StvitSegmenterSpec:
    heads = choice.heads or max(1, choice.width // 32)
    return StvitSegmenterSpec(
        size=size,
        stem=choice.stem,
        width=choice.width // 4,
        depths=choice.depths,
        heads=(max(1, heads // 4), max(1, heads // 2), heads),
        window=choice.window,
        classes=classes,
        head=_decode_head(choice, choice.width, heads),
    )


def _stem(choice: NetworkChoice) -> ConvStem | PatchStem:
    return ConvStem(widths=(24, 48, 96)) if choice.stem == "conv" else PatchStem()


def head_on_backbone(choice: NetworkChoice, values: Mapping[str, Any]) -> AnyHead:
    """The head that a pretrained backbone gets, whose spec has the fields `values`; without a word, the light one
    where the family has it."""
    kept = "head" in choice.model_fields_set or choice.family == "evovit"
    return _decode_head(
        choice if kept else choice.model_copy(update={"head": "light"}), values["width"], values["heads"]
    )


def _decode_head(choice: NetworkChoice, width: int, heads: int) -> LinearHead | MaskHead | SetrHead | LightHead:
    if choice.head == "mask":
        return MaskHead(width=width, layers=2, heads=heads)
    if choice.head == "linear":
        return LinearHead()
    if choice.head == "light":
        return LightHead(channels=choice.head_channels)
    return SetrHead(channels=choice.head_channels, convs=2, up_scale=2, kernel=3)


def spec_from_trained(spec: VisionTransformerSpec, choice: NetworkChoice, *, source: str) -> VisionTransformerSpec:
    """The trained network `spec` with the depth and gates of the run; ConfigError where they do not fit."""
    depth = choice.depth if "depth" in choice.model_fields_set else spec.depth
    if depth > spec.depth:
        raise ConfigError(f"network.depth = {depth}: --init {source} has {spec.depth} layers; at most so many")
    if choice.family == "stvit":
        raise ConfigError(f"network.family = stvit: --init {source} is a vision transformer; it has other layers")
    if choice.family == "evovit":
        return _changed(spec, choice, depth, (), source)
    gates = tuple(gate for gate in spec.gates if gate.layer < depth)
    if choice.gates is not None or not gates:
        layers = added_layers(depth) if choice.gates is None else choice.gates
        gates = gate_specs(layers, choice.gate_channels)
    return _changed(spec, choice, depth, gates, source)


def evovit_from_trained(spec: VisionTransformerSpec, ratio: float, *, source: str) -> EvoDeitSpec:
    """Evo-ViT over the same layers, whose parameters have the same names; ConfigError where it cannot be."""
    if not spec.final_norm:
        raise ConfigError(
            f"network.family = evovit: --init {source} has no norm behind its last layer; Evo-ViT has one"
        )
    if spec.rotary:
        raise ConfigError(
            f"network.family = evovit: --init {source} turns queries and keys by position; Evo-ViT adds embeddings"
        )
    if spec.taps:
        raise ConfigError(f"network.family = evovit: the head of --init {source} reads several layers; Evo-ViT's one")
    if spec.mlp != "gelu":
        raise ConfigError(f"network.family = evovit: --init {source} has {spec.mlp} MLPs; Evo-ViT has GELU")
    try:
        return evovit_spec(spec, ratio)
    except ValidationError as error:
        raise invalid_as_config_error(error, source) from error


def _changed(
    spec: VisionTransformerSpec, choice: NetworkChoice, depth: int, gates: tuple[GateSpec, ...], source: str
) -> VisionTransformerSpec:
    """`spec` with its first `depth` layers, other gates and what `choice` states of stopped tokens; raises ConfigError
    where they do not fit."""
    stated = choice.model_fields_set & {"answer", "aggregate_rate"}
    change = {
        **{name: getattr(choice, name) for name in stated},
        # Lenses of taps come from an adapted network, and go where its own go.
        "tap_answer": spec.tap_answer if "answer" not in stated or choice.answer == "lens" else "feature",
        "depth": depth,
        "gates": [gate.model_dump() for gate in gates],
        "family": "dovit" if gates else "segmenter",
        # The loss, and with it the trained answer, covers the image from its first corner on.
        "padding": "end",
    }
    try:
        return VisionTransformerSpec.model_validate({**spec.model_dump(), **change})
    except ValidationError as error:
        raise invalid_as_config_error(error, source) from error


def gate_specs(layers: tuple[int, ...], channels: int) -> tuple[GateSpec, ...]:
    """Per-token gates before `layers`."""
    head = FcnHead(channels=channels) if channels else LinearHead()
    return tuple(GateSpec(layer=layer, head=head) for layer in layers)


def quarter_layers(depth: int) -> tuple[int, ...]:
    """A quarter, half and three quarters of `depth`, rounded down, doubles and 0 removed."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4} - {0}))


def added_layers(depth: int) -> tuple[int, ...]:
    """Where gates are added to a trained network: 2, 5, 8 of 12, 6, 12, 18 of 24, else as `quarter_layers`."""
    return {12: (2, 5, 8), 24: (6, 12, 18)}.get(depth) or quarter_layers(depth)
