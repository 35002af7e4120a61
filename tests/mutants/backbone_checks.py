"""What mutants of the readers of backbones must fail: a DINOv2 read from its file is what its own description says.

The reference is the naive one, over weights that are put together here: each LayerScale multiplied in, no position for
the registers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import facts_from_state
from dovit_deploy.checkpoints.official_state import ours_from_official
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.families import registry
from dovit_deploy.families.vit import dinov2
from dovit_deploy.families.vit.backbones import joined_architecture
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.naive import naive_positions, naive_run
from tests.plain_maths import Array
from tests.tiny import tiny_pixels

WIDTH, DEPTH, HEADS, SIDE, CLASSES = 16, 2, 2, 3, 4
SIZE = (70, 45)
"""Another grid than that of the positions, and no whole patches."""
Weights = dict[str, Array]


@cache
def published(registers: int) -> dict[str, Tensor]:
    """A small random DINOv2 under its own names, and a linear head.

    Tokens are so small that the epsilon of the norms shows, and LayerScales so different from 1 that they do.
    """
    draw = np.random.default_rng(registers)
    quiet = 0.004

    def values(*shape: int, spread: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.from_numpy(mean + spread * draw.normal(0.0, 1.0, shape)).float()

    state = {
        "cls_token": values(1, 1, WIDTH, spread=quiet),
        "pos_embed": values(1, 1 + SIDE * SIDE, WIDTH, spread=quiet),
        "mask_token": values(1, WIDTH),
        "patch_embed.proj.weight": values(WIDTH, 3, 14, 14, spread=quiet / 24),
        "patch_embed.proj.bias": values(WIDTH, spread=quiet),
        "norm.weight": values(WIDTH, spread=0.2, mean=1.0),
        "norm.bias": values(WIDTH, spread=0.2),
        "weight": values(CLASSES, WIDTH, spread=WIDTH**-0.5),
        "bias": values(CLASSES, spread=0.2),
    }
    if registers:
        state["register_tokens"] = values(1, registers, WIDTH, spread=quiet)
    for layer in range(DEPTH):
        block = f"blocks.{layer}."
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": values(WIDTH, spread=0.2, mean=1.0)}
            state |= {f"{block}{norm}.bias": values(WIDTH, spread=0.2)}
        for name, outputs, inputs in [
            *(("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH)),
            *(("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)),
        ]:
            state |= {f"{block}{name}.weight": values(outputs, inputs, spread=inputs**-0.5)}
            state |= {f"{block}{name}.bias": values(outputs, spread=0.5)}
        state |= {f"{block}{scale}.gamma": values(WIDTH, spread=quiet) for scale in ("ls1", "ls2")}
    return state


def described(state: dict[str, Tensor], registers: int) -> Weights:
    """The weights of the naive reference, at the size that the positions are made for."""
    given = {name: tensor.double().numpy() for name, tensor in state.items()}
    tokens = [given["cls_token"][0], *([given["register_tokens"][0]] if registers else [])]
    positions = given["pos_embed"][0]
    weights = {
        "extra_tokens": np.concatenate(tokens),
        "positions": np.concatenate([positions[:1], np.zeros((registers, WIDTH)), positions[1:]]),
        "stem.projection.weight": given["patch_embed.proj.weight"],
        "stem.projection.bias": given["patch_embed.proj.bias"],
        "norm.weight": given["norm.weight"],
        "norm.bias": given["norm.bias"],
        "head.head.classifier.weight": given["weight"],
        "head.head.classifier.bias": given["bias"],
    }
    for layer in range(DEPTH):
        block = f"blocks.{layer}."
        for end in ("weight", "bias"):
            for number, part in enumerate(("query", "key", "value")):
                rows = slice(number * WIDTH, (number + 1) * WIDTH)
                weights[f"{block}attention.{part}.{end}"] = given[f"{block}attn.qkv.{end}"][rows]
            weights[f"{block}mlp.expand.{end}"] = given[f"{block}mlp.fc1.{end}"]
            weights |= {f"{block}{norm}.{end}": given[f"{block}{norm}.{end}"] for norm in ("norm1", "norm2")}
        for scale, source, ours in (("ls1", "attn.proj", "attention.output"), ("ls2", "mlp.fc2", "mlp.contract")):
            gamma = given[f"{block}{scale}.gamma"]
            weights[f"{block}{ours}.weight"] = np.diag(gamma) @ given[f"{block}{source}.weight"]
            weights[f"{block}{ours}.bias"] = gamma * given[f"{block}{source}.bias"]
    return weights


def a_dinov2_is_read_as_its_own_code_runs_it() -> None:
    """Logits at another size than that of the positions, without and with registers."""
    for registers, mode in ((0, "scale"), (3, "antialias")):
        state = published(registers)
        sources = Sources("", {"num_heads": HEADS}, facts_from_state(state), "dinov2.pth")
        architecture = joined_architecture(dinov2.BACKBONE, sources, separate=True)
        spec = architecture.spec
        assert isinstance(spec, VisionTransformerSpec)
        ours = ours_from_official(state, architecture.key_map, spec, source="dinov2.pth")
        at_size = registry.spec_at_size(spec, SIZE)
        pixels = tiny_pixels(SIZE, 2)
        model = registry.model_from_spec(at_size, registry.state_at_size(ours, spec, SIZE))
        found = model.one_image(pixels, dense=True).results[0][0].double().numpy()
        # What is true of DINOv2, whatever the reader says.
        truth = {"norm_eps": 1e-6, "position_mode": mode, "final_norm": True, "extra_tokens": 1 + registers}
        weights = described(state, registers)
        weights["positions"] = naive_positions(weights["positions"], spec.model_copy(update=truth), SIZE)
        expected = naive_run(at_size.model_copy(update=truth), weights, pixels[0].double().numpy()).logits
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


CHECKS: dict[str, Callable[[], None]] = {"dinov2": a_dinov2_is_read_as_its_own_code_runs_it}
