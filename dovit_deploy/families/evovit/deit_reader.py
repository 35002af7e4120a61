"""Evo-ViT on DeiT: constructor arguments and keys -> EvoDeitSpec. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dovit_deploy.checkpoints.keys import TIMM_BLOCK, Rule, affine, block_rules, rule
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
from dovit_deploy.families.evovit.spec import ClassTokenHead, EvoDeitSpec, PooledHead, TokenSelection

# Official key names of Evo-ViT on DeiT and of plain DeiT against ours.
#
# Sources: YifanXu74/Evo-ViT, facebookresearch/deit.


def evo_deit_rules(spec: EvoDeitSpec, *, biases: bool) -> list[Rule]:
    """Every entry that inference reads of Evo-ViT on DeiT; a layer's weights lie in five lists of the source.

    `biases`: query, key and value have one (`qkv_bias`); without it ours are zero.
    """
    rules = _deit_rules(spec)
    width, hidden = spec.width, spec.hidden
    for number in range(spec.depth):
        target = f"blocks.{number}"
        attention = [f"{target}.attention.{part}" for part in ("query", "key")]
        rules += [
            *affine(f"norms.{number}", f"{target}.norm1", width),
            Rule((f"qks.{number}.qk.weight",), (2 * width, width), tuple(f"{part}.weight" for part in attention)),
            Rule(
                (f"qks.{number}.qk.bias",),
                (2 * width,),
                tuple(f"{part}.bias" for part in attention),
                zero_if_absent=not biases,
            ),
            rule(f"vs.{number}.v.weight", f"{target}.attention.value.weight", width, width),
            rule(f"vs.{number}.v.bias", f"{target}.attention.value.bias", width, zero_if_absent=not biases),
            *affine(f"projs.{number}", f"{target}.attention.output", width, width),
            *affine(f"blocks.{number}.norm2", f"{target}.norm2", width),
            *affine(f"blocks.{number}.mlp.fc1", f"{target}.mlp.expand", hidden, width),
            *affine(f"blocks.{number}.mlp.fc2", f"{target}.mlp.contract", width, hidden),
        ]
    return rules


def plain_deit_rules(spec: EvoDeitSpec) -> list[Rule]:
    """Every entry of a plain (or distilled) DeiT, timm's ViT for classification."""
    rules = _deit_rules(spec)
    for number in range(spec.depth):
        place = f"blocks.{number}"
        rules += block_rules(place, place, TIMM_BLOCK, width=spec.width, hidden=spec.hidden)
    if spec.extra_tokens == 2:
        rules += affine("head_dist", "head.distilled", spec.classes, spec.width)
    return rules


def _deit_rules(spec: EvoDeitSpec) -> list[Rule]:
    """What Evo-ViT and plain DeiT name alike."""
    extra = ("cls_token", "dist_token")[: spec.extra_tokens]
    return [
        *affine("patch_embed.proj", "stem.projection", spec.width, 3, spec.patch, spec.patch),
        Rule(extra, (1, 1, spec.width), ("extra_tokens",)),
        rule("pos_embed", "positions", 1, spec.tokens, spec.width),
        *affine("norm", "norm", spec.width),
        *affine("head", "head.classifier", spec.classes, spec.width),
    ]


# What the constructors of DeiT and of Evo-ViT on DeiT have in common: settings and keys -> a dense EvoDeitSpec.

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


_RATIOS = (1.0,) * 4 + (0.5,) * 8
"""`prune_ratio` and `tradeoff` of every published Evo-ViT on DeiT."""
_STAGES = ((4, 8), (8, 12))
"""Of the stage-wise form: fixed in the source."""


def evo_deit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of Evo-ViT on DeiT.

    Args:
        settings: constructor arguments; empty if there are none.
        facts: of the checkpoint.
        source: the checkpoint's name, for messages.
        thresholds: not read: it has no gates.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    section.must_be("distilled", False)
    depth = ledger.settle("depth", section.integer("depth"), facts.count("qks"), stand_in=LAYERS)
    width = deit_width(section, facts, ledger)
    stage_wise, last_rejoins = section.flag("stage_wise_prune") is not False, not section.flag("prunecls")
    selections = selections_from_ratios(_ratios(section, depth), stage_wise=stage_wise)
    tradeoffs = _tradeoffs(section, depth, width, ledger)
    dense = dense_deit_spec(section, facts, ledger, depth=depth, width=width, extra=1)
    ledger.finish()
    if not last_rejoins and selections and selections[-1].last == depth and not selections[-1].chosen(dense.patches):
        raise ConfigError(f"'prunecls' with 'prune_ratio' {selections[-1].ratio:g} leaves no token to classify by")
    spec = EvoDeitSpec.model_validate(
        {
            **dense.model_dump(),
            "family": "evovit-deit",
            "selections": selections,
            "tradeoffs": tradeoffs,
            "rejoin_last": last_rejoins,
            "position_mode": "bilinear",
            "head": PooledHead(),
        }
    )
    return Architecture(spec, evo_deit_rules(spec, biases=section.flag("qkv_bias") is not False), UNUSED)


def selections_from_ratios(ratios: tuple[float, ...], *, stage_wise: bool) -> tuple[TokenSelection, ...]:
    """One selection a stage, by the ratio of its first layer, or one a layer; none where nothing is left out.

    Args:
        ratios: `prune_ratio`, per layer the share of patches that runs.
        stage_wise: the source's form for inference, whose stages are layers 4 to 7 and 8 to 11.

    Raises:
        ConfigError: the first layer has a ratio, or there are no such stages.
    """
    if not stage_wise:
        if ratios[0] != 1:
            raise ConfigError("'prune_ratio' of the first layer must be 1: there are no scores before it to choose by")
        chosen = [(layer, layer + 1) for layer, ratio in enumerate(ratios) if ratio != 1]
    elif len(ratios) != _STAGES[-1][-1]:
        raise ConfigError(
            f"{len(ratios)} layers with 'stage_wise_prune': its stages end at layer {_STAGES[-1][-1]}; "
            "set it to false for selections layer by layer"
        )
    else:
        chosen = [] if all(ratios[first] == 1 for first, _ in _STAGES) else list(_STAGES)
    return tuple(TokenSelection(first=first, last=last, ratio=ratios[first]) for first, last in chosen)


def _ratios(section: Section, depth: int) -> tuple[float, ...]:
    """`prune_ratio`; unstated it is the constructor's own."""
    stated = section.numbers("prune_ratio") or _RATIOS
    if len(stated) != depth:
        raise ConfigError(f"'prune_ratio' has {len(stated)} entries for {depth} layers")
    if not all(0 <= ratio <= 1 for ratio in stated):
        raise ConfigError(f"'prune_ratio' {', '.join(f'{ratio:g}' for ratio in stated)}: each must lie in 0 to 1")
    return stated


def _tradeoffs(section: Section, depth: int, width: int, ledger: Ledger) -> tuple[float, ...]:
    """`tradeoff`, one number or one a layer; unstated it is that of the published sizes."""
    value = section.values.get("tradeoff")
    if isinstance(value, int | float):
        return (section.number("tradeoff") or 0.0,) * depth
    published = _RATIOS if width in HEADS and depth == LAYERS else None
    stated = ledger.settle("tradeoff", section.numbers("tradeoff") or published, None, stand_in=(1.0,) * depth)
    if len(stated) != depth:
        raise ConfigError(f"'tradeoff' has {len(stated)} entries for {depth} layers")
    return stated


READER = Reader(
    recognises=lambda facts: facts.has(r"qks\.\d+\.qk\..*"),
    settings=DEIT_SETTINGS,
    architecture=evo_deit_architecture,
)


# Plain DeiT, the dense baseline of Evo-ViT: constructor arguments and keys -> EvoDeitSpec without selections.
#
# Source: facebookresearch/deit (timm's ViT for classification).


def plain_deit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of plain DeiT, with or without distillation token, as a dense model.

    Raises:
        CheckpointMismatch: the configuration wants tokens passed on, which these weights were not trained for.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    if any(ratio != 1 for ratio in section.numbers("prune_ratio") or ()):
        raise CheckpointMismatch(
            f"{source} is a plain DeiT (blocks.*.attn.qkv), not an Evo-ViT (qks.*), and its configuration selects "
            "tokens; leave 'prune_ratio' out to export it as the dense baseline"
        )
    depth = ledger.settle("depth", section.integer("depth"), facts.count("blocks"), stand_in=LAYERS)
    seen = facts.has("dist_token")
    distilled = ledger.settle("distilled", section.flag("distilled"), seen, stand_in=seen)
    width = deit_width(section, facts, ledger)
    spec = dense_deit_spec(section, facts, ledger, depth=depth, width=width, extra=2 if distilled else 1)
    ledger.finish()
    section.must_be("qkv_bias", True)
    return Architecture(spec, plain_deit_rules(spec), UNUSED)


PLAIN_DEIT = Reader(
    recognises=lambda facts: facts.has(r"blocks\.\d+\.attn\.qkv\..*"),
    settings=DEIT_SETTINGS,
    architecture=plain_deit_architecture,
)
