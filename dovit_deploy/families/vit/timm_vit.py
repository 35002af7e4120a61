"""timm's vision transformers (plain, AugReg, DeiT, DINOv2, with registers, without a class token) -> a backbone.

Source: huggingface/pytorch-image-models (`VisionTransformer`). Patch tokens are what `forward_features` gives: where a
classifier pools them and norms the mean (`fc_norm`), no norm stands behind the last block.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap, KeyTable, Ours, extra_token, packed, some_rows
from dovit_deploy.checkpoints.reader import BackboneArchitecture, BackboneReader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, has, size, training_size
from dovit_deploy.errors import NetworkUnknown
from dovit_deploy.families.vit.backbones import whole_network
from dovit_deploy.families.vit.dinov2 import HEADS_OF_WIDTH as DINOV2_WIDTHS
from dovit_deploy.families.vit.dinov2 import LICENSE

TOKEN_KEYS: KeyTable = {
    # Which rows these are depends on how many tokens stand before the patches: `_rows`.
    "cls_token": extra_token(0),
    "dist_token": extra_token(1),
    "reg_token": some_rows("extra_tokens", range(1, 5)),
    "pos_embed": some_rows("positions", range(1)),
}
TIMM_KEYS: KeyTable = {
    "patch_embed.proj.{entry}": "stem.projection.{entry}",
    "blocks.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "blocks.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "blocks.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "norm.{entry}": "norm.{entry}",
}
GELU_KEYS: KeyTable = {"blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}"}
SWIGLU_KEYS: KeyTable = {
    "blocks.{layer}.mlp.fc1.{entry}": packed("blocks.{layer}.mlp.{part}.{entry}", "gate", "expand")
}
"""`SwiGLUPacked`, of DINOv2's size g."""
SCALE_KEYS: KeyTable = {
    "blocks.{layer}.ls1.gamma": "blocks.{layer}.scale1.factor",
    "blocks.{layer}.ls2.gamma": "blocks.{layer}.scale2.factor",
}
DEIT3_SCALE_KEYS: KeyTable = {
    "blocks.{layer}.gamma_1": "blocks.{layer}.scale1.factor",
    "blocks.{layer}.gamma_2": "blocks.{layer}.scale2.factor",
}
"""LayerScale in the files that DeiT III published."""

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
        *("class_token", "reg_tokens", "no_embed_class", "pre_norm", "final_norm", "qk_norm", "act_layer"),
        *("pos_embed", "norm_eps", "num_classes", "global_pool", "fc_norm", "dynamic_img_size", "architecture"),
    }
)
"""Constructor arguments."""
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "in_chans": (3,),
    "pre_norm": (False,),
    "qk_norm": (False,),
    "pos_embed": ("learn",),
}
_REFUSED = {
    "norm_pre.**": "a norm before its blocks (norm_pre, as CLIP's)",
    "blocks.*.attn.q_norm.**": "norms of queries and keys (qk_norm)",
    "blocks.*.attn.norm.**": "a norm inside its attention (scale_attn_norm)",
    "blocks.*.mlp.norm.**": "a norm inside its MLP (scale_mlp_norm)",
    "patch_embed.norm.**": "a norm of its patches (embed_norm_layer)",
    "**.relative_position_bias_table": "relative positions (BEiT)",
    "blocks.*.mlp.fc1_g.**": "two layers for its gate (EVA)",
}
"""Patterns of entries -> what they show of a network that is not read."""
HEADS_OF_WIDTH = {
    192: 3,
    256: 4,
    320: 5,
    384: 6,
    512: 8,
    640: 10,
    768: 12,
    832: 13,
    896: 14,
    1024: 16,
    1152: 16,
    1280: 16,
    1408: 16,
    1664: 16,
}
"""Attention heads of timm's models by width, where all of a width have as many."""
SWIGLU_HEADS = {1536: 24}
ASSUMED = (
    "positions: resized as timm does, antialias; a file of DINOv2's own code without its mask_token looks the same, "
    "and that one resizes by scale"
)
_NORM_EPS = 1e-6


def _is_gated(facts: KeyFacts) -> bool:
    """The MLP's first layer makes twice as much as the second takes."""
    first, second = facts.size(("blocks.*.mlp.fc1.*", 0)), facts.size(("blocks.*.mlp.fc2.weight", 1))
    return first is not None and second is not None and first == 2 * second


def _known_heads(network: Sources) -> int | None:
    published = SWIGLU_HEADS if _is_gated(network.facts) else HEADS_OF_WIDTH
    return published.get(network[WIDTH], HEADS_OF_WIDTH.get(network[WIDTH]))


def _extra(network: Sources) -> int:
    """Tokens before the patches: class, distillation, registers."""
    return sum(network.facts.has(name) for name in ("cls_token", "dist_token")) + network[REGISTERS]


def _embedded(network: Sources) -> int:
    """How many of them have a position: all or none."""
    stated, extra = network.flag("no_embed_class"), _extra(network)
    if stated is not None:
        return 0 if stated else extra
    total = network.facts.size(("pos_embed", 1)) or 0
    pixels = network.pair("img_size")
    if pixels is not None:
        patches = (pixels[0] // network[PATCH]) * (pixels[1] // network[PATCH])
        return 0 if patches == total else extra
    return 0 if _is_square(total) and not _is_square(total - extra) else extra


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


WIDTH = SpecValue("embed_dim", Section.positive, 1, shown=size(("blocks.*.norm*.*", 0), ("norm.*", 0)))
DEPTH = SpecValue("depth", Section.positive, 1, shown=count("blocks"))
HEADS = SpecValue("num_heads", Section.positive, 1, default=_known_heads)
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("patch_embed.proj.weight", 2)))
REGISTERS = SpecValue("reg_tokens", Section.integer, 0, shown=lambda network: network.facts.size(("reg_token", 1)) or 0)
SIZE = training_size("img_size", positions="pos_embed", extra=_embedded, patch=lambda network: network[PATCH])
HIDDEN = SpecValue("mlp", lambda *_: None, 1, shown=size(("blocks.*.mlp.fc2.weight", 1)), label="mlp_ratio")
FINAL_NORM = SpecValue("final_norm", lambda *_: None, True, shown=has("norm.*"))
# SigLIP's models, which pool by attention, come with either GELU, and the keys do not show which.
ACTIVATION = SpecValue[str](
    "act_layer",
    Section.text,
    "gelu",
    default=lambda network: None if network.facts.has("attn_pool.**") else "gelu",
)


def timm_backbone(network: Sources) -> BackboneArchitecture:
    """Understand timm's names; `network` is its constructor's arguments.

    Raises:
        NetworkUnknown: a ViT with parts that are not read (named).
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    _refuse_other_parts(network)
    network.must_all_be(_SUPPORTED)
    network.must_be("act_layer", None, "silu" if _is_gated(network.facts) else "gelu")
    gated, extra, embedded = _is_gated(network.facts), _extra(network), _embedded(network)
    eps = network.number("norm_eps")
    values = {
        "family": "vit",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": extra,
        "norm_eps": _NORM_EPS if eps is None else eps,
        "final_norm": network[FINAL_NORM],
        "position_mode": "antialias",
        "mlp": "swiglu" if gated else "gelu",
    }
    network[ACTIVATION]
    dinov2, architecture = _is_dinov2(network), network.text("architecture")
    # With registers both resize alike, and a folder of timm says what it is.
    unclear = dinov2 and not network[REGISTERS] and architecture is None
    network.finish()
    scales = DEIT3_SCALE_KEYS if network.facts.has("blocks.*.gamma_1") else SCALE_KEYS
    biased = network.present("qkv_bias", "blocks.*.attn.qkv.bias")
    key_map = KeyMap(
        {**TIMM_KEYS, **(SWIGLU_KEYS if gated else GELU_KEYS), **scales, **_rows(network, extra, embedded)},
        unused=("attn_pool.**",),
        zero_if_absent=() if biased else ("blocks.*.attn.qkv.bias",),
        layer_scale=network.facts.has("blocks.*.ls*.gamma", "blocks.*.gamma_*"),
    )
    return BackboneArchitecture(values, key_map, LICENSE if dinov2 else "", assumed=ASSUMED if unclear else "")


def _is_dinov2(network: Sources) -> bool:
    """By its shapes: of timm's networks that are read, DINOv2's alone have patches of 14 and scales of layers."""
    return network.facts.has("blocks.*.ls1.gamma") and network[PATCH] == 14 and network[WIDTH] in DINOV2_WIDTHS


def _refuse_other_parts(network: Sources) -> None:
    part = next((words for pattern, words in _REFUSED.items() if network.facts.has(pattern)), None)
    if part is None and not network.facts.has("blocks.*.norm1.bias"):
        part = "norms without bias (RMSNorm)"
    if part is not None:
        raise NetworkUnknown(
            f"{network.checkpoint} is a ViT with {part}, which is not read",
            "Read are timm's plain, AugReg, DeiT and DINOv2 models, with or without class token and registers",
        )


def _rows(network: Sources, extra: int, embedded: int) -> dict[str, Ours]:
    """Rows of the tables that the tokens before the patches and the positions are."""
    patches = (network.facts.size(("pos_embed", 1)) or embedded) - embedded
    rows = {"pos_embed": some_rows("positions", range(embedded), range(extra, extra + patches))}
    first = extra - network[REGISTERS]
    rows |= {name: extra_token(row) for row, name in enumerate(("cls_token", "dist_token")[:first])}
    return {**rows, "reg_token": some_rows("extra_tokens", range(first, extra))} if extra > first else rows


def _is_classifier(facts: KeyFacts) -> bool:
    """A whole network that names images, as DeiT's reader reads it: nothing but its own classifier is beside it."""
    return facts.has("blocks.*.attn.qkv.*") and facts.has("head.weight") and len(facts.shapes["head.weight"]) == 2


BACKBONE = BackboneReader(
    title="timm ViT",
    recognises=lambda facts: facts.has("blocks.*.attn.qkv.*") and facts.has("patch_embed.proj.*", "pos_embed"),
    settings=SETTINGS,
    architecture=timm_backbone,
    tables=(TOKEN_KEYS, TIMM_KEYS, GELU_KEYS, SCALE_KEYS, DEIT3_SCALE_KEYS),
    needed=("blocks.*.attn.qkv.*", "patch_embed.proj.*", "pos_embed", "norm.*"),
    unused=frozenset({"norm_pre", "attn_pool"}),
)
_WHOLE = whole_network(BACKBONE)
READER = replace(_WHOLE, recognises=lambda facts: _WHOLE.recognises(facts) and not _is_classifier(facts))
