"""mmsegmentation's model dict and keys -> Architecture: DoViT, and stock ViT segmentors as dense models.

Sources: FLHonker/DoViT-code (`DoViT`), open-mmlab/mmsegmentation 0.30 and 1.2 (`VisionTransformer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, after_class_token, batched, extra_token, packed
from dovit_deploy.checkpoints.reader import Architecture, Reader
from dovit_deploy.checkpoints.settings import (
    Section,
    Sources,
    SpecValue,
    count,
    size,
    thresholds_per_gate,
    training_size,
)
from dovit_deploy.errors import CheckpointMismatch, ConfigError, UsageError
from dovit_deploy.families.parts import FcnHead, GateSpec, Head, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.vit.mmseg_heads import (
    CLASSES,
    DECODE_KEYS,
    GATE_KEYS,
    layer_norm_eps,
    mmseg_head,
    reads_several_layers,
    refuse_other_activation,
)
from dovit_deploy.families.vit.spec import VisionTransformerSpec

BACKBONE_KEYS: KeyTable = {
    "backbone.cls_token": extra_token(0),
    "backbone.pos_embed": batched("positions"),
    "backbone.patch_embed.projection.{entry}": "stem.projection.{entry}",
    "backbone.layers.{layer}.ln1.{entry}": "blocks.{layer}.norm1.{entry}",
    "backbone.layers.{layer}.ln2.{entry}": "blocks.{layer}.norm2.{entry}",
    "backbone.layers.{layer}.ffn.layers.0.0.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "backbone.layers.{layer}.ffn.layers.1.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "backbone.ln1.{entry}": "norm.{entry}",
}
QKV_KEYS: KeyTable = {
    "backbone.layers.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "backbone.layers.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
}
"""DoViT's own attention, as in timm."""
IN_PROJ_KEYS: KeyTable = {
    "backbone.layers.{layer}.attn.attn.in_proj_{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "backbone.layers.{layer}.attn.attn.out_proj.{entry}": "blocks.{layer}.attention.output.{entry}",
}
"""mmcv's wrapper of torch.nn.MultiheadAttention."""

MODEL_SETTINGS = frozenset({"type", "backbone", "decode_head", "auxiliary_head", "neck", "test_cfg"})
_BACKBONE_SETTINGS = frozenset(
    {
        *("type", "img_size", "patch_size", "in_channels", "embed_dims", "num_layers", "num_heads", "mlp_ratio"),
        *("out_indices", "qkv_bias", "with_cls_token", "output_cls_token", "norm_cfg", "act_cfg", "patch_norm"),
        *("final_norm", "interpolate_mode", "num_fcs", "patch_bias", "patch_pad", "pre_norm", "out_origin"),
        *("attn_cfg", "ffn_cfg"),
    }
)
_DYNAMIC_SETTINGS = frozenset({"exit_conf", "diff_conf", "agg_rate"})
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "in_channels": (3,),
    "patch_norm": (False,),
    "output_cls_token": (False,),
    "pre_norm": (False,),
    "out_origin": (False,),
    "num_fcs": (2,),
    "patch_pad": ("corner",),
    "attn_cfg": ({},),
    "ffn_cfg": ({},),
}


def _stated_hidden(backbone: Sources, key: str) -> int | None:
    ratio = backbone.number(key)
    return None if ratio is None else int(ratio * backbone[WIDTH])


def _stated_outputs(backbone: Sources, key: str) -> tuple[int, ...] | None:
    outputs, layers = backbone.integers(key), backbone[LAYERS]
    if outputs is None and _is_dynamic(backbone):
        return None
    if outputs is None or outputs == (-1,):
        # The source's default, -1, is the last layer.
        return (layers - 1,)
    if list(outputs) != sorted(set(outputs)) or not all(0 <= layer < layers for layer in outputs):
        raise backbone.wrong(key, f"rising numbers from 0 to {layers - 1} are needed")
    return outputs


def _stated_mode(section: Section, key: str) -> Literal["bicubic", "bilinear"] | None:
    section.must_be(key, "bicubic", "bilinear")
    mode = section.text(key)
    return None if mode is None else "bilinear" if mode == "bilinear" else "bicubic"


def _stated_eps(backbone: Section, key: str) -> float | None:
    # A configuration that leaves it out means the constructor's default; without a configuration nothing is known.
    return layer_norm_eps(backbone, key, 1e-5 if backbone.values else None)


def _stated_confidence(backbone: Section, key: str) -> tuple[float, ...] | None:
    if isinstance(backbone.values.get(key), list | tuple):
        return backbone.numbers(key)
    value = backbone.number(key)
    return None if value is None else (value,)


WIDTH = SpecValue("embed_dims", Section.positive, 1, shown=size(("layers.*.ln*.*", 0)))
LAYERS = SpecValue("num_layers", Section.positive, 1, shown=count("layers"))
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("patch_embed.projection.weight", 2)))
SIZE = training_size("img_size", positions="pos_embed", extra=lambda _: 1, patch=lambda backbone: backbone[PATCH])
HEADS = SpecValue("num_heads", Section.positive, 1)
HIDDEN = SpecValue(
    "mlp_ratio",
    _stated_hidden,
    1,
    shown=size(("layers.*.ffn.layers.0.0.*", 0)),
    label="mlp_ratio (as hidden width)",
)
NORM_EPS = SpecValue("norm_cfg", _stated_eps, 1e-6)
POSITION_MODE = SpecValue[Literal["bicubic", "bilinear"]]("interpolate_mode", _stated_mode, "bicubic")
OUTPUTS = SpecValue[tuple[int, ...]]("out_indices", _stated_outputs, (0,))
"""Layers after which features are taken; a gate of DoViT stands before each but the last."""
EXIT_CONFIDENCE = SpecValue[tuple[float, ...]]("exit_conf", _stated_confidence, (1.0,))


def mmseg_architecture(model: Sources) -> Architecture:
    """Understand a checkpoint of mmsegmentation; `model` is its model dict.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: nothing shows what the decode head is, or all gates are missing.
    """
    model.must_be("neck", None)
    backbone, decode = model.part("backbone", "backbone."), model.part("decode_head", "decode_head.")
    _refuse_unsupported(backbone)
    if _is_dynamic(backbone):
        decode.must_be("input_transform", None)
    *taps, feature = _read_layers(decode, backbone[OUTPUTS])
    head, classes = mmseg_head(decode, width=backbone[WIDTH] * (len(taps) + 1)), decode[CLASSES]
    gates = _gates(model, backbone, classes=classes)
    thresholds = _thresholds(backbone, len(gates))
    # What comes after the layer that the decode head reads is never looked at.
    gates = tuple(gate for gate in gates if gate.layer <= feature)
    values = {**_backbone_values(backbone, head, feature=feature), "classes": classes, "gates": gates, "head": head}
    if taps:
        # Of all outputs the source norms the last layer's alone.
        values |= {"taps": tuple(layer + 1 for layer in taps), "tap_norm": False}
    model.finish()
    spec = VisionTransformerSpec.model_validate(values)
    stride, window = _slide(model)
    return Architecture(
        spec=spec,
        key_map=_key_map(backbone, spec, feature=feature),
        thresholds=thresholds[: len(gates)],
        # -1 switches it off in the source.
        floor=max(0.0, backbone.number("diff_conf") or 0.0),
        stride=stride,
        slide_size=window,
    )


def _is_dynamic(backbone: Sources) -> bool:
    """A DoViT: gates stand before its output layers."""
    return backbone.facts.has("auxiliary_head.**") or backbone.text("type") == "DoViT"


def _refuse_unsupported(backbone: Sources) -> None:
    dynamic = _is_dynamic(backbone)
    backbone.must_be("type", "DoViT", "VisionTransformer")
    if dynamic and backbone.text("type") == "VisionTransformer":
        raise ConfigError(
            f"'{backbone.name('type')}' is VisionTransformer, and {backbone.checkpoint} has the gates of a DoViT"
        )
    backbone.only(_BACKBONE_SETTINGS | _DYNAMIC_SETTINGS if dynamic else _BACKBONE_SETTINGS)
    backbone.must_all_be(_SUPPORTED)
    if dynamic:
        # The released code takes the first token for the class token whatever this says.
        backbone.must_be("with_cls_token", True)
    refuse_other_activation(backbone, "GELU")


def _backbone_values(backbone: Sources, head: Head, *, feature: int) -> dict[str, object]:
    """The arguments of the spec that the backbone knows, up to layer `feature`."""
    rate = backbone.number("agg_rate")
    # The source applies its last norm after the last layer only.
    last = feature == backbone[LAYERS] - 1
    return {
        "family": "dovit" if _is_dynamic(backbone) else "setr" if isinstance(head, SetrHead) else "vit",
        "size": backbone[SIZE],
        "patch": backbone[PATCH],
        "width": backbone[WIDTH],
        "depth": feature + 1,
        "heads": backbone[HEADS],
        "hidden": backbone[HIDDEN],
        # Its position is always in the keys, so they do not show whether the token is used.
        "extra_tokens": 0 if backbone.flag("with_cls_token") is False else 1,
        "norm_eps": backbone[NORM_EPS],
        "final_norm": backbone.present("final_norm", "ln1.**") and last,
        "aggregate_rate": 0.1 if rate is None else rate,
        "position_mode": backbone[POSITION_MODE],
    }


def _read_layers(decode: Section, outputs: Sequence[int]) -> tuple[int, ...]:
    """The layers after which the decode head reads, rising; all but one of a head that joins their channels."""
    decode.must_be("input_transform", None, "resize_concat")
    if reads_several_layers(decode):
        chosen = decode.integers("in_index")
    else:
        index = decode.integer("in_index")
        chosen = (-1 if index is None else index,)
    if chosen is None:
        raise decode.wrong("in_index", "a list of the outputs to join is needed")
    try:
        layers = tuple(outputs[index] for index in chosen)
    except IndexError:
        raise decode.wrong("in_index", f"the backbone gives {len(outputs)} outputs") from None
    if list(layers) != sorted(set(layers)):
        raise decode.wrong("in_index", "outputs of rising layers are needed")
    return layers


def _gates(model: Sources, backbone: Sources, *, classes: int) -> tuple[GateSpec, ...]:
    """A gate before each output layer but the last, with its auxiliary head."""
    if not _is_dynamic(backbone):
        return ()
    layers, shown = backbone[OUTPUTS][:-1], backbone.facts.count("auxiliary_head")
    if backbone.name(OUTPUTS.key) in backbone.unknown:
        # Any layers do: they serve to name what else is unknown.
        layers = tuple(range(1, 1 + (shown or 0)))
    if layers and layers[0] < 1:
        raise backbone.wrong(OUTPUTS.key, "the first gate may stand before layer 1, not before layer 0")
    if layers and shown is None:
        raise CheckpointMismatch(
            f"{backbone.checkpoint} has none of the {len(layers)} auxiliary heads that decide which tokens stop "
            "(backbone.auxiliary_head.*)",
            "Give the whole checkpoint; or export it dense: --config with the backbone's type VisionTransformer and "
            "without auxiliary_head, exit_conf, diff_conf and agg_rate",
        )
    model.agreed("number of gates (out_indices without the last)", len(layers), shown)
    stated = model.values.get("auxiliary_head")
    heads = list(stated) if isinstance(stated, list | tuple) else [stated] * len(layers)
    if len(heads) != len(layers):
        raise ConfigError(f"'auxiliary_head' lists {len(heads)} heads for {len(layers)} gates (backbone.out_indices)")
    # Each head of the list becomes a section of its own, so that messages say which.
    named = replace(model, values={f"auxiliary_head.{number}": head for number, head in enumerate(heads)})
    return tuple(
        GateSpec(layer=layer, head=_gate_head(named, key, width=backbone[WIDTH], classes=classes))
        for layer, key in zip(layers, named.values, strict=True)
    )


def _gate_head(named: Sources, key: str, *, width: int, classes: int) -> LinearHead | FcnHead | SetrHead:
    section = named.part(key, f"backbone.{key}.")
    section.must_be("input_transform", None)
    head = mmseg_head(section, width=width)
    if isinstance(head, MaskHead):
        raise section.wrong("type", "a gate needs an FCNHead or a SETRUPHead")
    section.agreed(CLASSES.key, section[CLASSES], classes)
    return head


def _thresholds(backbone: Sources, gates: int) -> tuple[float, ...]:
    """One per gate: the caller's, else those of the configuration."""
    if backbone.thresholds is not None:
        return thresholds_per_gate(backbone.thresholds, gates, UsageError)
    return thresholds_per_gate(backbone[EXIT_CONFIDENCE], gates, ConfigError) if gates else ()


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


def _key_map(backbone: Sources, spec: VisionTransformerSpec, *, feature: int) -> KeyMap:
    """The tables that fit the attention and the heads; entries after layer `feature` are not needed."""
    wrapped = backbone.facts.has("layers.*.attn.attn.**")
    table = {**BACKBONE_KEYS, **(IN_PROJ_KEYS if wrapped else QKV_KEYS), **GATE_KEYS, **DECODE_KEYS[spec.head.kind]}
    packed_bias = "layers.*.attn.attn.in_proj_bias" if wrapped else "layers.*.attn.qkv.bias"
    unused = ["**.num_batches_tracked", "auxiliary_head.**"]
    if isinstance(spec.head, MaskHead):
        unused.append("decode_head.conv_seg.*")
    if not spec.extra_tokens:
        # The source stores the class token and its position even where it then drops both.
        table["backbone.pos_embed"] = after_class_token("positions")
        unused.append("backbone.cls_token")
    unused += [f"backbone.layers.{layer}.**" for layer in range(feature + 1, backbone[LAYERS])]
    unused += [f"backbone.auxiliary_head.{gate}.**" for gate in range(len(spec.gates), len(backbone[OUTPUTS]) - 1)]
    if feature < backbone[LAYERS] - 1:
        unused.append("backbone.ln1.*")
    absent = []
    if not backbone.present("qkv_bias", packed_bias):
        absent.append(f"backbone.{packed_bias}")
    # mmsegmentation 1.x builds the embedding without a bias unless asked; DoViT's copy always has one.
    if not backbone.present("patch_bias", "patch_embed.projection.bias", default=_is_dynamic(backbone)):
        absent.append("backbone.patch_embed.projection.bias")
    return KeyMap(table, unused=tuple(unused), zero_if_absent=tuple(absent))


READER = Reader(
    title="DoViT/Segmenter/SETR of mmsegmentation",
    recognises=lambda facts: facts.has("backbone.layers.**"),
    settings=MODEL_SETTINGS | IMAGE_SETTINGS,
    architecture=mmseg_architecture,
    tables=(BACKBONE_KEYS, QKV_KEYS, IN_PROJ_KEYS, GATE_KEYS, *DECODE_KEYS.values()),
    needed=("backbone.layers.*.ln1.*", "backbone.patch_embed.projection.*", "backbone.pos_embed", "decode_head.**"),
)
