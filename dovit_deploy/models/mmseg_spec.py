"""mmsegmentation's model dict and keys -> Architecture: DoViT, and stock ViT segmentors as dense models.

Sources: FLHonker/DoViT-code, open-mmlab/mmsegmentation 0.30 and 1.2 (`VisionTransformer`, `EncoderDecoder`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.spec import FcnHead, GateSpec, MaskHead, SetrHead
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import Architecture, checked_spec, settled_thresholds, training_size
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.mmseg_heads import class_count, layer_norm_eps, mmseg_head
from dovit_deploy.models.official_keys import IN_PROJ, QKV, AttentionKeys, mmseg_rules
from dovit_deploy.models.section import Ledger, Section

MODEL_SETTINGS = frozenset({"type", "backbone", "decode_head", "auxiliary_head", "neck", "test_cfg"})
_BACKBONE = frozenset(
    {
        *("type", "img_size", "patch_size", "in_channels", "embed_dims", "num_layers", "num_heads", "mlp_ratio"),
        *("out_indices", "qkv_bias", "with_cls_token", "output_cls_token", "norm_cfg", "act_cfg", "patch_norm"),
        *("final_norm", "interpolate_mode", "num_fcs", "patch_bias", "patch_pad", "pre_norm", "out_origin"),
        *("attn_cfg", "ffn_cfg"),
    }
)
_DYNAMIC = frozenset({"exit_conf", "diff_conf", "agg_rate"})
_LAYER = r"backbone\.layers\.\d+"


@dataclass(frozen=True)
class _Backbone:
    """The encoder as configuration and keys tell it, before it is cut to what the decode head reads."""

    section: Section
    dynamic: bool
    width: int
    layers: int
    outputs: tuple[int, ...]
    """Layers after which features are taken; a gate of DoViT stands before each but the last."""
    final_norm: bool


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
    backbone = _backbone(_part(model, "backbone"), facts, ledger)
    section = _part(model, "decode_head")
    head = mmseg_head(section, facts, "decode_head", ledger, width=backbone.width)
    classes = class_count(section, facts, "decode_head", ledger)
    feature = _feature_layer(section, backbone.outputs)
    gates = _gates(model, backbone, facts, ledger, classes=classes)
    limits = settled_thresholds(
        _exit_confidence(backbone.section), thresholds, len(gates), ledger, name="backbone.exit_conf"
    )
    return _assembled(
        backbone, facts, ledger, head=head, classes=classes, feature=feature, gates=gates, limits=limits, model=model
    )


def _assembled(
    backbone: _Backbone,
    facts: KeyFacts,
    ledger: Ledger,
    *,
    head: FcnHead | SetrHead | MaskHead,
    classes: int,
    feature: int,
    gates: tuple[GateSpec, ...],
    limits: tuple[float, ...],
    model: Section,
) -> Architecture:
    section, source = backbone.section, ledger.source
    patch = ledger.settle(
        "backbone.patch_size",
        section.integer("patch_size"),
        facts.size((r"backbone\.patch_embed\.projection\.weight", 2)),
        stand_in=16,
    )
    size = training_size(section, "img_size", facts, ledger, positions=r"backbone\.pos_embed", extra=1, patch=patch)
    heads = ledger.settle("backbone.num_heads", section.integer("num_heads"), None, stand_in=1)
    eps = layer_norm_eps(section, "norm_cfg", 1e-5 if section.values else None)
    mode = ledger.settle("backbone.interpolate_mode", section.text("interpolate_mode"), None, stand_in="bicubic")
    norm_eps = ledger.settle("backbone.norm_cfg", eps, None, stand_in=1e-6)
    section.must_be("interpolate_mode", "bicubic", "bilinear")
    ledger.finish()
    whole = feature == backbone.layers - 1
    running = tuple(gate for gate in gates if gate.layer <= feature)
    spec = checked_spec(
        source=source,
        family="dovit" if backbone.dynamic else ("setr" if isinstance(head, SetrHead) else "vit"),
        size=size,
        patch=patch,
        width=backbone.width,
        depth=feature + 1,
        heads=heads,
        hidden=_hidden(section, facts, ledger, backbone.width),
        extra_tokens=0 if section.flag("with_cls_token") is False else 1,
        norm_eps=norm_eps,
        final_norm=backbone.final_norm and whole,
        classes=classes,
        gates=running,
        aggregate_rate=_or(section.number("agg_rate"), 0.1),
        position_mode=mode,
        head=head,
    )
    stride, window = _slide(model)
    return Architecture(
        spec=spec,
        rules=mmseg_rules(
            spec, _attention_keys(section, facts), patch_bias=_patch_bias(section, facts, dynamic=backbone.dynamic)
        ),
        unused=_unused(backbone, len(running), feature, head, class_token=spec.extra_tokens > 0),
        thresholds=limits[: len(running)],
        floor=max(0.0, _or(section.number("diff_conf"), 0.0)),
        stride=stride,
        slide_size=window,
    )


def _part(model: Section, key: str) -> Section:
    """A part of the model, empty where nothing is stated."""
    value = model.values.get(key)
    if isinstance(value, list | tuple):
        raise ConfigError(f"'{key}' is a list of {len(value)}; only one is supported")
    return model.section(key) or Section(key, {}, model.source)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def present(section: Section, key: str, seen: bool, default: bool) -> bool:
    """Whether an optional part exists: as stated, else as the keys show, else `default`.

    Stated and not there is a missing entry, which is told later; there and denied is a contradiction.
    """
    stated = section.flag(key)
    if stated is False and seen:
        raise ConfigError(f"'{section.name(key)}' is false in the configuration, and the checkpoint has its entries")
    return stated if stated is not None else seen or default


def _backbone(section: Section, facts: KeyFacts, ledger: Ledger) -> _Backbone:
    dynamic = facts.has(r"backbone\.auxiliary_head\..*")
    kind = section.text("type")
    section.must_be("type", "DoViT", "VisionTransformer")
    if kind == "VisionTransformer" and dynamic:
        raise ConfigError(f"'backbone.type' is VisionTransformer, and {ledger.source} has the gates of a DoViT")
    dynamic = dynamic or kind == "DoViT"
    section.only(_BACKBONE | _DYNAMIC if dynamic else _BACKBONE)
    _refuse_unsupported(section, dynamic=dynamic)
    votes = (rf"{_LAYER}\.ln[12]\.(weight|bias)", 0)
    width = ledger.settle("backbone.embed_dims", section.integer("embed_dims"), facts.size(votes), stand_in=1)
    layers = ledger.settle(
        "backbone.num_layers", section.integer("num_layers"), facts.count(r"backbone\.layers"), stand_in=1
    )
    return _Backbone(
        section=section,
        dynamic=dynamic,
        width=width,
        layers=layers,
        outputs=_outputs(section, ledger, dynamic=dynamic, layers=layers),
        final_norm=present(section, "final_norm", facts.has(r"backbone\.ln1\..*"), default=False),
    )


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
        section.must_be("with_cls_token", True)
    activation = section.section("act_cfg")
    if activation is not None:
        activation.only(frozenset({"type"})).must_be("type", "GELU")


def _outputs(section: Section, ledger: Ledger, *, dynamic: bool, layers: int) -> tuple[int, ...]:
    stated = section.integers("out_indices")
    if dynamic:
        stated = ledger.settle("backbone.out_indices", stated, None, stand_in=(layers - 1,))
    # The source's default, -1, is the last layer.
    outputs = (layers - 1,) if stated in (None, (-1,)) else stated or ()
    if list(outputs) != sorted(set(outputs)) or not all(0 <= layer < layers for layer in outputs):
        raise section.wrong("out_indices", f"rising numbers from 0 to {layers - 1} are needed")
    return outputs


def _feature_layer(head: Section, outputs: tuple[int, ...]) -> int:
    """The layer after which the decode head reads; what comes later is never run."""
    index = head.integer("in_index")
    try:
        return outputs[-1 if index is None else index]
    except IndexError:
        raise head.wrong("in_index", f"the backbone gives {len(outputs)} outputs") from None


def _gates(
    model: Section, backbone: _Backbone, facts: KeyFacts, ledger: Ledger, *, classes: int
) -> tuple[GateSpec, ...]:
    if not backbone.dynamic:
        return ()
    layers, seen = backbone.outputs[:-1], facts.count(r"backbone\.auxiliary_head")
    if "backbone.out_indices" in ledger.unknown:
        layers = tuple(range(1, 1 + (seen or 0)))
    ledger.settle("number of gates (backbone.out_indices without the last)", len(layers), seen, stand_in=0)
    stated = model.values.get("auxiliary_head")
    heads = stated if isinstance(stated, list | tuple) else [stated if stated is not None else {}] * len(layers)
    if len(heads) != len(layers):
        raise ConfigError(f"'auxiliary_head' lists {len(heads)} heads for {len(layers)} gates (backbone.out_indices)")
    gates = []
    for number, (layer, values) in enumerate(zip(layers, heads, strict=True)):
        holder = Section("", {f"auxiliary_head.{number}": values}, model.source)
        section = holder.section(f"auxiliary_head.{number}") or Section(f"auxiliary_head.{number}", {})
        prefix = rf"backbone\.auxiliary_head\.{number}"
        head = mmseg_head(section, facts, prefix, ledger, width=backbone.width)
        if isinstance(head, MaskHead):
            raise section.wrong("type", "a gate needs an FCNHead or a SETRUPHead")
        ledger.settle(
            section.name("num_classes"), class_count(section, facts, prefix, ledger), classes, stand_in=classes
        )
        if layer < 1:
            raise ConfigError(
                f"'backbone.out_indices' puts a gate before layer {layer}; the first may stand before layer 1"
            )
        gates.append(GateSpec(layer=layer, head=head))
    return tuple(gates)


def _exit_confidence(section: Section) -> tuple[float, ...] | None:
    if isinstance(section.values.get("exit_conf"), list | tuple):
        return section.numbers("exit_conf")
    value = section.number("exit_conf")
    return None if value is None else (value,)


def _hidden(section: Section, facts: KeyFacts, ledger: Ledger, width: int) -> int:
    ratio = section.number("mlp_ratio")
    seen = facts.size((rf"{_LAYER}\.ffn\.layers\.0\.0\.(weight|bias)", 0))
    stated = None if ratio is None else int(ratio * width)
    return ledger.settle("backbone.mlp_ratio (as hidden width)", stated, seen, stand_in=4 * width)


def _attention_keys(section: Section, facts: KeyFacts) -> AttentionKeys:
    packed = facts.has(rf"{_LAYER}\.attn\.attn\..*")
    keys = IN_PROJ if packed else QKV
    has_bias = present(section, "qkv_bias", facts.has(rf"{_LAYER}\.{re.escape(keys.bias)}"), default=False)
    return AttentionKeys(keys.weight, keys.bias, keys.output, has_bias)


def _patch_bias(section: Section, facts: KeyFacts, *, dynamic: bool) -> bool:
    # mmsegmentation 1.x builds the embedding without a bias unless told; DoViT's copy always has one.
    return present(section, "patch_bias", facts.has(r"backbone\.patch_embed\.projection\.bias"), default=dynamic)


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


def _unused(
    backbone: _Backbone, gates: int, feature: int, head: FcnHead | SetrHead | MaskHead, *, class_token: bool
) -> re.Pattern[str]:
    patterns = [r".*\.num_batches_tracked", r"auxiliary_head\..*"]
    if isinstance(head, MaskHead):
        patterns.append(r"decode_head\.conv_seg\.(weight|bias)")
    if not class_token:
        patterns.append(r"backbone\.cls_token")
    beyond = [rf"layers\.{number}" for number in range(feature + 1, backbone.layers)]
    beyond += [rf"auxiliary_head\.{number}" for number in range(gates, len(backbone.outputs) - 1)]
    if feature < backbone.layers - 1:
        beyond.append("ln1")
    patterns += [rf"backbone\.{part}\..*" for part in beyond]
    return re.compile("|".join(patterns))
