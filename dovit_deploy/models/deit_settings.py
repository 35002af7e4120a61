"""What the constructors of DeiT and of Evo-ViT on DeiT have in common: settings and keys -> a dense EvoDeitSpec."""

from __future__ import annotations

import re

from dovit_deploy.bundle.evovit_deit_spec import ClassTokenHead, EvoDeitSpec
from dovit_deploy.models.architecture import training_size
from dovit_deploy.models.image_facts import IMAGE_SETTINGS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.section import Ledger, Section

DEIT_SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
        *("qkv_bias", "qk_scale", "representation_size", "hybrid_backbone", "norm_eps", "distilled"),
        *("tradeoff", "prune_ratio", "prunecls", "stage_wise_prune"),
    }
)
"""Constructor arguments, and `stage_wise_prune`, an attribute of Evo-ViT."""
HEADS = {192: 3, 384: 6, 768: 12}
"""Attention heads of the published sizes (tiny, small, base) by width."""
LAYERS = 12
"""Of every published size."""
UNUSED = re.compile(r"(head_cls|norm_cls)\.(weight|bias)|pre_logits\..*")
"""Entries that only training reads."""
_NORM_EPS = 1e-6


def dense_deit_spec(
    section: Section, facts: KeyFacts, ledger: Ledger, *, depth: int, width: int, extra: int
) -> EvoDeitSpec:
    """The network with nothing selected, as plain DeiT reads it out.

    Args:
        section: constructor arguments.
        facts: of the checkpoint.
        ledger: takes the names of what nobody tells.
        depth: layers.
        width: of a token.
        extra: 1, or 2 with a distillation token.
    """
    section.must_be("in_chans", 3)
    for absent in ("qk_scale", "representation_size", "hybrid_backbone"):
        section.must_be(absent, None)
    patch = section.integer("patch_size")
    patch = ledger.settle("patch_size", patch, facts.size((r"patch_embed\.proj\.weight", 2)), stand_in=16)
    size = training_size(section, "img_size", facts, ledger, positions="pos_embed", extra=extra, patch=patch)
    heads = section.integer("num_heads")
    heads = ledger.settle("num_heads", heads if heads is not None else HEADS.get(width), None, stand_in=1)
    ratio = section.number("mlp_ratio")
    hidden = facts.size((r"blocks\.\d+\.mlp\.fc1\.(weight|bias)", 0))
    hidden = ledger.settle("mlp_ratio", None if ratio is None else int(width * ratio), hidden, stand_in=4 * width)
    classes = facts.size((r"head\.(weight|bias)", 0))
    return EvoDeitSpec(
        family="deit",
        size=size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        extra_tokens=2 if extra == 2 else 1,
        norm_eps=section.number("norm_eps") or _NORM_EPS,
        classes=ledger.settle("num_classes", section.integer("num_classes"), classes, stand_in=1),
        position_mode="bicubic",
        head=ClassTokenHead(),
    )


def deit_width(section: Section, facts: KeyFacts, ledger: Ledger) -> int:
    """`embed_dim`, of any norm."""
    votes = (r"norm\.(weight|bias)", 0), (r"norms\.\d+\.(weight|bias)", 0), (r"blocks\.\d+\.norm[12]\.(weight|bias)", 0)
    return ledger.settle("embed_dim", section.integer("embed_dim"), facts.size(*votes), stand_in=1)
