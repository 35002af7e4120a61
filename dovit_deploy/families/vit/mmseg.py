"""mmsegmentation's model dict and keys -> Architecture: DoViT, and stock ViT segmentors as dense models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dovit_deploy.checkpoints.keys import IN_PROJ, QKV, AttentionKeys, mmseg_rules
from dovit_deploy.checkpoints.settings import (
    IMAGE_SETTINGS,
    Architecture,
    KeyFacts,
    Ledger,
    Reader,
    Section,
    settled_thresholds,
    training_size,
)
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.folding import EPS
from dovit_deploy.families.parts import FcnHead, GateSpec, Head, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec

# Heads of mmsegmentation from their configuration and keys: what is supported, and what must be stated.

Kind = Literal["FCNHead", "SETRUPHead", "SegmenterMaskTransformerHead"]
KINDS: dict[Kind, str] = {
    "SegmenterMaskTransformerHead": r"(cls_emb|mask_norm\..*|dec_proj\..*|patch_proj\..*|layers\..*)",
    "SETRUPHead": r"up_convs\..*",
    "FCNHead": r"(convs|conv_seg)\..*",
}
"""Which entries give a head's kind away."""

_EVERY = frozenset(
    {
        *("type", "in_channels", "channels", "num_classes", "out_channels", "in_index", "input_transform"),
        *("norm_cfg", "act_cfg", "conv_cfg", "align_corners", "threshold"),
    }
)
_KNOWN: dict[Kind, frozenset[str]] = {
    "FCNHead": _EVERY | {"num_convs", "kernel_size", "concat_input", "dilation"},
    "SETRUPHead": _EVERY | {"num_convs", "up_scale", "kernel_size", "norm_layer"},
    "SegmenterMaskTransformerHead": _EVERY
    | {"num_layers", "num_heads", "embed_dims", "mlp_ratio", "num_fcs", "qkv_bias"},
}


def head_kind(section: Section, facts: KeyFacts, prefix: str, ledger: Ledger) -> Kind:
    """The official class of the head whose entries begin with `prefix` (a pattern)."""
    stated = section.text("type")
    if stated is not None and stated not in KINDS:
        raise section.wrong("type", f"supported heads: {', '.join(KINDS)}")
    seen = next((kind for kind, pattern in KINDS.items() if facts.has(rf"{prefix}\.{pattern}")), None)
    known: Kind | None = next((kind for kind in KINDS if kind == stated), None)
    if known is None and seen is None:
        raise CheckpointMismatch(f"{ledger.source} has no entries of '{section.place}' that tell what head it is")
    return ledger.settle(section.name("type"), known, seen, stand_in="FCNHead")


def class_count(section: Section, facts: KeyFacts, prefix: str, ledger: Ledger) -> int:
    """Number of classes of a head."""
    seen = facts.size(
        (rf"{prefix}\.mask_norm\.(weight|bias)", 0),
        (rf"{prefix}\.cls_emb", 1),
        (rf"{prefix}\.conv_seg\.(weight|bias)", 0),
    )
    if facts.has(rf"{prefix}\.cls_emb"):
        # mmsegmentation 0.x stores an unused `conv_seg` beside the mask head.
        seen = facts.size((rf"{prefix}\.mask_norm\.(weight|bias)", 0), (rf"{prefix}\.cls_emb", 1))
    classes = ledger.settle(section.name("num_classes"), section.integer("num_classes"), seen, stand_in=1)
    section.must_be("out_channels", None, classes)
    return classes


def mmseg_head(
    section: Section, facts: KeyFacts, prefix: str, ledger: Ledger, *, width: int
) -> FcnHead | LinearHead | SetrHead | MaskHead:
    """The head whose entries begin with `prefix` (a pattern), stated in `section`.

    Raises:
        ConfigError: a stated value is unknown, unsupported or contradicts the keys.
        CheckpointMismatch: nothing tells what head it is.
    """
    kind = head_kind(section, facts, prefix, ledger)
    section.only(_KNOWN[kind])
    section.must_be("input_transform", None)
    section.must_be("align_corners", False)
    section.must_be("threshold", None)
    section.must_be("conv_cfg", None)
    ledger.settle(section.name("in_channels"), section.integer("in_channels"), width, stand_in=width)
    if kind == "SegmenterMaskTransformerHead":
        return _mask_head(section, facts, prefix, ledger)
    _refuse_other_norms(section)
    _refuse_other_activation(section, "ReLU")
    if kind == "SETRUPHead":
        return _setr_head(section, facts, prefix, ledger)
    return _fcn_head(section, facts, prefix, ledger)


def layer_norm_eps(section: Section, key: str, default: float | None) -> float | None:
    """Epsilon of a LayerNorm configured under `key`: a bare dict(type='LN') means torch's 1e-5."""
    config = section.section(key)
    if config is None:
        return default
    config.only(frozenset({"type", "eps"})).must_be("type", "LN")
    eps = config.number("eps")
    return 1e-5 if eps is None else eps


def _fcn_head(section: Section, facts: KeyFacts, prefix: str, ledger: Ledger) -> FcnHead | LinearHead:
    counted = facts.count(rf"{prefix}\.convs")
    if counted is None and facts.has(rf"{prefix}\.conv_seg\..*"):
        counted = 0
    convs = ledger.settle(section.name("num_convs"), section.integer("num_convs"), counted, stand_in=1)
    joined = facts.has(rf"{prefix}\.conv_cat\..*")
    joined = ledger.settle(section.name("concat_input"), section.flag("concat_input"), joined, stand_in=False)
    kernel = facts.size((rf"{prefix}\.convs\.\d+\.conv\.weight", 2))
    kernel = (
        1
        if convs == 0
        else ledger.settle(section.name("kernel_size"), section.integer("kernel_size"), kernel, stand_in=1)
    )
    # Only heads that look at one token at a time: anything wider would mix stopped tokens with running ones.
    effective = Section(
        section.place, {"num_convs": convs, "kernel_size": kernel, "concat_input": joined}, section.source
    )
    effective.must_be("num_convs", 0, 1)
    effective.must_be("kernel_size", 1)
    effective.must_be("concat_input", False)
    section.must_be("dilation", 1)
    if convs == 0:
        return LinearHead()
    return FcnHead(channels=_channels(section, facts, rf"{prefix}\.convs\.\d+", prefix, ledger))


def _setr_head(section: Section, facts: KeyFacts, prefix: str, ledger: Ledger) -> SetrHead:
    convs = facts.count(rf"{prefix}\.up_convs")
    kernel = facts.size((rf"{prefix}\.up_convs\.\d+\.0\.conv\.weight", 2))
    kernel = ledger.settle(section.name("kernel_size"), section.integer("kernel_size"), kernel, stand_in=1)
    Section(section.place, {"kernel_size": kernel}, section.source).must_be("kernel_size", 1, 3)
    eps = layer_norm_eps(section, "norm_layer", 1e-6)
    return SetrHead.model_validate(
        {
            "channels": _channels(section, facts, rf"{prefix}\.up_convs\.\d+\.0", prefix, ledger),
            "convs": ledger.settle(section.name("num_convs"), section.integer("num_convs"), convs, stand_in=1),
            "up_scale": ledger.settle(section.name("up_scale"), section.integer("up_scale"), None, stand_in=1),
            "kernel": kernel,
            "norm_eps": eps,
        }
    )


def _mask_head(section: Section, facts: KeyFacts, prefix: str, ledger: Ledger) -> MaskHead:
    section.must_be("mlp_ratio", 4, 4.0)
    section.must_be("num_fcs", 2)
    section.must_be("qkv_bias", True)
    _refuse_other_activation(section, "GELU")
    inner = facts.size(
        (rf"{prefix}\.cls_emb", 2),
        (rf"{prefix}\.decoder_norm\.(weight|bias)", 0),
        (rf"{prefix}\.layers\.\d+\.ln[12]\.weight", 0),
    )
    layers = facts.count(rf"{prefix}\.layers")
    return MaskHead.model_validate(
        {
            "width": ledger.settle(section.name("embed_dims"), section.integer("embed_dims"), inner, stand_in=1),
            "layers": ledger.settle(section.name("num_layers"), section.integer("num_layers"), layers, stand_in=1),
            "heads": ledger.settle(section.name("num_heads"), section.integer("num_heads"), None, stand_in=1),
            "norm_eps": layer_norm_eps(section, "norm_cfg", 1e-5),
        }
    )


def _channels(section: Section, facts: KeyFacts, convs: str, prefix: str, ledger: Ledger) -> int:
    seen = facts.size(
        (rf"{convs}\.conv\.weight", 0),
        (rf"{convs}\.bn\.(weight|bias|running_var)", 0),
        (rf"{prefix}\.conv_seg\.weight", 1),
    )
    return ledger.settle(section.name("channels"), section.integer("channels"), seen, stand_in=1)


def _refuse_other_norms(section: Section) -> None:
    norm = section.section("norm_cfg")
    if norm is not None:
        norm.only(frozenset({"type", "eps", "affine", "track_running_stats"}))
        norm.must_be("type", "BN", "SyncBN", "BN2d")
        norm.must_be("eps", EPS)
        norm.must_be("affine", True)
        norm.must_be("track_running_stats", True)


def _refuse_other_activation(section: Section, name: str) -> None:
    activation = section.section("act_cfg")
    if activation is not None:
        activation.only(frozenset({"type", "inplace"})).must_be("type", name)


# The ViT backbone of mmsegmentation and DoViT from its configuration and keys.
#
# Sources: FLHonker/DoViT-code (`DoViT`), open-mmlab/mmsegmentation 0.30 and 1.2 (`VisionTransformer`).

_BACKBONE_KNOWN = frozenset(
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
    section.only(_BACKBONE_KNOWN | _DYNAMIC if dynamic else _BACKBONE_KNOWN)
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


MODEL_SETTINGS = frozenset({"type", "backbone", "decode_head", "auxiliary_head", "neck", "test_cfg"})


def mmseg_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of mmsegmentation.

    Args:
        settings: the model dict; empty if there is none.
        facts: of the checkpoint.
        source: the checkpoint's name, for messages.
        thresholds: the caller's, instead of `exit_conf`.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: nothing tells what the decode head is.
    """
    ledger, model = Ledger(source), Section("", settings)
    model.must_be("neck", None)
    backbone = mmseg_backbone(_part(model, "backbone"), facts, ledger)
    section = _part(model, "decode_head")
    head = mmseg_head(section, facts, "decode_head", ledger, width=backbone.width)
    classes = class_count(section, facts, "decode_head", ledger)
    feature = _feature_layer(section, backbone.outputs)
    gates = _gates(model, backbone, facts, ledger, classes=classes)
    limits = settled_thresholds(
        _exit_confidence(backbone.section), thresholds, len(gates), ledger, name="backbone.exit_conf"
    )
    ledger.finish()
    gates = tuple(gate for gate in gates if gate.layer <= feature)
    spec = _spec(backbone, head, classes=classes, feature=feature, gates=gates)
    stride, window = _slide(model)
    return Architecture(
        spec=spec,
        rules=mmseg_rules(spec, backbone.attention, patch_bias=backbone.patch_bias),
        unused=_unused(backbone, spec, feature=feature),
        thresholds=limits[: len(gates)],
        floor=max(0.0, backbone.section.number("diff_conf") or 0.0),
        stride=stride,
        slide_size=window,
    )


def _spec(
    backbone: Backbone,
    head: Head,
    *,
    classes: int,
    feature: int,
    gates: tuple[GateSpec, ...],
) -> VisionTransformerSpec:
    """The network up to layer `feature`: what comes after it is never read."""
    rate = backbone.section.number("agg_rate")
    dense = "setr" if isinstance(head, SetrHead) else "vit"
    return VisionTransformerSpec(
        family="dovit" if backbone.dynamic else dense,
        size=backbone.size,
        patch=backbone.patch,
        width=backbone.width,
        depth=feature + 1,
        heads=backbone.heads,
        hidden=backbone.hidden,
        extra_tokens=backbone.extra_tokens,
        norm_eps=backbone.norm_eps,
        # The source applies its last norm behind the last layer only.
        final_norm=backbone.final_norm and feature == backbone.layers - 1,
        classes=classes,
        gates=gates,
        aggregate_rate=0.1 if rate is None else rate,
        position_mode=backbone.position_mode,
        head=head,
    )


def _part(model: Section, key: str) -> Section:
    """A part of the model, empty where nothing is stated."""
    value = model.values.get(key)
    if isinstance(value, list | tuple):
        raise ConfigError(f"'{key}' is a list of {len(value)}; only one is supported")
    return model.section(key) or Section(key, {}, model.source)


def _feature_layer(head: Section, outputs: tuple[int, ...]) -> int:
    """The layer after which the decode head reads."""
    index = head.integer("in_index")
    try:
        return outputs[-1 if index is None else index]
    except IndexError:
        raise head.wrong("in_index", f"the backbone gives {len(outputs)} outputs") from None


def _gates(
    model: Section, backbone: Backbone, facts: KeyFacts, ledger: Ledger, *, classes: int
) -> tuple[GateSpec, ...]:
    """A gate before each output layer but the last, with its auxiliary head."""
    if not backbone.dynamic:
        return ()
    layers, seen = backbone.outputs[:-1], facts.count(r"backbone\.auxiliary_head")
    if backbone.section.name("out_indices") in ledger.unknown:
        # Any layers do: they serve to name what else is unknown.
        layers = tuple(range(1, 1 + (seen or 0)))
    if layers and layers[0] < 1:
        raise backbone.section.wrong("out_indices", "the first gate may stand before layer 1, not before layer 0")
    ledger.settle("number of gates (out_indices without the last)", len(layers), seen, stand_in=0)
    stated = model.values.get("auxiliary_head")
    heads = list(stated) if isinstance(stated, list | tuple) else [stated] * len(layers)
    if len(heads) != len(layers):
        raise ConfigError(f"'auxiliary_head' lists {len(heads)} heads for {len(layers)} gates (backbone.out_indices)")
    named = Section("", {f"auxiliary_head.{number}": values for number, values in enumerate(heads)}, model.source)
    return tuple(
        _gate(_part(named, place), number, layer, facts, ledger, width=backbone.width, classes=classes)
        for number, (layer, place) in enumerate(zip(layers, named.values, strict=True))
    )


def _gate(
    section: Section, number: int, layer: int, facts: KeyFacts, ledger: Ledger, *, width: int, classes: int
) -> GateSpec:
    prefix = rf"backbone\.auxiliary_head\.{number}"
    head = mmseg_head(section, facts, prefix, ledger, width=width)
    if isinstance(head, MaskHead):
        raise section.wrong("type", "a gate needs an FCNHead or a SETRUPHead")
    ledger.settle(section.name("num_classes"), class_count(section, facts, prefix, ledger), classes, stand_in=classes)
    return GateSpec(layer=layer, head=head)


def _exit_confidence(section: Section) -> tuple[float, ...] | None:
    if isinstance(section.values.get("exit_conf"), list | tuple):
        return section.numbers("exit_conf")
    value = section.number("exit_conf")
    return None if value is None else (value,)


def _slide(model: Section) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Stride and window of sliding inference, or None and None."""
    test = model.section("test_cfg")
    if test is None:
        return None, None
    test.only(frozenset({"mode", "crop_size", "stride"})).must_be("mode", "whole", "slide")
    if test.text("mode") != "slide":
        return None, None
    window, stride = test.pair("crop_size"), test.pair("stride")
    if window is None or stride is None:
        raise ConfigError("'test_cfg.mode' is slide: 'test_cfg.crop_size' and 'test_cfg.stride' must be stated")
    return stride, window


def _unused(backbone: Backbone, spec: VisionTransformerSpec, *, feature: int) -> re.Pattern[str]:
    """Entries that may be there: counters, train-only heads, and what the decode head never reads."""
    patterns = [r".*\.num_batches_tracked", r"auxiliary_head\..*"]
    if isinstance(spec.head, MaskHead):
        patterns.append(r"decode_head\.conv_seg\.(weight|bias)")
    if not spec.extra_tokens:
        patterns.append(r"backbone\.cls_token")
    beyond = [rf"layers\.{number}" for number in range(feature + 1, backbone.layers)]
    if backbone.dynamic:
        beyond += [rf"auxiliary_head\.{number}" for number in range(len(spec.gates), len(backbone.outputs) - 1)]
    if feature < backbone.layers - 1:
        beyond.append("ln1")
    patterns += [rf"backbone\.{part}\..*" for part in beyond]
    return re.compile("|".join(patterns))


READER = Reader(
    recognises=lambda facts: facts.has(r"backbone\.layers\..*"),
    settings=MODEL_SETTINGS | IMAGE_SETTINGS,
    architecture=mmseg_architecture,
)
