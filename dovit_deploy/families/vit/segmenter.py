"""Segmenter's constructor arguments and keys -> Architecture. Source: rstrudel/segmenter."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap, KeyTable, batched, extra_token, packed, transposed
from dovit_deploy.checkpoints.reader import Architecture, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size, training_size
from dovit_deploy.errors import NetworkUnknown
from dovit_deploy.families.parts import LinearHead, MaskHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec

SEGMENTER_KEYS: KeyTable = {
    "encoder.cls_token": extra_token(0),
    "encoder.dist_token": extra_token(1),
    "encoder.pos_embed": batched("positions"),
    "encoder.patch_embed.proj.{entry}": "stem.projection.{entry}",
    "encoder.blocks.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "encoder.blocks.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "encoder.blocks.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "encoder.blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "encoder.blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "encoder.blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "encoder.norm.{entry}": "norm.{entry}",
    # The linear decoder.
    "decoder.head.{entry}": "head.head.classifier.{entry}",
    # The mask transformer.
    "decoder.cls_emb": batched("head.class_tokens"),
    "decoder.proj_dec.{entry}": "head.embed.{entry}",
    "decoder.proj_patch": transposed("head.patch_projection.weight"),
    "decoder.proj_classes": transposed("head.class_projection.weight"),
    "decoder.decoder_norm.{entry}": "head.norm.{entry}",
    "decoder.mask_norm.{entry}": "head.mask_norm.{entry}",
    "decoder.blocks.{layer}.norm1.{entry}": "head.blocks.{layer}.norm1.{entry}",
    "decoder.blocks.{layer}.attn.qkv.{entry}": packed("head.blocks.{layer}.attention.{part}.{entry}"),
    "decoder.blocks.{layer}.attn.proj.{entry}": "head.blocks.{layer}.attention.output.{entry}",
    "decoder.blocks.{layer}.norm2.{entry}": "head.blocks.{layer}.norm2.{entry}",
    "decoder.blocks.{layer}.mlp.fc1.{entry}": "head.blocks.{layer}.mlp.expand.{entry}",
    "decoder.blocks.{layer}.mlp.fc2.{entry}": "head.blocks.{layer}.mlp.contract.{entry}",
}
KEY_MAP = KeyMap(SEGMENTER_KEYS, unused=("encoder.head.*", "encoder.head_dist.*", "**.num_batches_tracked"))

NETWORK_SETTINGS = frozenset(
    {
        *("image_size", "patch_size", "d_model", "n_heads", "n_layers", "n_cls", "distilled", "decoder"),
        *("backbone", "normalization", "d_ff", "channels"),
    }
)
"""Constructor arguments, `net_kwargs` of variant.yml."""
FILE_SETTINGS = frozenset({"dataset_kwargs", "inference_kwargs"})
"""Other parts of variant.yml that matter."""
_DECODER_SETTINGS = frozenset({"name", "n_layers", "n_heads", "n_cls", "d_model", "d_encoder", "d_ff", "patch_size"})
_NORM_EPS = 1e-5
"""torch's default, which the source keeps everywhere."""
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
"""Attention heads of the published variants (tiny, small, base, large) by width."""

Decoder = Literal["linear", "mask_transformer"]


def _extra(network: Sources) -> int:
    return 2 if network.present("distilled", "encoder.dist_token") else 1


def _stated_decoder(decoder: Section, key: str) -> Decoder | None:
    decoder.must_be(key, "linear", "mask_transformer")
    name = decoder.text(key)
    return None if name is None else "linear" if name == "linear" else "mask_transformer"


def _shown_decoder(decoder: Sources) -> Decoder | None:
    if decoder.facts.has("cls_emb", "mask_norm.**", "blocks.**"):
        return "mask_transformer"
    return "linear" if decoder.facts.has("head.**") else None


def _no_decoder(decoder: Sources) -> Decoder | None:
    raise NetworkUnknown(f"{decoder.checkpoint} has no entries of a decoder (decoder.*); give the whole network")


WIDTH = SpecValue("d_model", Section.positive, 1, shown=size(("encoder.blocks.*.norm*.*", 0)))
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("encoder.patch_embed.proj.weight", 2)))
SIZE = training_size("image_size", positions="encoder.pos_embed", extra=_extra, patch=lambda network: network[PATCH])
# In no key: only the published sizes can do without a stated number.
HEADS = SpecValue("n_heads", Section.positive, 1, default=lambda network: _HEADS.get(network[WIDTH]))
HIDDEN = SpecValue("d_ff", Section.positive, 1, shown=size(("encoder.blocks.*.mlp.fc1.*", 0)))
DEPTH = SpecValue("n_layers", Section.positive, 1, shown=count("encoder.blocks"))
CLASSES = SpecValue(
    "n_cls",
    Section.positive,
    1,
    shown=size(("decoder.mask_norm.*", 0), ("decoder.cls_emb", 1), ("decoder.head.*", 0)),
)
DECODER = SpecValue[Decoder]("name", _stated_decoder, "linear", shown=_shown_decoder, default=_no_decoder)
DECODER_LAYERS = SpecValue("n_layers", Section.positive, 2, shown=count("blocks"))


def segmenter_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of Segmenter; `network` is its constructor's arguments.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: nothing shows what the decoder is.
    """
    network.must_be("channels", 3)
    decoder = _decoder(network)
    decoder.agreed("n_cls", decoder.integer("n_cls"), network[CLASSES])
    values = {
        "family": "segmenter",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": _extra(network),
        "norm_eps": _NORM_EPS,
        "classes": network[CLASSES],
        "position_mode": "bilinear",
        "head": _head(decoder, width=network[WIDTH]),
    }
    network.finish()
    stride, window = _slide(network)
    return Architecture(
        spec=VisionTransformerSpec.model_validate(values),
        key_map=KEY_MAP,
        stride=stride,
        slide_size=window,
        logits_cover="padded",
    )


def _decoder(network: Sources) -> Sources:
    """The decoder's arguments; a bare name stands for them."""
    stated = network.values.get("decoder")
    if isinstance(stated, str):
        network = replace(network, values={"decoder": {"name": stated}})
    decoder = network.part("decoder", "decoder.")
    decoder.only(_DECODER_SETTINGS)
    return decoder


def _head(decoder: Sources, *, width: int) -> LinearHead | MaskHead:
    name = decoder[DECODER]
    for key in ("d_model", "d_encoder"):
        decoder.agreed(key, decoder.integer(key), width)
    # Accepted where they say what the source derives anyway.
    decoder.must_be("d_ff", 4 * width)
    if name == "linear":
        return LinearHead()
    heads = decoder.integer("n_heads")
    # The source derives the decoder's heads from the width, whatever the encoder has.
    return MaskHead(
        width=width,
        layers=decoder[DECODER_LAYERS],
        heads=max(1, width // 64) if heads is None else heads,
        norm_eps=_NORM_EPS,
    )


def _slide(network: Section) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Stride and window of sliding inference from `inference_kwargs`, or None and None."""
    inference = network.section("inference_kwargs")
    if inference is None:
        return None, None
    window, stride = inference.pair("window_size"), inference.pair("window_stride")
    return (stride, window) if window is not None and stride is not None else (None, None)


def _is_segmenter(facts: KeyFacts) -> bool:
    """An encoder without LayerScale, which DINOv2 has, with Segmenter's decoder or nothing beside it."""
    alone = all(name.startswith("encoder.") for name in facts.shapes)
    scaled = facts.has("encoder.blocks.*.ls*.gamma")
    return facts.has("encoder.blocks.**") and not scaled and (alone or facts.has("decoder.**"))


READER = Reader(
    title="Segmenter",
    recognises=_is_segmenter,
    settings=NETWORK_SETTINGS | FILE_SETTINGS | IMAGE_SETTINGS,
    architecture=segmenter_architecture,
    tables=(SEGMENTER_KEYS,),
    needed=("encoder.blocks.*.norm1.*", "encoder.patch_embed.proj.*", "encoder.pos_embed", "decoder.**"),
)
