"""Evo-ViT on DeiT, and plain DeiT, its dense baseline: constructor arguments and keys -> EvoDeitSpec.

Sources: YifanXu74/Evo-ViT, facebookresearch/deit (timm's ViT for classification).
"""

from __future__ import annotations

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, batched, extra_token, packed
from dovit_deploy.checkpoints.reader import Architecture, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, has, size, training_size
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.evovit.spec import ClassTokenHead, EvoDeitSpec, PooledHead, TokenSelection

DEIT_KEYS: KeyTable = {
    "cls_token": extra_token(0),
    "dist_token": extra_token(1),
    "pos_embed": batched("positions"),
    "patch_embed.proj.{entry}": "stem.projection.{entry}",
    "blocks.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "blocks.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),
    "blocks.{layer}.attn.proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "norm.{entry}": "norm.{entry}",
    "head.{entry}": "head.classifier.{entry}",
    "head_dist.{entry}": "head.distilled.{entry}",
}
EVO_DEIT_KEYS: KeyTable = {
    # A layer's weights are in five lists of the source: norms, qks, vs, projs, blocks.
    "cls_token": extra_token(0),
    "pos_embed": batched("positions"),
    "patch_embed.proj.{entry}": "stem.projection.{entry}",
    "norms.{layer}.{entry}": "blocks.{layer}.norm1.{entry}",
    "qks.{layer}.qk.{entry}": packed("blocks.{layer}.attention.{part}.{entry}", "query", "key"),
    "vs.{layer}.v.{entry}": "blocks.{layer}.attention.value.{entry}",
    "projs.{layer}.{entry}": "blocks.{layer}.attention.output.{entry}",
    "blocks.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "blocks.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "blocks.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
    "norm.{entry}": "norm.{entry}",
    "head.{entry}": "head.classifier.{entry}",
}
_TRAIN_ONLY = ("head_cls.*", "norm_cls.*", "pre_logits.**")

DEIT_SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
        *("qkv_bias", "qk_scale", "representation_size", "hybrid_backbone", "norm_eps", "distilled"),
        *("tradeoff", "prune_ratio", "prunecls", "stage_wise_prune"),
    }
)
"""Constructor arguments, and `stage_wise_prune`, an attribute of Evo-ViT."""
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "in_chans": (3,),
    "qk_scale": (None,),
    "representation_size": (None,),
    "hybrid_backbone": (None,),
}
HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12}
"""Attention heads of the published sizes (tiny, small, base) by width."""
PUBLISHED_DEPTH = 12
_PUBLISHED_RATIOS = (1.0,) * 4 + (0.5,) * 8
"""`prune_ratio` and `tradeoff` of every published Evo-ViT on DeiT."""
_STAGES = ((4, 8), (8, 12))
"""Layers of the stage-wise form's selections, fixed in the source."""
_NORM_EPS = 1e-6


def _stated_hidden(network: Sources, key: str) -> int | None:
    ratio = network.number(key)
    return None if ratio is None else int(network[WIDTH] * ratio)


def _stated_tradeoffs(network: Sources, key: str) -> tuple[float, ...] | None:
    """One number, or one a layer."""
    if isinstance(network.values.get(key), int | float):
        return (network.number(key) or 0.0,) * network[EVO_DEPTH]
    return network.numbers(key) or None


def _published_tradeoffs(network: Sources) -> tuple[float, ...] | None:
    published = network[WIDTH] in HEADS_OF_WIDTH and network[EVO_DEPTH] == PUBLISHED_DEPTH
    return _PUBLISHED_RATIOS if published else None


WIDTH = SpecValue(
    "embed_dim", Section.positive, 1, shown=size(("norm.*", 0), ("norms.*.*", 0), ("blocks.*.norm*.*", 0))
)
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("patch_embed.proj.weight", 2)))
SIZE = training_size(
    "img_size",
    positions="pos_embed",
    extra=lambda network: 2 if network.facts.has("dist_token") else 1,
    patch=lambda network: network[PATCH],
)
# In no key: only the published sizes can do without a stated number.
HEADS = SpecValue("num_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH]))
HIDDEN = SpecValue("mlp_ratio", _stated_hidden, 1, shown=size(("blocks.*.mlp.fc1.*", 0)))
CLASSES = SpecValue("num_classes", Section.positive, 1, shown=size(("head.*", 0)))
EVO_DEPTH = SpecValue("depth", Section.positive, PUBLISHED_DEPTH, shown=count("qks"))
DEPTH = SpecValue("depth", Section.positive, PUBLISHED_DEPTH, shown=count("blocks"))
DISTILLED = SpecValue("distilled", Section.flag, False, shown=has("dist_token"))
TRADEOFFS = SpecValue("tradeoff", _stated_tradeoffs, (1.0,) * PUBLISHED_DEPTH, default=_published_tradeoffs)


def evo_deit_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of Evo-ViT on DeiT; `network` is its constructor's arguments.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    network.must_be("distilled", False)
    depth, rejoins = network[EVO_DEPTH], not network.flag("prunecls")
    # On unless it is switched off: the source's form for inference.
    stage_wise = network.flag("stage_wise_prune") is not False
    selections = selections_from_ratios(_ratios(network, depth), stage_wise=stage_wise)
    tradeoffs, dense = network[TRADEOFFS], _dense_values(network, depth=depth)
    network.finish()
    if len(tradeoffs) != depth:
        raise ConfigError(f"'tradeoff' has {len(tradeoffs)} entries for {depth} layers")
    spec = EvoDeitSpec.model_validate(
        {
            **dense,
            "family": "evovit-deit",
            "selections": selections,
            "tradeoffs": tradeoffs,
            "rejoin_last": rejoins,
            "position_mode": "bilinear",
            "head": PooledHead(),
        }
    )
    # `prunecls` classifies by the mean of the tokens that the last layer ran on.
    if not rejoins and selections and selections[-1].last == depth and not selections[-1].chosen(spec.patches):
        raise ConfigError(f"'prunecls' with 'prune_ratio' {selections[-1].ratio:g} leaves no token to classify by")
    biased = network.flag("qkv_bias") is not False
    absent = () if biased else ("qks.*.qk.bias", "vs.*.v.bias")
    return Architecture(spec, KeyMap(EVO_DEIT_KEYS, unused=_TRAIN_ONLY, zero_if_absent=absent))


def plain_deit_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of plain DeiT, with or without distillation token, as a dense model.

    Raises:
        CheckpointMismatch: the configuration selects tokens, which these weights were not trained for.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    if any(ratio != 1 for ratio in network.numbers("prune_ratio") or ()):
        raise CheckpointMismatch(
            f"{network.checkpoint} is a plain DeiT (blocks.*.attn.qkv), not an Evo-ViT (qks.*), and its configuration "
            "selects tokens; leave 'prune_ratio' out to export it as the dense baseline"
        )
    # Two with the distillation token, which has a head of its own.
    values = {**_dense_values(network, depth=network[DEPTH]), "extra_tokens": 2 if network[DISTILLED] else 1}
    network.finish()
    network.must_be("qkv_bias", True)
    return Architecture(EvoDeitSpec.model_validate(values), KeyMap(DEIT_KEYS, unused=_TRAIN_ONLY))


def _dense_values(network: Sources, *, depth: int) -> dict[str, object]:
    """The arguments of the spec with nothing selected, as plain DeiT is read."""
    network.must_all_be(_SUPPORTED)
    return {
        "family": "deit",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": depth,
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        # No argument of the source, whose LayerNorms all have this one.
        "norm_eps": network.number("norm_eps") or _NORM_EPS,
        "classes": network[CLASSES],
        "position_mode": "bicubic",
        "head": ClassTokenHead(),
    }


def _ratios(network: Section, depth: int) -> tuple[float, ...]:
    """`prune_ratio`; unstated it is the constructor's own."""
    ratios = network.numbers("prune_ratio") or _PUBLISHED_RATIOS
    if len(ratios) != depth:
        raise ConfigError(f"'prune_ratio' has {len(ratios)} entries for {depth} layers")
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise ConfigError(f"'prune_ratio' {', '.join(f'{ratio:g}' for ratio in ratios)}: each must be between 0 and 1")
    return ratios


def selections_from_ratios(ratios: tuple[float, ...], *, stage_wise: bool) -> tuple[TokenSelection, ...]:
    """One selection a stage, by the ratio of its first layer, or one a layer; none where nothing is left out.

    Args:
        ratios: `prune_ratio`, per layer the share of patches that runs.
        stage_wise: the source's form for inference, whose stages are layers 4 to 7 and 8 to 11.

    Raises:
        ConfigError: the first layer has a ratio, or there are no such stages.
    """
    if not stage_wise:
        return selections_by_layer(ratios)
    if len(ratios) != _STAGES[-1][-1]:
        raise ConfigError(
            f"{len(ratios)} layers with 'stage_wise_prune': its stages end at layer {_STAGES[-1][-1]}; "
            "set it to false for selections layer by layer"
        )
    # Only a stage's first ratio counts: the source chooses once and keeps the choice for the whole stage.
    if all(ratios[first] == 1 for first, _ in _STAGES):
        return ()
    return tuple(TokenSelection(first=first, last=last, ratio=ratios[first]) for first, last in _STAGES)


def selections_by_layer(ratios: tuple[float, ...]) -> tuple[TokenSelection, ...]:
    """One selection for each layer whose ratio is not 1.

    Raises:
        ConfigError: the first layer has one.
    """
    if ratios[0] != 1:
        raise ConfigError("'prune_ratio' of the first layer must be 1: there are no scores before it to choose by")
    return tuple(
        TokenSelection(first=layer, last=layer + 1, ratio=ratio) for layer, ratio in enumerate(ratios) if ratio != 1
    )


READER = Reader(
    title="Evo-ViT on DeiT",
    recognises=lambda facts: facts.has("qks.*.qk.**"),
    settings=DEIT_SETTINGS,
    architecture=evo_deit_architecture,
    tables=(EVO_DEIT_KEYS,),
    needed=("qks.*.qk.*", "vs.*.v.*", "patch_embed.proj.*", "pos_embed", "head.*"),
)
PLAIN_DEIT = Reader(
    title="DeiT",
    recognises=lambda facts: facts.has("blocks.*.attn.qkv.**"),
    settings=DEIT_SETTINGS,
    architecture=plain_deit_architecture,
    tables=(DEIT_KEYS,),
    needed=("blocks.*.attn.qkv.*", "patch_embed.proj.*", "pos_embed", "head.*"),
)
