"""Whose is a state dict? Every project whose checkpoints are read, and those that are refused by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

from dovit_deploy.checkpoints.keys import KeyFacts, listed
from dovit_deploy.checkpoints.nearest import no_family
from dovit_deploy.checkpoints.reader import BackboneReader, Reader
from dovit_deploy.errors import NetworkUnknown
from dovit_deploy.families.vit.backbones import prefix_of

READERS = (
    "dovit_deploy.families.vit.segmenter:READER",
    "dovit_deploy.families.stvit.reader:READER",
    "dovit_deploy.families.stvit.reader:STVIT_DEIT",
    "dovit_deploy.families.vit.mmseg:READER",
    "dovit_deploy.families.vit.eomt:READER",
    "dovit_deploy.families.vit.eomt_own:READER",
    "dovit_deploy.families.vit.dinov3:READER",
    "dovit_deploy.families.vit.dinov3_transformers:READER",
    "dovit_deploy.families.vit.dinov2:READER",
    "dovit_deploy.families.vit.dinov2_transformers:READER",
    "dovit_deploy.families.evovit.deit_reader:READER",
    "dovit_deploy.families.evovit.evo_levit_reader:READER",
    "dovit_deploy.families.vit.timm_vit:READER",
    "dovit_deploy.families.evovit.deit_reader:PLAIN_DEIT",
    "dovit_deploy.families.evovit.levit_reader:READER",
)
"""Whose checkpoints are read; the first that recognises the keys reads the file, so particular names come first."""
OTHERS: dict[str, tuple[str, ...]] = {
    "a SegFormer": (
        *("segformer.encoder.**", "backbone.layers.*.*.*.attn.sr.*", "backbone.block*.*.attn.sr.*"),
        "decode_head.linear_fuse.**",
    ),
    "a Mask2Former": (
        *("pixel_level_module.**", "transformer_module.**", "sem_seg_head.pixel_decoder.**"),
        "decode_head.pixel_decoder.**",
    ),
    "a Swin with UPerNet": (
        "backbone.stages.*.blocks.*.attn.w_msa.**",
        "backbone.encoder.layers.*.blocks.*.attention.self.relative_position_bias_table",
        "backbone.swin.encoder.layers.**",
    ),
    "an EoMT on DINOv3 (what is published of these is a difference to the gated weights)": (
        "query.weight layers.*.attention.o_proj.**",
    ),
    "an EoMT of LightlyTrain, whose weights do not say which layers its queries join": (
        "queries.weight upscale.*.conv1.*",
    ),
    "a ViTDet": (
        *("backbone.net.blocks.**", "backbone.simfp_*.**", "**.rel_pos_h"),
        "**embeddings.projection.weight **encoder.layer.*.attention.qkv.*",
    ),
}
"""Networks that are not read -> patterns of names that only they have; of several with blanks between, each must match.
They keep no grid of plain tokens that a gate could stop, or hold a difference to weights that are elsewhere."""


def readers() -> Iterator[Reader]:
    """Every reader, in order."""
    for name in READERS:
        reader: Reader = pkgutil.resolve_name(name)
        yield reader


def reader_of(facts: KeyFacts, source: str) -> Reader:
    """The reader of a file with these entries; `source` is its name, for messages.

    Raises:
        NetworkUnknown: no reader recognises them.
    """
    _refuse_others(facts, source)
    reader = next((reader for reader in readers() if reader.recognises(facts)), None)
    if reader is None:
        raise NetworkUnknown(*no_family(facts, readers(), source))
    return reader


def backbone_reader_of(facts: KeyFacts, source: str) -> BackboneReader:
    """The reader of the backbone in a file with these entries, whatever is beside it.

    Raises:
        NetworkUnknown: there is no backbone that is read alone.
    """
    _refuse_others(facts, source)
    found = [reader.backbone for reader in readers() if reader.backbone is not None]
    backbone = next((one for one in found if prefix_of(one, facts) is not None), None)
    if backbone is None:
        titles = ", ".join(one.title for one in found)
        what = f"of its entries: {listed(facts.shapes)}" if facts.shapes else "it is empty"
        raise NetworkUnknown(f"{source} holds no backbone that is read alone; {what}", f"Read alone: {titles}")
    return backbone


def _refuse_others(facts: KeyFacts, source: str) -> None:
    other = next((name for name, signs in OTHERS.items() if any(_shows(facts, sign) for sign in signs)), None)
    if other is not None:
        supported = ", ".join(reader.title for reader in readers())
        raise NetworkUnknown(f"{source} is {other}, which is not read", f"Supported: {supported}")


def _shows(facts: KeyFacts, sign: str) -> bool:
    """Each of the patterns in `sign`, with blanks between, matches some name."""
    return all(facts.has(pattern) for pattern in sign.split())
