"""The network of a run, from what a user chooses: stem, width, depth, decode head, where gates stand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dovit_deploy.bundle.spec import (
    ConvStem,
    FcnHead,
    GateSpec,
    Head,
    LinearHead,
    MaskHead,
    Noun,
    PatchStem,
    SetrHead,
    VisionTransformerSpec,
)


class NetworkChoice(Noun):
    """The network, as far as the data set and `--init` leave it open."""

    size: tuple[int, int] | None = None
    """Height and width of the input in pixels; default: those of the first image."""
    stem: Literal["conv", "patch"] = "conv"
    width: int = Field(default=192, gt=0)
    depth: int = Field(default=12, gt=0)
    """With `--init`, up to the checkpoint's: so many of its first layers, all of them by default."""
    heads: int | None = Field(default=None, gt=0)
    """Default: one for every 64 of the width."""
    head: Literal["setr", "mask", "linear"] = "setr"
    head_channels: int = Field(default=96, gt=0)
    """Of the setr head."""
    gates: tuple[int, ...] | None = None
    """Layers before which a gate stands; none: a dense network. Default: a quarter, half and three quarters of the
    depth; with `--init`, the checkpoint's gates or, where it has none, those that `dovit adapt` would add."""
    gate_channels: int = Field(default=128, ge=0)
    """Inner width of a gate's head; 0: one linear layer."""


OPEN_WITH_INIT = frozenset({"size", "depth", "gates", "gate_channels"})
"""What a checkpoint leaves open."""


def spec_from_choice(choice: NetworkChoice, size: tuple[int, int], classes: int) -> VisionTransformerSpec:
    """The network to train from scratch on images of `size` (height, width); raises ValidationError when there is
    none of these parts."""
    heads = choice.heads or max(1, choice.width // 64)
    layers = quarter_layers(choice.depth) if choice.gates is None else choice.gates
    return VisionTransformerSpec(
        family="dovit" if layers else "segmenter",
        size=size,
        stem=ConvStem(widths=(24, 48, 96)) if choice.stem == "conv" else PatchStem(),
        width=choice.width,
        depth=choice.depth,
        heads=heads,
        hidden=4 * choice.width,
        classes=classes,
        gates=gate_specs(layers, choice.gate_channels),
        position_mode="bilinear",
        head=_decode_head(choice, heads),
    )


def _decode_head(choice: NetworkChoice, heads: int) -> Head:
    if choice.head == "mask":
        return MaskHead(width=choice.width, layers=2, heads=heads)
    if choice.head == "linear":
        return LinearHead()
    return SetrHead(channels=choice.head_channels, convs=2, up_scale=2, kernel=3)


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
