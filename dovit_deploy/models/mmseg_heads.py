"""Heads of mmsegmentation from their configuration and keys: what is supported, and what must be stated."""

from __future__ import annotations

from typing import Literal

from dovit_deploy.bundle.spec import FcnHead, LinearHead, MaskHead, SetrHead
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.batch_norm import EPS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.section import Ledger, Section

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
