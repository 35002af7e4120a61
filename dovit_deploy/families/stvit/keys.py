"""Official key names of Swin and STViT-R against ours, and the buffers that such checkpoints carry beside the weights.

Sources: microsoft/Swin-Transformer, changsn/STViT-R, changsn/STViT-R-Object-Detection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, batched, listed, packed
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.stvit.attention import ShiftMask
from dovit_deploy.families.stvit.spec import UNIT
from dovit_deploy.families.stvit.windows import relative_table

UNIT_PARTS = ("entry", "pooling", "exchange", "local", "everywhere", "recovery")
"""Our names of a unit's six blocks, in the order of the source."""

SWIN_KEYS: KeyTable = {
    # Swin's stem, then that of STViT-R, LeViT's Conv2d_BN twice.
    "patch_embed.proj.{entry}": "stem.projection.{entry}",
    "patch_embed.norm.{entry}": "stem.norm.{entry}",
    "patch_embed.proj.0.c.weight": "stem.first.projection.weight",
    "patch_embed.proj.0.bn.{entry}": "stem.first.norm.{entry}",
    "patch_embed.proj.2.c.weight": "stem.second.projection.weight",
    "patch_embed.proj.2.bn.{entry}": "stem.second.norm.{entry}",
    # Ordinary blocks; layer scales are an option of STViT-R.
    "layers.{stage}.blocks.{block}.norm1.{entry}": "stages.{stage}.blocks.{block}.norm1.{entry}",
    "layers.{stage}.blocks.{block}.attn.qkv.{entry}": packed("stages.{stage}.blocks.{block}.attention.{part}.{entry}"),
    "layers.{stage}.blocks.{block}.attn.relative_position_bias_table": (
        "stages.{stage}.blocks.{block}.attention.bias.table"
    ),
    "layers.{stage}.blocks.{block}.attn.proj.{entry}": "stages.{stage}.blocks.{block}.attention.output.{entry}",
    "layers.{stage}.blocks.{block}.norm2.{entry}": "stages.{stage}.blocks.{block}.norm2.{entry}",
    "layers.{stage}.blocks.{block}.mlp.fc1.{entry}": "stages.{stage}.blocks.{block}.mlp.expand.{entry}",
    "layers.{stage}.blocks.{block}.mlp.fc2.{entry}": "stages.{stage}.blocks.{block}.mlp.contract.{entry}",
    "layers.{stage}.blocks.{block}.layer_scale_{number}": "stages.{stage}.blocks.{block}.scale{number}.factor",
    # Patch merging after a stage; the end of a classifier; the backbone's norm of each stage.
    "layers.{stage}.downsample.reduction.weight": "merges.{stage}.reduction.weight",
    "layers.{stage}.downsample.norm.{entry}": "merges.{stage}.norm.{entry}",
    "norm.{entry}": "norm.{entry}",
    "head.{entry}": "head.{entry}",
    "norm{stage}.{entry}": "norms.{stage}.{entry}",
}
SEMANTIC_KEYS: KeyTable = {
    # The reduced stage. `first` and `second` are the numbers of a unit's first blocks, `nth` that of the block `role`.
    "layers.{stage}.semantic_token2": batched("stages.{stage}.global_tokens"),
    "layers.{stage}.blocks.{second}.conv_pos.proj.0.{entry}": "stages.{stage}.units.{unit}.pool.convolution.{entry}",
    "layers.{stage}.blocks.{first}.attn.qkv.{entry}": packed(
        "stages.{stage}.units.{unit}.entry.attention.{part}.{entry}"
    ),
    "layers.{stage}.blocks.{nth}.norm1.{entry}": "stages.{stage}.units.{unit}.{role}.norm1.{entry}",
    "layers.{stage}.blocks.{nth}.attn.q.{entry}": "stages.{stage}.units.{unit}.{role}.attention.query.{entry}",
    "layers.{stage}.blocks.{nth}.attn.kv.{entry}": packed(
        "stages.{stage}.units.{unit}.{role}.attention.{part}.{entry}", "key", "value"
    ),
    "layers.{stage}.blocks.{nth}.attn.relative_position_bias_table": (
        "stages.{stage}.units.{unit}.{role}.attention.bias.table"
    ),
    "layers.{stage}.blocks.{nth}.attn.proj.{entry}": "stages.{stage}.units.{unit}.{role}.attention.output.{entry}",
    "layers.{stage}.blocks.{nth}.norm2.{entry}": "stages.{stage}.units.{unit}.{role}.norm2.{entry}",
    "layers.{stage}.blocks.{nth}.mlp.fc1.{entry}": "stages.{stage}.units.{unit}.{role}.mlp.expand.{entry}",
    "layers.{stage}.blocks.{nth}.mlp.fc2.{entry}": "stages.{stage}.units.{unit}.{role}.mlp.contract.{entry}",
    "layers.{stage}.blocks.{nth}.layer_scale_{number}": "stages.{stage}.units.{unit}.{role}.scale{number}.factor",
}
STVIT_DEIT_KEYS: KeyTable = {
    "patch_embed.{entry}": "projection.{entry}",
    "pos_embed": batched("positions"),
    "semantic_token2": batched("global_tokens"),
    "blocks.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "blocks.{layer}.attn.q.{entry}": "blocks.{layer}.attention.query.{entry}",
    "blocks.{layer}.attn.kv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}", "key", "value"),
    "blocks.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "blocks.{layer}.layer_scale_{number}": "blocks.{layer}.scale{number}.factor",
    "norm.{entry}": "norm.{entry}",
    "head.{entry}": "head.{entry}",
}


def _block_numbers(fields: Mapping[str, str]) -> Mapping[str, int]:
    """The source numbers the blocks of the reduced stage through all its units."""
    if "unit" not in fields:
        return {}
    first = UNIT * int(fields["unit"])
    nth = {"nth": first + UNIT_PARTS.index(fields["role"])} if "role" in fields else {}
    return {"first": first, "second": first + 1, **nth}


POSITIONS, MASK = ".attn.relative_position_index", ".attn_mask"
"""Ends of the names of buffers that Swin stores beside the weights."""
SWIN_MAP = KeyMap(
    {**SWIN_KEYS, **SEMANTIC_KEYS},
    unused=("**.num_batches_tracked", f"**{POSITIONS}", f"**{MASK}"),
    numbers=_block_numbers,
)
"""Of a plain Swin, and of STViT-R's classifier and backbone."""
STVIT_DEIT_MAP = KeyMap(STVIT_DEIT_KEYS, unused=("**.num_batches_tracked",))


def check_buffers(state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointMismatch where a buffer is not what Swin computes for windows of its size.

    A buffer that differs belongs to another network, whose weights would mean something else here.
    """
    strange = [name for name, tensor in state.items() if name.endswith(POSITIONS) and not _is_positions(tensor)]
    strange += [name for name, tensor in state.items() if name.endswith(MASK) and not _is_mask(tensor)]
    if strange:
        raise CheckpointMismatch(f"{source}: tables that are not Swin's: {listed(strange)}")


def _side(tensor: Tensor) -> int:
    """Of the windows of a buffer (..., window^2, window^2); 0 if it has no such shape."""
    tokens = tensor.shape[-1] if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] else 0
    side = math.isqrt(tokens)
    return side if side * side == tokens else 0


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
