"""DINOv2 under its own names, with and without registers -> a backbone. Source: facebookresearch/dinov2."""

from __future__ import annotations

import re
from collections import Counter

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, Ours, extra_token, listed, packed, some_rows
from dovit_deploy.checkpoints.reader import BackboneArchitecture, BackboneReader, OfficialState
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size, training_size
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.parts import PositionMode
from dovit_deploy.families.vit.backbones import whole_network

LAYER_KEYS: KeyTable = {
    "patch_embed.proj.{entry}": "stem.projection.{entry}",
    "blocks.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "blocks.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "blocks.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "blocks.{layer}.ls1.gamma": "blocks.{layer}.scale1.factor",
    "blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "blocks.{layer}.ls2.gamma": "blocks.{layer}.scale2.factor",
    "norm.{entry}": "norm.{entry}",
}
"""As DINOv2 and DINOv3 both call them."""
DINOV2_KEYS: KeyTable = {
    "cls_token": extra_token(0),
    # Which rows these two are depends on the number of registers: `row_keys`.
    "register_tokens": some_rows("extra_tokens", range(1, 5)),
    "pos_embed": some_rows("positions", range(1)),
    **LAYER_KEYS,
}
GELU_KEYS: KeyTable = {
    "blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
SWIGLU_KEYS: KeyTable = {
    "blocks.{layer}.mlp.w12.{entry}": packed("blocks.{layer}.mlp.{part}.{entry}", "gate", "expand"),
    "blocks.{layer}.mlp.w3.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
"""Of the size g."""

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
        *("ffn_layer", "block_chunks", "num_register_tokens", "interpolate_antialias", "interpolate_offset"),
    }
)
"""Constructor arguments."""
HEADS_OF_WIDTH = {384: 6, 768: 12, 1024: 16, 1536: 24}
"""Attention heads of the published sizes (S, B, L, g) by width."""
_CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
NORM_EPS = 1e-6
"""Of every LayerNorm."""
LICENSE = "backbone: DINOv2 (Meta), Apache-2.0"

WIDTH = SpecValue("embed_dim", Section.positive, 1, shown=size(("blocks.*.norm*.*", 0), ("norm.*", 0)))
DEPTH = SpecValue("depth", Section.positive, 1, shown=count("blocks"))
# In no key: only the published sizes can do without a stated number.
HEADS = SpecValue("num_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH]))
PATCH = SpecValue("patch_size", Section.positive, 14, shown=size(("patch_embed.proj.weight", 2)))
SIZE = training_size("img_size", positions="pos_embed", extra=lambda _: 1, patch=lambda network: network[PATCH])
REGISTERS = SpecValue(
    "num_register_tokens", Section.integer, 0, shown=lambda network: network.facts.size(("register_tokens", 1)) or 0
)
# Not `mlp_ratio`: of a SwiGLU the source takes two thirds of it, rounded up.
HIDDEN = SpecValue(
    "mlp", lambda *_: None, 1, shown=size(("blocks.*.mlp.fc1.*", 0), ("blocks.*.mlp.w3.weight", 1)), label="mlp_ratio"
)


def dinov2_backbone(network: Sources) -> BackboneArchitecture:
    """Understand DINOv2's own names; `network` is its constructor's arguments.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    gated = network.facts.has("blocks.*.mlp.w12.*", "blocks.*.mlp.w3.*")
    network.must_all_be({"in_chans": (3,), "ffn_layer": ("swiglu", "swiglufused") if gated else ("mlp",)})
    registers = network[REGISTERS]
    values = {
        "family": "dinov2",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": 1 + registers,
        "norm_eps": NORM_EPS,
        "position_mode": _position_mode(network, registers),
        "mlp": "swiglu" if gated else "gelu",
    }
    network.finish()
    rows = row_keys("register_tokens", "pos_embed", registers=registers, patches=positions_of(network, "pos_embed"))
    biased = network.present("qkv_bias", "blocks.*.attn.qkv.bias")
    key_map = KeyMap(
        {**DINOV2_KEYS, **(SWIGLU_KEYS if gated else GELU_KEYS), **rows},
        # Stands for patches that are hidden while it is pre-trained.
        unused=("mask_token",),
        zero_if_absent=() if biased else ("blocks.*.attn.qkv.bias",),
        layer_scale=network.facts.has("blocks.*.ls*.gamma"),
    )
    return BackboneArchitecture(values, key_map, LICENSE)


def _position_mode(network: Sources, registers: int) -> PositionMode:
    """The published models with registers were made with other arguments than those without."""
    smooth, offset = network.flag("interpolate_antialias"), network.number("interpolate_offset")
    smooth = registers > 0 if smooth is None else smooth
    offset = (0.0 if registers else 0.1) if offset is None else offset
    if offset == 0:
        return "antialias" if smooth else "size"
    if offset != 0.1 or smooth:
        raise network.wrong("interpolate_offset", "0, or 0.1 without interpolate_antialias, is supported")
    return "scale"


def positions_of(network: Sources, positions: str) -> int:
    """How many patches have a position embedding, beside the class token."""
    return (network.facts.size((positions, 1)) or 1) - 1


def row_keys(tokens: str, positions: str, *, registers: int, patches: int) -> dict[str, Ours]:
    """Rows of the tables that two official entries hold: registers stand behind the class token and have no position.

    Args:
        tokens: name of the registers, (1, registers, C).
        positions: name of the position embeddings, (1, 1 + patches, C).
        registers: how many there are.
        patches: of the grid that the positions are made for.
    """
    first = 1 + registers
    rows = some_rows("positions", range(1), range(first, first + patches))
    return {positions: rows, **register_keys(tokens, registers)}


def register_keys(tokens: str, registers: int) -> dict[str, Ours]:
    """The rows of `tokens`, (1, registers, C), behind the class token; nothing where there are none."""
    return {tokens: some_rows("extra_tokens", range(1, 1 + registers))} if registers else {}


def without_chunks(state: OfficialState, source: str) -> OfficialState:
    """`state` without the numbers of the chunks that a training in shards puts before those of blocks.

    Each chunk numbers its blocks as if all were in it: `blocks.1.6.norm1.weight` is of block 6.

    Raises:
        CheckpointMismatch: two chunks have blocks of one number.
    """
    names = {name: _CHUNKED.sub(r"\1blocks.\2.", name) for name in state}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointMismatch(f"{source}: two of its chunks of blocks have {listed(twice)}")
    return {names[name]: tensor for name, tensor in state.items()}


BACKBONE = BackboneReader(
    title="DINOv2",
    # Only its own code and transformers keep the token that hides patches; timm calls registers otherwise, and has no
    # chunks.
    recognises=lambda facts: (
        facts.has("blocks.*.*.attn.qkv.*")
        or (facts.has("blocks.*.attn.qkv.*") and facts.has("mask_token", "register_tokens", "blocks.*.mlp.w12.*"))
    ),
    settings=SETTINGS,
    architecture=dinov2_backbone,
    tables=(DINOV2_KEYS, GELU_KEYS, SWIGLU_KEYS),
    needed=("blocks.*.attn.qkv.*", "blocks.*.ls*.gamma", "patch_embed.proj.*", "pos_embed", "cls_token"),
    unused=frozenset({"mask_token"}),
    prepared=without_chunks,
)
READER = whole_network(BACKBONE)
