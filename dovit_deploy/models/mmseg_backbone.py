"""The ViT backbone of mmsegmentation and DoViT from its configuration and keys.

Sources: FLHonker/DoViT-code (`DoViT`), open-mmlab/mmsegmentation 0.30 and 1.2 (`VisionTransformer`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import training_size
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.mmseg_heads import layer_norm_eps
from dovit_deploy.models.official_keys import IN_PROJ, QKV, AttentionKeys
from dovit_deploy.models.section import Ledger, Section

_KNOWN = frozenset(
    {
        *("type", "img_size", "patch_size", "in_channels", "embed_dims", "num_layers", "num_heads", "mlp_ratio"),
        *("out_indices", "qkv_bias", "with_cls_token", "output_cls_token", "norm_cfg", "act_cfg", "patch_norm"),
        *("final_norm", "interpolate_mode", "num_fcs", "patch_bias", "patch_pad", "pre_norm", "out_origin"),
        *("attn_cfg", "ffn_cfg"),
    }
)
_DYNAMIC = frozenset({"exit_conf", "diff_conf", "agg_rate"})
_LAYER = r"backbone\.layers\.\d+"
_STEM = r"backbone\.patch_embed\.projection"


@dataclass(frozen=True)
class Backbone:
    """The encoder, whole: not yet cut to what the decode head reads."""

    section: Section
    dynamic: bool
    """A DoViT: gates stand before its output layers."""
    size: tuple[int, int]
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    extra_tokens: Literal[0, 1]
    norm_eps: float
    final_norm: bool
    position_mode: Literal["bicubic", "bilinear"]
    outputs: tuple[int, ...]
    """Layers after which features are taken; a gate of DoViT stands before each but the last."""
    attention: AttentionKeys
    patch_bias: bool


def mmseg_backbone(section: Section, facts: KeyFacts, ledger: Ledger) -> Backbone:
    """The backbone stated in `section`, empty if there is no configuration.

    Raises:
        ConfigError: a stated value is unknown, unsupported or contradicts the keys.
    """
    dynamic = _is_dynamic(section, facts, ledger)
    section.only(_KNOWN | _DYNAMIC if dynamic else _KNOWN)
    _refuse_unsupported(section, dynamic=dynamic)
    seen = facts.size((rf"{_LAYER}\.ln[12]\.(weight|bias)", 0))
    width = ledger.settle(section.name("embed_dims"), section.integer("embed_dims"), seen, stand_in=1)
    layers = facts.count(r"backbone\.layers")
    layers = ledger.settle(section.name("num_layers"), section.integer("num_layers"), layers, stand_in=1)
    patch = facts.size((rf"{_STEM}\.weight", 2))
    patch = ledger.settle(section.name("patch_size"), section.integer("patch_size"), patch, stand_in=16)
    eps = layer_norm_eps(section, "norm_cfg", 1e-5 if section.values else None)
    return Backbone(
        section=section,
        dynamic=dynamic,
        size=training_size(section, "img_size", facts, ledger, positions=r"backbone\.pos_embed", extra=1, patch=patch),
        patch=patch,
        width=width,
        layers=layers,
        heads=ledger.settle(section.name("num_heads"), section.integer("num_heads"), None, stand_in=1),
        hidden=_hidden(section, facts, ledger, width),
        extra_tokens=0 if section.flag("with_cls_token") is False else 1,
        norm_eps=ledger.settle(section.name("norm_cfg"), eps, None, stand_in=1e-6),
        final_norm=present(section, "final_norm", facts.has(r"backbone\.ln1\..*"), default=False),
        position_mode=_position_mode(section, ledger),
        outputs=_outputs(section, ledger, dynamic=dynamic, layers=layers),
        attention=_attention_keys(section, facts),
        # mmsegmentation 1.x builds the embedding without a bias unless told; DoViT's copy always has one.
        patch_bias=present(section, "patch_bias", facts.has(rf"{_STEM}\.bias"), default=dynamic),
    )


def present(section: Section, key: str, seen: bool, *, default: bool) -> bool:
    """Whether an optional part exists: as stated, else as the keys show, else `default`.

    Stated and not there is a missing entry, which is told later; there and denied is a contradiction.
    """
    stated = section.flag(key)
    if stated is False and seen:
        raise ConfigError(f"'{section.name(key)}' is false in the configuration, and the checkpoint has its entries")
    return stated if stated is not None else seen or default


def _is_dynamic(section: Section, facts: KeyFacts, ledger: Ledger) -> bool:
    gates = facts.has(r"backbone\.auxiliary_head\..*")
    section.must_be("type", "DoViT", "VisionTransformer")
    kind = section.text("type")
    if kind == "VisionTransformer" and gates:
        raise ConfigError(f"'{section.name('type')}' is {kind}, and {ledger.source} has the gates of a DoViT")
    return gates or kind == "DoViT"


def _refuse_unsupported(section: Section, *, dynamic: bool) -> None:
    section.must_be("in_channels", 3)
    section.must_be("patch_norm", False)
    section.must_be("output_cls_token", False)
    section.must_be("pre_norm", False)
    section.must_be("out_origin", False)
    section.must_be("num_fcs", 2)
    section.must_be("patch_pad", "corner")
    section.must_be("attn_cfg", {})
    section.must_be("ffn_cfg", {})
    if dynamic:
        # The released code takes the first token for the class token whatever this says.
        section.must_be("with_cls_token", True)
    activation = section.section("act_cfg")
    if activation is not None:
        activation.only(frozenset({"type"})).must_be("type", "GELU")


def _hidden(section: Section, facts: KeyFacts, ledger: Ledger, width: int) -> int:
    ratio = section.number("mlp_ratio")
    seen = facts.size((rf"{_LAYER}\.ffn\.layers\.0\.0\.(weight|bias)", 0))
    stated = None if ratio is None else int(ratio * width)
    return ledger.settle(f"{section.name('mlp_ratio')} (as hidden width)", stated, seen, stand_in=4 * width)


def _position_mode(section: Section, ledger: Ledger) -> Literal["bicubic", "bilinear"]:
    section.must_be("interpolate_mode", "bicubic", "bilinear")
    mode = ledger.settle(section.name("interpolate_mode"), section.text("interpolate_mode"), None, stand_in="bicubic")
    return "bilinear" if mode == "bilinear" else "bicubic"


def _outputs(section: Section, ledger: Ledger, *, dynamic: bool, layers: int) -> tuple[int, ...]:
    stated = section.integers("out_indices")
    if dynamic:
        stated = ledger.settle(section.name("out_indices"), stated, None, stand_in=(layers - 1,))
    # The source's default, -1, is the last layer.
    outputs = (layers - 1,) if stated is None or stated == (-1,) else stated
    if list(outputs) != sorted(set(outputs)) or not all(0 <= layer < layers for layer in outputs):
        raise section.wrong("out_indices", f"rising numbers from 0 to {layers - 1} are needed")
    return outputs


def _attention_keys(section: Section, facts: KeyFacts) -> AttentionKeys:
    keys = IN_PROJ if facts.has(rf"{_LAYER}\.attn\.attn\..*") else QKV
    has_bias = present(section, "qkv_bias", facts.has(rf"{_LAYER}\.{re.escape(keys.bias)}"), default=False)
    return AttentionKeys(keys.weight, keys.bias, keys.output, has_bias)
