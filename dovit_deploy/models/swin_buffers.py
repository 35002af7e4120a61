"""The tables that Swin's state dicts carry beside the weights: held against ours, then of no further use."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.official_state import listed
from dovit_deploy.models.window_attention import ShiftMask
from dovit_deploy.models.windows import relative_places

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
    return side > 0 and tensor.dim() == 2 and torch.equal(tensor.long(), torch.from_numpy(relative_places(side)))


def _is_mask(tensor: Tensor) -> bool:
    """(windows, window^2, window^2) of a square grid; of another grid, at least made of the same two values."""
    side, count = _side(tensor), math.isqrt(tensor.shape[0])
    if side == 0 or tensor.dim() != 3:
        return False
    if count * count != tensor.shape[0]:
        return bool(torch.isin(tensor, torch.tensor([0.0, -100.0], dtype=tensor.dtype)).all())
    return torch.equal(tensor.float(), ShiftMask((count * side, count * side), side, side // 2)()[:, 0])
