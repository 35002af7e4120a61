"""EoMT under the names of its own code, on DINOv2 with registers -> those of transformers, which `eomt` reads.

Source: tue-mps/eomt, whose encoder is timm's, and what transformers' conversion makes of its files.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from dovit_deploy.checkpoints.images import IMAGENET
from dovit_deploy.checkpoints.keys import KeyTable, packed
from dovit_deploy.checkpoints.reader import OfficialState
from dovit_deploy.errors import CheckpointMismatch, NetworkUnknown
from dovit_deploy.families.vit import eomt

OWN_NAMES: KeyTable = {
    "encoder.backbone.cls_token": "embeddings.cls_token",
    "encoder.backbone.reg_token": "embeddings.register_tokens",
    "encoder.backbone.pos_embed": "embeddings.position_embeddings.weight",
    "encoder.backbone.patch_embed.proj.{entry}": "embeddings.patch_embeddings.projection.{entry}",
    "encoder.backbone.blocks.{layer}.norm1.{entry}": "layers.{layer}.norm1.{entry}",
    "encoder.backbone.blocks.{layer}.attn.qkv.{entry}": packed(
        "layers.{layer}.attention.{part}.{entry}", "q_proj", "k_proj", "v_proj"
    ),
    "encoder.backbone.blocks.{layer}.attn.proj.{entry}": "layers.{layer}.attention.out_proj.{entry}",
    "encoder.backbone.blocks.{layer}.ls1.gamma": "layers.{layer}.layer_scale1.lambda1",
    "encoder.backbone.blocks.{layer}.norm2.{entry}": "layers.{layer}.norm2.{entry}",
    "encoder.backbone.blocks.{layer}.mlp.fc1.{entry}": "layers.{layer}.mlp.fc1.{entry}",
    "encoder.backbone.blocks.{layer}.mlp.fc2.{entry}": "layers.{layer}.mlp.fc2.{entry}",
    "encoder.backbone.blocks.{layer}.ls2.gamma": "layers.{layer}.layer_scale2.lambda1",
    "encoder.backbone.norm.{entry}": "layernorm.{entry}",
    "q.weight": "query.weight",
    "upscale.{number}.conv1.{entry}": "upscale_block.block.{number}.conv1.{entry}",
    "upscale.{number}.conv2.{entry}": "upscale_block.block.{number}.conv2.{entry}",
    "upscale.{number}.norm.{entry}": "upscale_block.block.{number}.layernorm2d.{entry}",
    "mask_head.0.{entry}": "mask_head.fc1.{entry}",
    "mask_head.2.{entry}": "mask_head.fc2.{entry}",
    "mask_head.4.{entry}": "mask_head.fc3.{entry}",
    "class_head.{entry}": "class_predictor.{entry}",
}
"""Its names -> those of transformers."""
_FINDERS = {re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(name))): name for name in OWN_NAMES}
_MEAN, _STD, _POSITIONS = "encoder.pixel_mean", "encoder.pixel_std", "encoder.backbone.pos_embed"


def as_transformers(state: OfficialState, source: str) -> OfficialState:
    """`state` under the names of transformers.

    Raises:
        NetworkUnknown: its encoder is no DINOv2 with registers.
        CheckpointMismatch: its pixels are not normalised as ImageNet's, or its training is not finished.
    """
    if not {_POSITIONS, "encoder.backbone.reg_token", "encoder.backbone.blocks.0.attn.qkv.weight"} <= state.keys():
        raise NetworkUnknown(
            f"{source} is an EoMT under the names of its own code, on another backbone than DINOv2 with registers",
            "Read are those; what is published of EoMT on DINOv3 is a difference to the gated weights",
        )
    _refuse_other_pixels(state, source)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in (_MEAN, _STD):
            # Without the axis of the batch, which an embedding has not.
            entry = tensor.flatten(0, 1) if name == _POSITIONS and tensor.dim() == 3 else tensor
            renamed |= _renamed(name, entry)
    return eomt.without_masks_of_training(_with_gates(renamed), source)


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What transformers makes of one entry; one of no name that is known stays, and is refused as such."""
    for finder, own in _FINDERS.items():
        match = finder.fullmatch(name)
        if match is not None:
            theirs = OWN_NAMES[own]
            if isinstance(theirs, str):
                return {theirs.format(**match.groupdict()): tensor}
            pieces = zip(theirs.parts, tensor.tensor_split(len(theirs.parts)), strict=True)
            return {theirs.name.format(**match.groupdict(), part=part): piece for part, piece in pieces}
    return {name: tensor}


def _with_gates(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The MLPs of the size g under their own names: their first layer makes gates, too, twice what the second takes."""
    first, second = state.get("layers.0.mlp.fc1.weight"), state.get("layers.0.mlp.fc2.weight")
    if first is None or second is None or second.dim() != 2 or len(first) != 2 * second.shape[1]:
        return state
    names = {".mlp.fc1.": ".mlp.weights_in.", ".mlp.fc2.": ".mlp.weights_out."}
    return {
        next((name.replace(old, new) for old, new in names.items() if old in name), name): tensor
        for name, tensor in state.items()
    }


def _refuse_other_pixels(state: OfficialState, source: str) -> None:
    """Raise CheckpointMismatch where what the file says of its pixels, in 0..1, is not what is assumed of it."""
    for name, wanted in zip((_MEAN, _STD), IMAGENET, strict=True):
        found = state.get(name)
        if found is not None and not torch.allclose(found.float().flatten() * 255, torch.tensor(wanted), atol=0.1):
            raise CheckpointMismatch(f"{source}: {name} is {found.flatten().tolist()}, and only ImageNet's is read")


READER = replace(
    eomt.READER,
    title="EoMT",
    recognises=lambda facts: facts.has("q.weight") and facts.has("upscale.*.conv1.*"),
    tables=(OWN_NAMES,),
    needed=("q.weight", "encoder.backbone.blocks.*.attn.qkv.*", "mask_head.**", "upscale.**", "class_head.*"),
    prepared=as_transformers,
)
