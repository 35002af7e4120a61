"""Which decode head do the entries beside a backbone make?

mmsegmentation's (`decode_head.*`, those of DINOv2's own `_linear` and `_ms` files among them), ours, or one linear
layer or 1x1 convolution of any name, with or without a batch norm before it. All but `_ms` read the last layer alone,
after its norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap, KeyTable, convolution
from dovit_deploy.checkpoints.reader import FoundHead
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.parts import LightHead, LinearHead, MaskHead
from dovit_deploy.families.vit.mmseg_heads import CLASSES, DECODE_KEYS, mmseg_head

HEAD_SETTINGS = frozenset({"decode_head", "backbone"})
"""What a configuration of mmsegmentation says of a head, and of the layers that it reads."""

_CLASSIFIER = "head.head.classifier"
BN_HEAD_KEYS: KeyTable = {
    "decode_head.bn.{entry}": f"{_CLASSIFIER}.prior.{{entry}}",
    "decode_head.conv_seg.weight": convolution(f"{_CLASSIFIER}.projection.weight"),
    "decode_head.conv_seg.bias": f"{_CLASSIFIER}.projection.bias",
}
"""DINOv2's own linear heads (`BNHead`)."""
DINOV3_HEAD_KEYS: KeyTable = {
    "segmentation_model.1.batchnorm_layer.{entry}": f"{_CLASSIFIER}.prior.{{entry}}",
    "segmentation_model.1.conv.weight": convolution(f"{_CLASSIFIER}.projection.weight"),
    "segmentation_model.1.conv.bias": f"{_CLASSIFIER}.projection.bias",
}
"""DINOv3's own linear heads (`LinearHead`), the second of two modules."""
DINOV3_WINDOW, DINOV3_STRIDE = (512, 512), (341, 341)
"""Of the evaluation that its published figures are from."""
OUR_LINEAR_KEYS: KeyTable = {"head.head.classifier.{entry}": "head.head.classifier.{entry}"}
OUR_LIGHT_KEYS: KeyTable = {
    "head.norm.{entry}": "head.norm.{entry}",
    "head.expand.{entry}": "head.expand.{entry}",
    "head.conv.{entry}": "head.conv.{entry}",
    "head.classifier.{entry}": "head.classifier.{entry}",
}
HEAD_TABLES = (BN_HEAD_KEYS, DINOV3_HEAD_KEYS, OUR_LINEAR_KEYS, OUR_LIGHT_KEYS, *DECODE_KEYS.values())
"""All names of heads that are known."""
_BN_SETTINGS = frozenset(
    {
        *("type", "in_channels", "in_index", "input_transform", "channels", "dropout_ratio", "num_classes", "norm_cfg"),
        *("align_corners", "resize_factors"),
    }
)
_UNUSED = ("**.num_batches_tracked", "auxiliary_head.**")
"""Counters, and heads that only a training has."""

HeadFormat = Callable[[Sources, int, bool], FoundHead | None]
"""What `found_head` takes -> the head that the entries make; None: they are none of this format's."""


def found_head(entries: Sources, *, width: int, separate: bool) -> FoundHead | None:
    """The head that `entries` make on tokens of `width`; None where they make none.

    Args:
        entries: beside a backbone.
        width: of the backbone.
        separate: they come from a file of their own, given as a head. Beside a backbone in one file a linear layer may
            be a classifier of whole images.

    Raises:
        CheckpointMismatch: a head of another width, or one that is not supported.
        ConfigError: what a configuration says of it is unknown, unsupported or contradicts the entries.
    """
    return next((head for read in FORMATS if (head := read(entries, width, separate)) is not None), None)


def _of_mmseg(entries: Sources, width: int, separate: bool) -> FoundHead | None:
    del separate
    if not entries.facts.has("decode_head.**"):
        return None
    decode = entries.part("decode_head", "decode_head.")
    if decode.facts.has("bn.running_mean"):
        return _of_dinov2(decode, width)
    head = mmseg_head(decode, width=width)
    unused = ("decode_head.conv_seg.*",) if isinstance(head, MaskHead) else ()
    _check_width(decode, _read_width(decode.facts), width)
    return FoundHead(head, decode[CLASSES], KeyMap(DECODE_KEYS[head.kind], unused=(*_UNUSED, *unused)))


def _read_width(facts: KeyFacts) -> int | None:
    """What an mmsegmentation head takes: the width of its first layer."""
    first = ("convs.0.conv.weight", 1), ("up_convs.0.0.conv.weight", 1), ("dec_proj.weight", 1)
    return facts.size(*first) or facts.size(("conv_seg.weight", 1))


def _of_dinov2(decode: Sources, width: int) -> FoundHead:
    """Batch norm, then a 1x1 convolution, on the last layer or (`_ms`) the last few; its project pads on all sides."""
    decode.only(_BN_SETTINGS).must_all_be({"type": ("BNHead",), "align_corners": (False,)})
    found = decode.facts.size(("conv_seg.weight", 1)) or width
    layers = max(1, found // width)
    _check_width(decode, found, layers * width)
    # All layers have one grid: it alone would make them differ in size before they are joined.
    decode.must_be("resize_factors", None, *([one] * layers for one in (1, 1.0)))
    key_map = KeyMap(BN_HEAD_KEYS, unused=_UNUSED, norms_before=(_CLASSIFIER,))
    return FoundHead(LinearHead(), decode[CLASSES], key_map, padding="centre", layers=layers)


def _of_dinov3(entries: Sources, width: int, separate: bool) -> FoundHead | None:
    """Batch norm, then a 1x1 convolution; its project slides."""
    del separate
    facts = entries.facts.within("segmentation_model.1.")
    if not facts.has("batchnorm_layer.running_mean", "conv.weight"):
        return None
    _check_width(entries, facts.size(("conv.weight", 1), ("batchnorm_layer.*", 0)), width)
    return FoundHead(
        LinearHead(),
        facts.size(("conv.*", 0)) or 1,
        KeyMap(DINOV3_HEAD_KEYS, unused=_UNUSED, norms_before=(_CLASSIFIER,)),
        window=DINOV3_WINDOW,
        stride=DINOV3_STRIDE,
    )


def _of_ours(entries: Sources, width: int, separate: bool) -> FoundHead | None:
    del separate
    facts = entries.facts
    if facts.has("head.head.classifier.weight"):
        _check_width(entries, facts.size(("head.head.classifier.weight", 1)), width)
        classes = facts.size(("head.head.classifier.*", 0)) or 1
        return FoundHead(LinearHead(), classes, KeyMap(OUR_LINEAR_KEYS))
    if facts.has("head.expand.weight", "head.conv.weight"):
        _check_width(entries, facts.size(("head.expand.weight", 1), ("head.norm.*", 0)), width)
        channels = facts.size(("head.conv.*", 0), ("head.classifier.weight", 1)) or 1
        classes = facts.size(("head.classifier.*", 0)) or 1
        return FoundHead(LightHead(channels=channels), classes, KeyMap(OUR_LIGHT_KEYS))
    return None


def _of_one_layer(entries: Sources, width: int, separate: bool) -> FoundHead | None:
    """One linear layer or 1x1 convolution, and perhaps a batch norm, whatever they are called."""
    shapes = entries.facts.shapes
    layers = [name for name, shape in shapes.items() if re.fullmatch(r"(.*\.)?weight", name) and len(shape) in (2, 4)]
    # A convolution is no classifier of whole images.
    if len(layers) != 1 or not (separate or len(shapes[layers[0]]) == 4):
        return None
    (layer,) = layers
    shape = shapes[layer]
    if len(shape) == 4 and shape[2:] != (1, 1):
        raise CheckpointMismatch(
            f"{entries.checkpoint}: the head {layer} is a convolution of {shape[2]}x{shape[3]}; a linear layer or 1x1 "
            "is read, alone or with a batch norm before it"
        )
    _check_width(entries, shape[1] if len(shape) > 1 else None, width)
    prefix = layer.removesuffix("weight")
    norm = next((name.removesuffix("running_mean") for name in shapes if name.endswith("running_mean")), None)
    inner = _CLASSIFIER if norm is None else f"{_CLASSIFIER}.projection"
    weight = f"{inner}.weight"
    table = {
        _literal(layer): convolution(weight) if len(shape) == 4 else weight,
        _literal(f"{prefix}bias"): f"{inner}.bias",
    }
    if norm is not None:
        table[_literal(norm) + "{entry}"] = f"{_CLASSIFIER}.prior.{{entry}}"
    key_map = KeyMap(
        table,
        unused=_UNUSED,
        # Of a layer that was made without one there is no entry.
        zero_if_absent=(f"{prefix}bias",),
        norms_before=() if norm is None else (_CLASSIFIER,),
    )
    return FoundHead(LinearHead(), shape[0], key_map)


def _literal(name: str) -> str:
    """A name from a file as a key of a table, where braces stand for fields."""
    return name.replace("{", "{{").replace("}", "}}")


def _check_width(head: Sources, found: int | None, width: int) -> None:
    if found is not None and found != width:
        several = f", {found // width} times as wide: it reads several layers" if found % width == 0 else ""
        raise CheckpointMismatch(
            f"{head.checkpoint}: the head reads tokens of width {found}, the backbone has {width}{several}",
            "Give the head that was trained on this backbone, or the backbone of this head",
        )


FORMATS: tuple[HeadFormat, ...] = (_of_mmseg, _of_dinov3, _of_ours, _of_one_layer)
"""In this order; the first that takes the entries reads them."""
