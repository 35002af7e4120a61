"""mmsegmentation's model dict and keys -> Architecture: DoViT, and stock ViT segmentors as dense models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dovit_deploy.bundle.spec import GateSpec, Head, MaskHead, SetrHead, VisionTransformerSpec
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import Architecture, settled_thresholds
from dovit_deploy.models.image_facts import IMAGE_SETTINGS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.mmseg_backbone import Backbone, mmseg_backbone
from dovit_deploy.models.mmseg_heads import class_count, mmseg_head
from dovit_deploy.models.official_keys import mmseg_rules
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section

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
