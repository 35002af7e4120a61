"""Heads of mmsegmentation, decode and auxiliary: which are supported, and what their keys are called.

Source: open-mmlab/mmsegmentation 0.30 and 1.2 (FCNHead, SETRUPHead, SegmenterMaskTransformerHead).
"""

from __future__ import annotations

from typing import Literal

from dovit_deploy.checkpoints.keys import KeyTable, batched, convolution, packed
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size
from dovit_deploy.errors import NetworkUnknown
from dovit_deploy.families.folding import EPS
from dovit_deploy.families.parts import FcnHead, LinearHead, MaskHead, SetrHead

# Key names. FCNHead without any convolution is linear; its 1x1 convolutions are our linear layers.

GATE_KEYS: KeyTable = {
    "backbone.auxiliary_head.{gate}.norm.{entry}": "gates.{gate}.head.norm.{entry}",
    "backbone.auxiliary_head.{gate}.up_convs.{conv}.0.conv.weight": "gates.{gate}.head.up.{conv}.projection.weight",
    "backbone.auxiliary_head.{gate}.up_convs.{conv}.0.bn.{entry}": "gates.{gate}.head.up.{conv}.norm.{entry}",
    "backbone.auxiliary_head.{gate}.convs.0.conv.weight": convolution("gates.{gate}.head.hidden.projection.weight"),
    "backbone.auxiliary_head.{gate}.convs.0.bn.{entry}": "gates.{gate}.head.hidden.norm.{entry}",
    "backbone.auxiliary_head.{gate}.conv_seg.weight": convolution("gates.{gate}.head.classifier.weight"),
    "backbone.auxiliary_head.{gate}.conv_seg.bias": "gates.{gate}.head.classifier.bias",
}
TOKEN_HEAD_KEYS: KeyTable = {
    "decode_head.convs.0.conv.weight": convolution("head.head.hidden.projection.weight"),
    "decode_head.convs.0.bn.{entry}": "head.head.hidden.norm.{entry}",
    "decode_head.conv_seg.weight": convolution("head.head.classifier.weight"),
    "decode_head.conv_seg.bias": "head.head.classifier.bias",
}
SETR_HEAD_KEYS: KeyTable = {
    "decode_head.norm.{entry}": "head.norm.{entry}",
    "decode_head.up_convs.{conv}.0.conv.weight": "head.up.{conv}.projection.weight",
    "decode_head.up_convs.{conv}.0.bn.{entry}": "head.up.{conv}.norm.{entry}",
    "decode_head.conv_seg.{entry}": "head.classifier.{entry}",
}
MASK_HEAD_KEYS: KeyTable = {
    "decode_head.cls_emb": batched("head.class_tokens"),
    "decode_head.dec_proj.{entry}": "head.embed.{entry}",
    "decode_head.patch_proj.weight": "head.patch_projection.weight",
    "decode_head.classes_proj.weight": "head.class_projection.weight",
    "decode_head.decoder_norm.{entry}": "head.norm.{entry}",
    "decode_head.mask_norm.{entry}": "head.mask_norm.{entry}",
    "decode_head.layers.{layer}.ln1.{entry}": "head.blocks.{layer}.norm1.{entry}",
    "decode_head.layers.{layer}.attn.attn.in_proj_{entry}": packed("head.blocks.{layer}.attention.{part}.{entry}"),
    "decode_head.layers.{layer}.attn.attn.out_proj.{entry}": "head.blocks.{layer}.attention.output.{entry}",
    "decode_head.layers.{layer}.ln2.{entry}": "head.blocks.{layer}.norm2.{entry}",
    "decode_head.layers.{layer}.ffn.layers.0.0.{entry}": "head.blocks.{layer}.mlp.expand.{entry}",
    "decode_head.layers.{layer}.ffn.layers.1.{entry}": "head.blocks.{layer}.mlp.contract.{entry}",
}
DECODE_KEYS = {"linear": TOKEN_HEAD_KEYS, "fcn": TOKEN_HEAD_KEYS, "setr": SETR_HEAD_KEYS, "mask": MASK_HEAD_KEYS}
"""By the kind of our head."""

# What a configuration may say.

OfficialHead = Literal["FCNHead", "SETRUPHead", "SegmenterMaskTransformerHead"]
SHOWN_BY: dict[OfficialHead, tuple[str, ...]] = {
    "SegmenterMaskTransformerHead": ("cls_emb", "mask_norm.**", "dec_proj.**", "patch_proj.**", "layers.**"),
    "SETRUPHead": ("up_convs.**",),
    "FCNHead": ("convs.**", "conv_seg.**"),
}
"""Which entries show that a head is of a class; the first that fits counts."""
_EVERY = frozenset(
    {
        *("type", "in_channels", "channels", "num_classes", "out_channels", "in_index", "input_transform"),
        *("norm_cfg", "act_cfg", "conv_cfg", "align_corners", "threshold"),
    }
)
_KNOWN: dict[OfficialHead, frozenset[str]] = {
    "FCNHead": _EVERY | {"num_convs", "kernel_size", "concat_input", "dilation"},
    "SETRUPHead": _EVERY | {"num_convs", "up_scale", "kernel_size", "norm_layer"},
    "SegmenterMaskTransformerHead": _EVERY
    | {"num_layers", "num_heads", "embed_dims", "mlp_ratio", "num_fcs", "qkv_bias"},
}
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "input_transform": (None, "resize_concat"),
    "align_corners": (False,),
    "threshold": (None,),
    "conv_cfg": (None,),
}


def _stated_class(section: Section, key: str) -> OfficialHead | None:
    stated = section.text(key)
    if stated is not None and stated not in SHOWN_BY:
        raise section.wrong(key, f"supported heads: {', '.join(SHOWN_BY)}")
    return next((kind for kind in SHOWN_BY if kind == stated), None)


def _shown_class(head: Sources) -> OfficialHead | None:
    return next((kind for kind, patterns in SHOWN_BY.items() if head.facts.has(*patterns)), None)


def _no_class(head: Sources) -> OfficialHead | None:
    raise NetworkUnknown(
        f"{head.checkpoint} has no entries of '{head.path}' that tell what head it is; give the whole network"
    )


def _shown_classes(head: Sources) -> int | None:
    # mmsegmentation 0.x stores an unused `conv_seg` beside the mask head, so that one is asked last.
    return head.facts.size(("mask_norm.*", 0), ("cls_emb", 1)) or head.facts.size(("conv_seg.*", 0))


def _shown_convs(head: Sources) -> int | None:
    return head.facts.count("convs") or (0 if head.facts.has("conv_seg.*") else None)


# Values of every head, of FCNHead, of SETRUPHead, of the mask head.

CLASS = SpecValue[OfficialHead]("type", _stated_class, "FCNHead", shown=_shown_class, default=_no_class)
CLASSES = SpecValue("num_classes", Section.positive, 1, shown=_shown_classes)

FCN_CONVS = SpecValue("num_convs", Section.integer, 1, shown=_shown_convs)
FCN_KERNEL = SpecValue("kernel_size", Section.positive, 1, shown=size(("convs.*.conv.weight", 2)))
FCN_JOINED = SpecValue("concat_input", Section.flag, False, shown=lambda head: head.facts.has("conv_cat.**"))
FCN_CHANNELS = SpecValue(
    "channels",
    Section.positive,
    1,
    shown=size(("convs.*.conv.weight", 0), ("convs.*.bn.*", 0), ("conv_seg.weight", 1)),
)

SETR_CONVS = SpecValue("num_convs", Section.positive, 1, shown=count("up_convs"))
SETR_KERNEL = SpecValue("kernel_size", Section.positive, 1, shown=size(("up_convs.*.0.conv.weight", 2)))
SETR_UP_SCALE = SpecValue("up_scale", Section.positive, 1)
SETR_CHANNELS = SpecValue(
    "channels",
    Section.positive,
    1,
    shown=size(("up_convs.*.0.conv.weight", 0), ("up_convs.*.0.bn.*", 0), ("conv_seg.weight", 1)),
)

MASK_WIDTH = SpecValue(
    "embed_dims", Section.positive, 1, shown=size(("cls_emb", 2), ("decoder_norm.*", 0), ("layers.*.ln*.weight", 0))
)
MASK_LAYERS = SpecValue("num_layers", Section.positive, 1, shown=count("layers"))
MASK_HEADS = SpecValue("num_heads", Section.positive, 1)


def reads_several_layers(head: Section) -> bool:
    """`in_index` lists outputs of the backbone, whose channels are joined: of one size, so that none is resized."""
    return head.text("input_transform") == "resize_concat"


def _input_width(head: Section) -> int | None:
    """The stated channels of a token as the head sees it, of all layers together."""
    if not reads_several_layers(head):
        return head.integer("in_channels")
    listed = head.integers("in_channels")
    return None if listed is None else sum(listed)


def mmseg_head(head: Sources, *, width: int) -> FcnHead | LinearHead | SetrHead | MaskHead:
    """The head that `head` describes, on tokens of `width`.

    Raises:
        ConfigError: a stated value is unknown, unsupported or contradicts the keys.
        CheckpointMismatch: nothing shows what head it is.
    """
    kind = head[CLASS]
    head.only(_KNOWN[kind])
    head.must_all_be(_SUPPORTED)
    head.agreed("in_channels", _input_width(head), width)
    head.must_be("out_channels", None, head[CLASSES])
    if kind == "SegmenterMaskTransformerHead":
        return _mask_head(head)
    _refuse_other_norms(head)
    refuse_other_activation(head, "ReLU")
    return _setr_head(head) if kind == "SETRUPHead" else _fcn_head(head)


def _fcn_head(head: Sources) -> FcnHead | LinearHead:
    convs = head[FCN_CONVS]
    kernel = head[FCN_KERNEL] if convs else 1
    # Only heads that look at one token at a time: anything wider would mix stopped tokens with running ones.
    effective = Section(head.path, {"num_convs": convs, "kernel_size": kernel, "concat_input": head[FCN_JOINED]})
    effective.must_all_be({"num_convs": (0, 1), "kernel_size": (1,), "concat_input": (False,)})
    head.must_be("dilation", 1)
    return FcnHead(channels=head[FCN_CHANNELS]) if convs else LinearHead()


def _setr_head(head: Sources) -> SetrHead:
    Section(head.path, {"kernel_size": head[SETR_KERNEL]}).must_be("kernel_size", 1, 3)
    return SetrHead.model_validate(
        {
            "channels": head[SETR_CHANNELS],
            "convs": head[SETR_CONVS],
            "up_scale": head[SETR_UP_SCALE],
            "kernel": head[SETR_KERNEL],
            "norm_eps": layer_norm_eps(head, "norm_layer", 1e-6),
        }
    )


def _mask_head(head: Sources) -> MaskHead:
    head.must_all_be({"mlp_ratio": (4, 4.0), "num_fcs": (2,), "qkv_bias": (True,)})
    refuse_other_activation(head, "GELU")
    return MaskHead.model_validate(
        {
            "width": head[MASK_WIDTH],
            "layers": head[MASK_LAYERS],
            "heads": head[MASK_HEADS],
            "norm_eps": layer_norm_eps(head, "norm_cfg", 1e-5),
        }
    )


def layer_norm_eps(section: Section, key: str, default: float | None) -> float | None:
    """Epsilon of a LayerNorm configured under `key`: a bare dict(type='LN') means torch's 1e-5."""
    config = section.section(key)
    if config is None:
        return default
    config.only(frozenset({"type", "eps"})).must_be("type", "LN")
    eps = config.number("eps")
    return 1e-5 if eps is None else eps


def _refuse_other_norms(section: Section) -> None:
    norm = section.section("norm_cfg")
    if norm is not None:
        norm.only(frozenset({"type", "eps", "affine", "track_running_stats"}))
        norm.must_all_be({"type": ("BN", "SyncBN", "BN2d"), "eps": (EPS,)})
        norm.must_all_be({"affine": (True,), "track_running_stats": (True,)})


def refuse_other_activation(section: Section, name: str) -> None:
    """Raise ConfigError unless the activation is `name`, or not stated."""
    activation = section.section("act_cfg")
    if activation is not None:
        activation.only(frozenset({"type", "inplace"})).must_be("type", name)
