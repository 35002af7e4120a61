"""Tiny networks of STViT-R, STViT and Swin in code: specs, and seeded weights scaled so that every branch matters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import shapes_of
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitDeitSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from tests.tiny import HeadName, decode_head

SPREADS = {"table": 0.7, "global_tokens": 0.7, "positions": 0.5, "factor": 0.6}


def tiny_swin(size: tuple[int, int] = (64, 64), *, window: int = 2, stem: str = "patch") -> SwinSpec:
    """A plain Swin."""
    return SwinSpec(size=size, stem=stem, width=4, depths=(2, 1, 2, 2), heads=(1, 2, 2, 4), window=window, classes=5)


def tiny_classifier(
    size: tuple[int, int] = (160, 160),
    *,
    window: int = 10,
    units: int = 1,
    options: bool = False,
    ordinary: tuple[int, int, int] = (2, 1, 2),
) -> StvitSwinSpec:
    """STViT-R at one of the few sizes it takes; `options` turns everything on that is off in the released models.

    At 160 the reduced grid is one window; at 224, with windows of 7, it is four. `ordinary` blocks in the other stages.
    """
    return StvitSwinSpec(
        size=size,
        width=4,
        depths=(*ordinary[:2], 6 * units, ordinary[2]),
        heads=(1, 2, 2, 4),
        window=window,
        classes=5,
        pooled_residual=options,
        global_tokens=options,
        relative_positions=options,
        local_convolution=options,
        layer_scale=options,
    )


def tiny_backbone(size: tuple[int, int] = (100, 140), *, padding_mask: str = "released") -> StvitBackboneSpec:
    """The backbone with small windows and neighbourhoods."""
    return StvitBackboneSpec(
        size=size,
        width=4,
        depths=(2, 1, 6, 2),
        heads=(1, 2, 2, 4),
        window=3,
        neighbourhoods=(6, 9),
        recovery_neighbourhood=7,
        padding_mask=padding_mask,
        local_convolution=True,
    )


def tiny_segmenter(
    size: tuple[int, int] = (72, 104), *, head: HeadName = "linear", units: int = 1, padding_mask: str = "exact"
) -> StvitSegmenterSpec:
    """A segmenter of a few thousand weights."""
    return StvitSegmenterSpec(
        size=size,
        width=4,
        depths=(2, 2, 6 * units),
        heads=(1, 2, 2),
        window=3,
        neighbourhoods=(6, 9),
        recovery_neighbourhood=7,
        padding_mask=padding_mask,
        classes=5,
        head=decode_head(head, width=16, heads=2),
    )


def tiny_deit(size: tuple[int, int] = (48, 64), *, depth: int = 5, reduced_from: int = 2) -> StvitDeitSpec:
    """The composed STViT on DeiT."""
    return StvitDeitSpec(
        size=size,
        patch=8,
        width=8,
        depth=depth,
        heads=2,
        hidden=32,
        reduced_from=reduced_from,
        samples=3,
        classes=5,
    )


def training_state(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the network in training form, float32."""
    draw = np.random.default_rng(seed)
    shapes = shapes_of(spec, trainable=True)
    state = {name: _parameter(name, shapes[name], draw) for name in sorted(shapes)}
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def deployed_state(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """The same weights in deployment form."""
    return deployed(training_state(spec, seed))


def _parameter(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor:
    noise = draw.normal(0.0, 1.0, shape)
    last = name.split(".")[-1]
    if last == "running_var":
        values = 0.5 + noise**2
    elif "norm" in name:
        values = 0.2 * noise + (1.0 if last == "weight" else 0.0)
    elif last in SPREADS:
        values = SPREADS[last] * noise
    elif last == "bias":
        values = 0.2 * noise
    else:
        gain = 1.5 if ".query." in name or ".key." in name else 1.0
        values = gain * noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values)).float()
