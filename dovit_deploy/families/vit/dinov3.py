"""DINOv3's vision transformers under their own names -> a backbone. Source: facebookresearch/dinov3.

They have registers, called storage tokens, and rotary positions, whose periods are in the file.
"""

from __future__ import annotations

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, extra_token, some_rows
from dovit_deploy.checkpoints.reader import BackboneArchitecture, BackboneReader, OfficialState
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.vit.backbones import whole_network
from dovit_deploy.families.vit.dinov2 import GELU_KEYS, LAYER_KEYS, register_keys

DINOV3_KEYS: KeyTable = {
    "cls_token": extra_token(0),
    # As many rows as there are: `dinov3_backbone`.
    "storage_tokens": some_rows("extra_tokens", range(1, 5)),
    "rope_embed.periods": "rotary.periods",
    **LAYER_KEYS,
}
SWIGLU_KEYS: KeyTable = {
    "blocks.{layer}.mlp.w1.{entry}": "blocks.{layer}.mlp.gate.{entry}",
    "blocks.{layer}.mlp.w2.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "blocks.{layer}.mlp.w3.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
"""Of the sizes S+, L+, H+ and 7B."""

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "ffn_ratio", "qkv_bias"),
        *("ffn_layer", "ffn_bias", "proj_bias", "n_storage_tokens", "mask_k_bias", "norm_layer", "layerscale_init"),
        *("untie_cls_and_patch_norms", "untie_global_and_local_cls_norm", "pos_embed_rope_base"),
        *("pos_embed_rope_min_period", "pos_embed_rope_max_period", "pos_embed_rope_normalize_coords"),
        *("pos_embed_rope_shift_coords", "pos_embed_rope_jitter_coords", "pos_embed_rope_rescale_coords"),
        "pos_embed_rope_dtype",
    }
)
"""Constructor arguments. Those of the periods do not matter: the periods themselves are in the file."""
HEADS_OF_WIDTH = {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}
"""Attention heads of the published sizes (S and S+, B, L and L+, H+, 7B) by width."""
NORM_EPS = 1e-5
"""Of every LayerNorm: `layernormbf16`."""
SIZE_OF_SOURCE = 224
"""Side of an image that the source assumes. No weight depends on it: `--size` decides."""
LICENSE = (
    "backbone: DINOv3 (Meta), under the DINOv3 License, which is gated and goes with whatever is derived from the "
    "weights: https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
)
_MASK = ".attn.qkv.bias_mask"

WIDTH = SpecValue("embed_dim", Section.positive, 1, shown=size(("blocks.*.norm*.*", 0), ("norm.*", 0)))
DEPTH = SpecValue("depth", Section.positive, 1, shown=count("blocks"))
# In no key: only the published sizes can do without a stated number.
HEADS = SpecValue("num_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH]))
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("patch_embed.proj.weight", 2)))
SIZE = SpecValue("img_size", Section.pair, (16, 16), default=lambda _: (SIZE_OF_SOURCE, SIZE_OF_SOURCE))
REGISTERS = SpecValue(
    "n_storage_tokens", Section.integer, 0, shown=lambda network: network.facts.size(("storage_tokens", 1)) or 0
)
# Not `ffn_ratio`: of a SwiGLU the source takes two thirds of it, rounded up.
HIDDEN = SpecValue(
    "mlp", lambda *_: None, 1, shown=size(("blocks.*.mlp.fc1.*", 0), ("blocks.*.mlp.w1.*", 0)), label="ffn_ratio"
)


def dinov3_backbone(network: Sources) -> BackboneArchitecture:
    """Understand DINOv3's own names; `network` is its constructor's arguments.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    network.must_all_be({"in_chans": (3,), "pos_embed_rope_normalize_coords": ("separate",)})
    gated, registers = network.facts.has("blocks.*.mlp.w1.*", "blocks.*.mlp.w3.*"), network[REGISTERS]
    values = {
        "family": "dinov3",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": 1 + registers,
        "norm_eps": NORM_EPS,
        "rotary": True,
        "mlp": "swiglu" if gated else "gelu",
    }
    network.finish()
    biased = network.present("qkv_bias", "blocks.*.attn.qkv.bias")
    key_map = KeyMap(
        {
            **DINOV3_KEYS,
            **(SWIGLU_KEYS if gated else GELU_KEYS),
            **register_keys("storage_tokens", registers),
        },
        # The token stands for patches that are hidden in pre-training, the norms for class tokens that no head reads.
        unused=("mask_token", "cls_norm.*", "local_cls_norm.*"),
        zero_if_absent=() if biased else ("blocks.*.attn.qkv.bias",),
        layer_scale=network.facts.has("blocks.*.ls*.gamma"),
    )
    return BackboneArchitecture(values, key_map, LICENSE)


def with_masked_biases(state: OfficialState, source: str) -> OfficialState:
    """The biases of queries, keys and values times their masks, which the source multiplies in every forward pass.

    The published masks are 0 for keys. A bias there, which training leaves as it was drawn, would be turned like a key.

    Raises:
        CheckpointMismatch: a mask has no bias, or another shape.
    """
    masks = [name for name in state if name.endswith(_MASK)]
    prepared = {name: tensor for name, tensor in state.items() if name not in masks}
    for name in masks:
        bias = name.removesuffix("_mask")
        if bias not in state or state[bias].shape != state[name].shape:
            raise CheckpointMismatch(f"{source}: {name} is no mask of {bias}: that is absent, or has another shape")
        prepared[bias] = state[bias] * state[name].to(state[bias].dtype)
    return prepared


BACKBONE = BackboneReader(
    title="DINOv3",
    recognises=lambda facts: facts.has("blocks.*.attn.qkv.*") and facts.has("rope_embed.periods", "storage_tokens"),
    settings=SETTINGS,
    architecture=dinov3_backbone,
    tables=(DINOV3_KEYS, GELU_KEYS, SWIGLU_KEYS),
    needed=("rope_embed.periods", "blocks.*.attn.qkv.*", "blocks.*.ls*.gamma", "patch_embed.proj.*", "cls_token"),
    unused=frozenset({"mask_token", "cls_norm", "local_cls_norm"}),
    prepared=with_masked_biases,
)
READER = whole_network(BACKBONE)
