"""Segmenter's constructor arguments and keys -> Architecture. Source: rstrudel/segmenter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dovit_deploy.checkpoints.keys import segmenter_rules
from dovit_deploy.checkpoints.settings import (
    IMAGE_SETTINGS,
    Architecture,
    KeyFacts,
    Ledger,
    Reader,
    Section,
    training_size,
)
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.parts import LinearHead, MaskHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec

NETWORK_SETTINGS = frozenset(
    {
        *("image_size", "patch_size", "d_model", "n_heads", "n_layers", "n_cls", "distilled", "decoder"),
        *("backbone", "normalization", "d_ff", "channels"),
    }
)
"""Constructor arguments, `net_kwargs` of variant.yml."""
FILE_SETTINGS = frozenset({"dataset_kwargs", "inference_kwargs"})
"""Other parts of variant.yml that matter."""
_DECODER = frozenset({"name", "n_layers", "n_heads", "n_cls", "d_model", "d_encoder", "d_ff", "patch_size"})
_NORM_EPS = 1e-5
"""torch's default, which the source keeps everywhere."""
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
"""Attention heads of the published variants (tiny, small, base, large) by width."""
_BLOCK = r"encoder\.blocks\.\d+"


def segmenter_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of Segmenter.

    Args:
        settings: constructor arguments; empty if there are none.
        facts: of the checkpoint.
        source: the checkpoint's name, for messages.
        thresholds: not read: it has no gates.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: nothing tells what the decoder is.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    section.must_be("channels", 3)
    width = ledger.settle(
        "d_model", section.integer("d_model"), facts.size((rf"{_BLOCK}\.norm[12]\.(weight|bias)", 0)), stand_in=1
    )
    patch = ledger.settle(
        "patch_size",
        section.integer("patch_size"),
        facts.size((r"encoder\.patch_embed\.proj\.weight", 2)),
        stand_in=16,
    )
    extra = 2 if _distilled(section, facts) else 1
    size = training_size(
        section, "image_size", facts, ledger, positions=r"encoder\.pos_embed", extra=extra, patch=patch
    )
    heads = section.integer("n_heads")
    heads = ledger.settle("n_heads", heads if heads is not None else _HEADS.get(width), None, stand_in=1)
    hidden = facts.size((rf"{_BLOCK}\.mlp\.fc1\.(weight|bias)", 0))
    depth = ledger.settle("n_layers", section.integer("n_layers"), facts.count(r"encoder\.blocks"), stand_in=1)
    classes = _classes(section, facts, ledger)
    head = _head(_decoder(section), facts, ledger, width=width)
    hidden = ledger.settle("d_ff", section.integer("d_ff"), hidden, stand_in=4 * width)
    ledger.finish()
    spec = VisionTransformerSpec(
        family="segmenter",
        size=size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        extra_tokens=extra,
        norm_eps=_NORM_EPS,
        final_norm=True,
        classes=classes,
        gates=(),
        aggregate_rate=0.1,
        position_mode="bilinear",
        head=head,
    )
    stride, window = _slide(section)
    return Architecture(
        spec=spec,
        rules=segmenter_rules(spec),
        unused=re.compile(r"encoder\.head(_dist)?\.(weight|bias)|.*\.num_batches_tracked"),
        stride=stride,
        slide_size=window,
        logits_cover="padded",
    )


def _distilled(section: Section, facts: KeyFacts) -> bool:
    stated, seen = section.flag("distilled"), facts.has(r"encoder\.dist_token")
    if stated is False and seen:
        raise ConfigError("'distilled' is false in the configuration, and the checkpoint has a distillation token")
    return seen if stated is None else stated


def _decoder(section: Section) -> Section:
    """The decoder's arguments; a bare name stands for them."""
    value = section.values.get("decoder")
    if isinstance(value, str):
        return Section("decoder", {"name": value}, section.source)
    decoder = section.section("decoder") or Section("decoder", {}, section.source)
    return decoder.only(_DECODER)


def _classes(section: Section, facts: KeyFacts, ledger: Ledger) -> int:
    seen = facts.size(
        (r"decoder\.mask_norm\.(weight|bias)", 0), (r"decoder\.cls_emb", 1), (r"decoder\.head\.(weight|bias)", 0)
    )
    classes = ledger.settle("n_cls", section.integer("n_cls"), seen, stand_in=1)
    return ledger.settle("decoder.n_cls", _decoder(section).integer("n_cls"), classes, stand_in=classes)


def _head(decoder: Section, facts: KeyFacts, ledger: Ledger, *, width: int) -> LinearHead | MaskHead:
    decoder.must_be("name", "linear", "mask_transformer")
    seen = None
    if facts.has(r"decoder\.(cls_emb|mask_norm\..*|blocks\..*)"):
        seen = "mask_transformer"
    elif facts.has(r"decoder\.head\..*"):
        seen = "linear"
    if seen is None and decoder.text("name") is None:
        raise CheckpointMismatch(f"{ledger.source} has no entries of a decoder (decoder.*)")
    name = ledger.settle("decoder.name", decoder.text("name"), seen, stand_in="linear")
    for key in ("d_model", "d_encoder"):
        ledger.settle(f"decoder.{key}", decoder.integer(key), width, stand_in=width)
    decoder.must_be("d_ff", 4 * width)
    if name == "linear":
        return LinearHead()
    heads = decoder.integer("n_heads")
    layers = ledger.settle("decoder.n_layers", decoder.integer("n_layers"), facts.count(r"decoder\.blocks"), stand_in=2)
    # The source derives the decoder's heads from the width, whatever the encoder has.
    return MaskHead(
        width=width, layers=layers, heads=max(1, width // 64) if heads is None else heads, norm_eps=_NORM_EPS
    )


def _slide(section: Section) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Stride and window of sliding inference from `inference_kwargs`, or None and None."""
    inference = section.section("inference_kwargs")
    if inference is None:
        return None, None
    window, stride = inference.pair("window_size"), inference.pair("window_stride")
    return (stride, window) if window is not None and stride is not None else (None, None)


READER = Reader(
    recognises=lambda facts: facts.has(r"encoder\.blocks\..*"),
    settings=NETWORK_SETTINGS | FILE_SETTINGS | IMAGE_SETTINGS,
    architecture=segmenter_architecture,
)
