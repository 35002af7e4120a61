"""A backbone and a decode head in one file, or in two that were joined -> a whole network.

Whose backbone it is, its project's reader says (`dinov2`, `timm`, ...); which head stands beside it, `decode_heads`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dovit_deploy.checkpoints.keys import KeyFacts, listed
from dovit_deploy.checkpoints.reader import Architecture, BackboneReader, Reader
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.errors import CheckpointMismatch, HeadMissing
from dovit_deploy.families.vit.decode_heads import HEAD_SETTINGS, HEAD_TABLES, found_head
from dovit_deploy.families.vit.spec import VisionTransformerSpec

_DEEPEST = 3
"""Parts of a name that may stand before a backbone's own: `model.vision.encoder.`."""


def whole_network(reader: BackboneReader) -> Reader:
    """Reads the backbones of `reader` where a head is beside them, and says of those alone how they get one."""

    return Reader(
        title=reader.title,
        recognises=lambda facts: prefix_of(reader, facts) is not None,
        settings=reader.settings | HEAD_SETTINGS,
        architecture=lambda sources: joined_architecture(reader, sources, separate=False),
        tables=(*reader.tables, *HEAD_TABLES),
        needed=reader.needed,
        backbone=reader,
        prepared=reader.prepared,
    )


def prefix_of(reader: BackboneReader, facts: KeyFacts) -> str | None:
    """What stands before the names of the backbone that `reader` recognises; None where it recognises none."""
    prefixes = {""}
    for name in facts.shapes:
        parts = name.split(".")[:-1]
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, 1 + min(_DEEPEST, len(parts)))}
    by_length = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    return next((prefix for prefix in by_length if reader.recognises(facts.within(prefix))), None)


def beside_backbone(reader: BackboneReader, facts: KeyFacts) -> KeyFacts:
    """The entries that are none of the backbone's: those of a head, if there is one."""
    prefix = prefix_of(reader, facts)
    first_parts = {name.split(".")[0] for table in reader.tables for name in table} | reader.unused
    if prefix:
        return KeyFacts({name: shape for name, shape in facts.shapes.items() if not name.startswith(prefix)})
    return KeyFacts({name: shape for name, shape in facts.shapes.items() if name.split(".")[0] not in first_parts})


def joined_architecture(reader: BackboneReader, sources: Sources, *, separate: bool) -> Architecture:
    """The network of a backbone and of the head beside it.

    Args:
        reader: recognises the backbone.
        sources: of all entries.
        separate: the head comes from a file of its own.

    Raises:
        HeadMissing: there is no head.
        CheckpointMismatch: a head of another width, or one that is not supported.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    prefix = prefix_of(reader, sources.facts) or ""
    backbone = reader.architecture(replace(sources, facts=sources.facts.within(prefix)))
    values: dict[str, Any] = dict(backbone.values)
    beside = replace(sources, facts=beside_backbone(reader, sources.facts))
    head = found_head(beside, width=values["width"], separate=separate)
    if head is None and separate:
        raise CheckpointMismatch(
            f"{sources.checkpoint}: the head is none that is read; its entries: {listed(beside.facts.shapes)}",
            "Read are one linear layer or 1x1 convolution, alone or with a batch norm before it, decode_head.* of "
            "mmsegmentation, and linear and light heads of ours",
        )
    if head is None:
        raise HeadMissing(
            f"{sources.checkpoint} is a backbone without a decode head: {reader.title}, width {values['width']}, "
            f"{values['depth']} layers{_others(beside.facts)}"
        )
    if head.padding is not None:
        values["padding"] = head.padding
    if head.layers > values["depth"]:
        raise CheckpointMismatch(
            f"{sources.checkpoint}: the head reads {head.layers} layers, the backbone has {values['depth']}"
        )
    values["taps"] = _taps(sources, head.layers, depth=values["depth"])
    spec = VisionTransformerSpec.model_validate({**values, "classes": head.classes, "head": head.head})
    return Architecture(
        spec,
        backbone.key_map.behind(prefix).joined(head.key_map),
        stride=head.stride,
        slide_size=head.window,
        license=backbone.license,
        assumed=backbone.assumed,
    )


def _taps(sources: Sources, layers: int, *, depth: int) -> tuple[int, ...]:
    """The layers before the last that a head reads: those stated as mmsegmentation does, else the last few."""
    if layers == 1:
        return ()
    backbone = sources.part("backbone", "")
    read = backbone.integers("out_indices") or tuple(range(depth - layers, depth))
    if len(read) != layers or list(read) != sorted(set(read)) or read[0] < 0 or read[-1] != depth - 1:
        raise backbone.wrong("out_indices", f"the head reads {layers} layers: from 0, rising, and at last {depth - 1}")
    return tuple(index + 1 for index in read[:-1])


def _others(beside: KeyFacts) -> str:
    return f"; beside it: {listed(beside.shapes)}" if beside.shapes else ""
