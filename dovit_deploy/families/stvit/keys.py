"""Official key names of Swin and STViT-R against ours. Sources: microsoft/Swin-Transformer, changsn/STViT-R."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import TIMM_BLOCK, Rule, affine, block_rules, listed, rule
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.stvit.attention import ShiftMask
from dovit_deploy.families.stvit.spec import (
    REDUCED_STAGE,
    SAMPLES,
    UNIT,
    StvitBackboneSpec,
    StvitDeitSpec,
    StvitSwinSpec,
)
from dovit_deploy.families.stvit.swin_spec import PATCH, SwinShape, SwinSpec
from dovit_deploy.families.stvit.windows import relative_table

UNIT_PARTS = ("entry", "pooling", "exchange", "local", "everywhere", "recovery")
"""Our names of a unit's six blocks, in the order of the source."""


def conv_stem_rules(shape: SwinShape) -> list[Rule]:
    """LeViT's Conv2d_BN twice."""
    norms = ("weight", "bias", "running_mean", "running_var")
    rules, inputs = [], 3
    for source, target, width in (("0", "first", shape.width // 2), ("2", "second", shape.width)):
        place = f"patch_embed.proj.{source}"
        rules.append(rule(f"{place}.c.weight", f"stem.{target}.projection.weight", width, inputs, 3, 3))
        rules += [rule(f"{place}.bn.{entry}", f"stem.{target}.norm.{entry}", width) for entry in norms]
        inputs = width
    return rules


def stem_rules(shape: SwinShape) -> list[Rule]:
    """Whichever stem `shape` has."""
    if shape.stem == "conv":
        return conv_stem_rules(shape)
    return [
        *affine("patch_embed.proj", "stem.projection", shape.width, 3, PATCH, PATCH),
        *affine("patch_embed.norm", "stem.norm", shape.width),
    ]


def scale_rules(source: str, target: str, width: int) -> list[Rule]:
    """Both layer scales of a block."""
    return [rule(f"{source}.layer_scale_{n}", f"{target}.scale{n}.factor", width) for n in (1, 2)]


def bias_rule(source: str, target: str, window: int, heads: int) -> Rule:
    """The table of biases by relative position."""
    table = "attn.relative_position_bias_table"
    return rule(f"{source}.{table}", f"{target}.attention.bias.table", (2 * window - 1) ** 2, heads)


def swin_block_rules(
    source: str, target: str, shape: SwinShape, stage: int, *, window: int, layer_scale: bool
) -> list[Rule]:
    """An ordinary block."""
    width, hidden = shape.stage_width(stage), shape.stage_hidden(stage)
    return [
        *block_rules(source, target, TIMM_BLOCK, width=width, hidden=hidden),
        bias_rule(source, target, window, shape.heads[stage]),
        *(scale_rules(source, target, width) if layer_scale else []),
    ]


def cross_block_rules(source: str, target: str, *, width: int, hidden: int) -> list[Rule]:
    """A block whose queries and keys are projected apart: `attn.q`, and `attn.kv` with keys before values."""
    parts = [f"{target}.attention.{part}" for part in ("key", "value")]
    return [
        *affine(f"{source}.norm1", f"{target}.norm1", width),
        *affine(f"{source}.attn.q", f"{target}.attention.query", width, width),
        Rule((f"{source}.attn.kv.weight",), (2 * width, width), tuple(f"{part}.weight" for part in parts)),
        Rule((f"{source}.attn.kv.bias",), (2 * width,), tuple(f"{part}.bias" for part in parts)),
        *affine(f"{source}.attn.proj", f"{target}.attention.output", width, width),
        *affine(f"{source}.norm2", f"{target}.norm2", width),
        *affine(f"{source}.mlp.fc1", f"{target}.mlp.expand", hidden, width),
        *affine(f"{source}.mlp.fc2", f"{target}.mlp.contract", width, hidden),
        *scale_rules(source, target, width),
    ]


def merge_rules(shape: SwinShape, stage: int) -> list[Rule]:
    """Patch merging behind a stage."""
    width, source = shape.stage_width(stage), f"layers.{stage}.downsample"
    return [
        rule(f"{source}.reduction.weight", f"merges.{stage}.reduction.weight", 2 * width, 4 * width),
        *affine(f"{source}.norm", f"merges.{stage}.norm", 4 * width),
    ]


def ordinary_stage_rules(shape: SwinShape, stage: int, *, window: int, layer_scale: bool = False) -> list[Rule]:
    """All blocks of an ordinary stage."""
    rules = []
    for number in range(shape.depths[stage]):
        source, target = f"layers.{stage}.blocks.{number}", f"stages.{stage}.blocks.{number}"
        rules += swin_block_rules(source, target, shape, stage, window=window, layer_scale=layer_scale)
    return rules


def semantic_stage_rules(spec: StvitSwinSpec | StvitBackboneSpec) -> list[Rule]:
    """All blocks of the reduced stage: the first of every six is an ordinary one."""
    stage, rules = REDUCED_STAGE, []
    width, hidden = spec.stage_width(stage), spec.stage_hidden(stage)
    for number in range(spec.depths[stage]):
        unit, part = f"stages.{stage}.units.{number // UNIT}", UNIT_PARTS[number % UNIT]
        source, target = f"layers.{stage}.blocks.{number}", f"{unit}.{part}"
        if part == "entry":
            rules += swin_block_rules(source, target, spec, stage, window=spec.window, layer_scale=False)
        else:
            rules += cross_block_rules(source, target, width=width, hidden=hidden)
        if part == "pooling" and spec.local_convolution:
            rules += affine(f"{source}.conv_pos.proj.0", f"{unit}.pool.convolution", width, 1, 3, 3)
        if isinstance(spec, StvitSwinSpec) and spec.relative_positions and part in ("local", "everywhere"):
            side = SAMPLES if part == "local" else spec.semantic_grid[0]
            rules.append(bias_rule(source, target, side, spec.heads[stage]))
    return rules


def swin_rules(spec: SwinSpec) -> list[Rule]:
    """Every entry of a plain Swin classifier."""
    rules = stem_rules(spec)
    for stage in range(len(spec.depths)):
        rules += ordinary_stage_rules(spec, stage, window=spec.stage_window(stage))
    return rules + _classifier_rules(spec)


def stvit_swin_rules(spec: StvitSwinSpec) -> list[Rule]:
    """Every entry of an STViT-R classifier."""
    rules = stem_rules(spec) + semantic_stage_rules(spec) + _classifier_rules(spec)
    for stage in range(len(spec.depths)):
        if stage != REDUCED_STAGE:
            window = spec.stage_window(stage)
            rules += ordinary_stage_rules(spec, stage, window=window, layer_scale=spec.layer_scale)
    if spec.global_tokens:
        source, shape = f"layers.{REDUCED_STAGE}.semantic_token2", (1, spec.semantic_tokens)
        width = spec.stage_width(REDUCED_STAGE)
        rules.append(rule(source, f"stages.{REDUCED_STAGE}.global_tokens", *shape, width))
    return rules


def backbone_rules(spec: StvitBackboneSpec) -> list[Rule]:
    """Every entry of the STViT-R backbone."""
    rules = stem_rules(spec) + semantic_stage_rules(spec)
    for stage in range(len(spec.depths)):
        rules += affine(f"norm{stage}", f"norms.{stage}", spec.stage_width(stage))
        if stage != REDUCED_STAGE:
            rules += ordinary_stage_rules(spec, stage, window=spec.window)
        if stage + 1 < len(spec.depths):
            rules += merge_rules(spec, stage)
    return rules


def stvit_deit_rules(spec: StvitDeitSpec) -> list[Rule]:
    """Every entry of the composed STViT on DeiT."""
    width, tokens = spec.width, spec.semantic_tokens
    rules = [
        *affine("patch_embed", "projection", width, 3, spec.patch, spec.patch),
        rule("pos_embed", "positions", 1, spec.patches, width),
        rule("semantic_token2", "global_tokens", 1, tokens, width),
        *affine("norm", "norm", width),
        *affine("head", "head", spec.classes, width),
    ]
    for number in range(spec.depth):
        rules += cross_block_rules(f"blocks.{number}", f"blocks.{number}", width=width, hidden=spec.hidden)
    return rules


def _classifier_rules(spec: SwinSpec | StvitSwinSpec) -> list[Rule]:
    """Merges, final norm and head."""
    last = len(spec.depths) - 1
    rules = [one for stage in range(last) for one in merge_rules(spec, stage)]
    width = spec.stage_width(last)
    return rules + affine("norm", "norm", width) + affine("head", "head", spec.classes, width)


# The tables that Swin's state dicts carry beside the weights: held against ours, then of no further use.

POSITIONS, MASK = ".attn.relative_position_index", ".attn_mask"


def check_buffers(state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointMismatch where a table is not what Swin computes for windows of its size.

    A table that differs belongs to another network, whose weights would mean something else here.
    """
    strange = [name for name, tensor in state.items() if name.endswith(POSITIONS) and not _is_positions(tensor)]
    strange += [name for name, tensor in state.items() if name.endswith(MASK) and not _is_mask(tensor)]
    if strange:
        raise CheckpointMismatch(f"{source}: tables that are not Swin's: {listed(strange)}")


def _side(tensor: Tensor) -> int:
    """Of the windows of a table (..., window^2, window^2); 0 if it is none."""
    places = tensor.shape[-1] if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] else 0
    side = math.isqrt(places)
    return side if side * side == places else 0


def _is_positions(tensor: Tensor) -> bool:
    side = _side(tensor)
    return side > 0 and tensor.dim() == 2 and torch.equal(tensor.long(), torch.from_numpy(relative_table(side)))


def _is_mask(tensor: Tensor) -> bool:
    """(windows, window^2, window^2) of a square grid; of another grid, at least made of the same two values."""
    side, count = _side(tensor), math.isqrt(tensor.shape[0])
    if side == 0 or tensor.dim() != 3:
        return False
    if count * count != tensor.shape[0]:
        return bool(torch.isin(tensor, torch.tensor([0.0, -100.0], dtype=tensor.dtype)).all())
    return torch.equal(tensor.float(), ShiftMask((count * side, count * side), side, side // 2)()[:, 0])
