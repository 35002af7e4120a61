"""Tiny models in code: specs with every option of a real one, and seeded weights scaled so that branches matter.

The weights are drawn by NumPy from the seed and the parameter's name order, so a model is the same on every machine.
Gate classifiers are scaled so that confidences spread over most of (1 / classes, 1): with `tiny_spec`'s defaults a
threshold of 0.7 stops a middling share of the tokens at every gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.families.layers import positions_at_size
from dovit_deploy.families.parts import (
    ConvStem,
    FcnHead,
    GateHead,
    GateSpec,
    Head,
    LightHead,
    LinearHead,
    MaskHead,
    MlpKind,
    Padding,
    PatchStem,
    PositionMode,
    QueryHead,
    SetrHead,
)
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import Answer, Context, VisionTransformerSpec

HeadName = Literal["mask", "linear", "fcn", "setr", "pup", "light", "query"]
GateName = Literal["fcn", "linear", "setr"]

# Standard deviations that are not 1 / sqrt(fan in), by the end of the parameter's name.
SPREADS = {"positions": 0.6, "extra_tokens": 1.0, "class_tokens": 1.0, "queries": 1.0}
GAINS = {"query.weight": 1.5, "key.weight": 1.5}
# Tokens are sums of what these parameters make.
TOKEN_SOURCES = (
    *("positions", "extra_tokens", "class_tokens", "queries", "stem.projection.", "head.embed."),
    *("attention.output.", "mlp.contract."),
)
GATE_GAINS = {"linear": 1.4, "fcn": 2.0, "setr": 5.0}


def decode_head(name: HeadName, *, width: int, heads: int) -> Head:
    """A small decode head of the kind called `name`; the mask head is wider than the backbone, as it may be."""
    if name == "mask":
        return MaskHead(width=width + 4 * heads, layers=2, heads=heads)
    if name == "setr":
        return SetrHead(channels=8, convs=1, up_scale=4, kernel=1)
    if name == "pup":
        return SetrHead(channels=6, convs=2, up_scale=2, kernel=3)
    if name == "light":
        return LightHead(channels=6)
    if name == "query":
        return QueryHead(queries=7, joined=2, doublings=1)
    return FcnHead(channels=10) if name == "fcn" else LinearHead()


def gate_head(name: GateName) -> GateHead:
    """A small auxiliary head of the kind called `name`."""
    if name == "fcn":
        return FcnHead(channels=12)
    if name == "setr":
        return SetrHead(channels=8, convs=1, up_scale=4, kernel=1)
    return LinearHead()


def tiny_spec(
    *,
    head: HeadName = "mask",
    gate: GateName = "fcn",
    gates: Sequence[int] = (1, 3),
    depth: int = 4,
    width: int = 16,
    heads: int = 2,
    size: tuple[int, int] = (56, 72),
    classes: int = 5,
    final_norm: bool = True,
    norm_eps: float = 1e-6,
    stem: Literal["patch", "conv"] = "patch",
    patch: int = 16,
    extra_tokens: int = 1,
    position_mode: PositionMode = "bicubic",
    aggregate_rate: float = 0.1,
    answer: Answer = "feature",
    context: Context = "none",
    taps: Sequence[int] = (),
    tap_answer: Literal["feature", "lens"] = "feature",
    tap_norm: bool = True,
    mlp: MlpKind = "gelu",
    padding: Padding = "end",
    rotary: bool = False,
) -> VisionTransformerSpec:
    """A spec of a few thousand weights; `stem="conv"` makes patches of 16 whatever `patch` is."""
    return VisionTransformerSpec(
        family="dovit" if gates else "segmenter",
        size=size,
        patch=16 if stem == "conv" else patch,
        stem=ConvStem(widths=(4, 6, 8)) if stem == "conv" else PatchStem(),
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        extra_tokens=extra_tokens,
        norm_eps=norm_eps,
        final_norm=final_norm,
        classes=classes,
        gates=tuple(GateSpec(layer=layer, head=gate_head(gate)) for layer in gates),
        aggregate_rate=aggregate_rate,
        position_mode=position_mode,
        mlp=mlp,
        padding=padding,
        rotary=rotary,
        head=decode_head(head, width=width, heads=heads),
        answer=answer,
        context=context,
        taps=tuple(taps),
        tap_answer=tap_answer,
        tap_norm=tap_norm,
    )


def tiny_state(spec: VisionTransformerSpec, seed: int = 0, *, loudness: float = 1.0) -> dict[str, Tensor]:
    """Weights of `spec`, float32, by the network's own parameter names.

    `loudness` scales what tokens are made of (embeddings, and what blocks add): at 0.003 a token's variance is about
    as large as a LayerNorm's epsilon, so that the epsilon shows in the output.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VisionTransformer(spec).state_dict().items()}
    draw = np.random.default_rng(seed)
    state = {name: _parameter(name, shapes[name], draw, loudness=loudness) for name in sorted(shapes)}
    for number, gate in enumerate(spec.gates):
        state[f"gates.{number}.head.classifier.weight"] *= GATE_GAINS[gate.head.kind]
    # The tables follow from the periods, and are none of the weights.
    return positions_at_size(state, spec, spec) if spec.rotary else state


def tiny_model(spec: VisionTransformerSpec, seed: int = 0, *, loudness: float = 1.0) -> VisionTransformer:
    """The network of `spec` with `tiny_state`'s weights, in evaluation mode."""
    return model_from_spec(spec, tiny_state(spec, seed, loudness=loudness))


def tiny_pixels(size: tuple[int, int], seed: int = 0, *, images: int = 1) -> Tensor:
    """Normalised pixels (images, 3, H, W), float32: blocks of even colour under noise, so that tokens differ."""
    draw = np.random.default_rng([seed, *size])
    height, width = size
    coarse = draw.normal(0.0, 1.0, (images, 3, height // 16 + 1, width // 16 + 1))
    blocks = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return torch.from_numpy(blocks + 0.5 * draw.normal(0.0, 1.0, blocks.shape)).float()


def _parameter(name: str, shape: tuple[int, ...], draw: np.random.Generator, *, loudness: float) -> Tensor:
    """One parameter: norms around 1, biases small, matrices of gain about 1 for their fan-in."""
    noise = draw.normal(0.0, 1.0, shape)
    if "norm" in name:
        values = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
    elif name.split(".")[-1] in SPREADS:
        values = SPREADS[name.split(".")[-1]] * noise
    elif name.endswith("periods"):
        values = 0.8 + np.abs(noise)
    elif name.endswith("bias"):
        values = 0.2 * noise
    else:
        gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
        values = gain * noise / np.sqrt(np.prod(shape[1:]))
    if any(source in name for source in TOKEN_SOURCES):
        values = values * loudness
    return torch.from_numpy(values).float()
