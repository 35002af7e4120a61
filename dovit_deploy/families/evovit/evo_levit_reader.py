"""Evo-ViT on LeViT: constructor arguments and keys -> EvoLevitSpec. Source: YifanXu74/Evo-ViT.

The source registers every layer twice: in `blocks.*`, layer by layer, and in `stage_blocks.*`, where the pruned layers
of a stage are together in one module. A file may have either view, or both and equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import (
    KeyFacts,
    KeyMap,
    KeyTable,
    batched,
    facts_from_state,
    packed_by_head,
    refuse_faults,
)
from dovit_deploy.checkpoints.reader import Architecture, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, training_size
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.evovit.deit_reader import selections_by_layer
from dovit_deploy.families.evovit.levit_reader import (
    DEPTHS,
    LEVIT_SETTINGS,
    STEM_AND_HEAD_KEYS,
    SUBSAMPLE_KEYS,
    layout_from_keys,
    official_numbers,
    pyramid_values,
)
from dovit_deploy.families.evovit.spec import EvoLevitSpec, TokenSelection

EVO_LEVIT_KEYS: KeyTable = {
    **STEM_AND_HEAD_KEYS,
    **SUBSAMPLE_KEYS,
    "cls_token": batched("class_token"),
    "poss": batched("positions"),
    "blocks.{cross}.poss": batched("downs.{down}.positions"),
    "blocks.{cross}.learn_tradeoff": "downs.{down}.attention.tradeoff",
    "blocks.{block}.m1.m.qkv.c.weight": packed_by_head(
        "layers.{layer}.attention.{part}.projection.weight", "query", "key", "value"
    ),
    "blocks.{block}.m1.m.qkv.bn.{entry}": packed_by_head(
        "layers.{layer}.attention.{part}.norm.{entry}", "query", "key", "value"
    ),
    "blocks.{block}.m1.m.proj.1.c.weight": "layers.{layer}.attention.output.projection.weight",
    "blocks.{block}.m1.m.proj.1.bn.{entry}": "layers.{layer}.attention.output.norm.{entry}",
    "blocks.{block}.m1.m.learn_tradeoff": "layers.{layer}.attention.tradeoff",
    "blocks.{block}.m2.m.0.c.weight": "layers.{layer}.mlp.expand.projection.weight",
    "blocks.{block}.m2.m.0.bn.{entry}": "layers.{layer}.mlp.expand.norm.{entry}",
    "blocks.{block}.m2.m.2.c.weight": "layers.{layer}.mlp.contract.projection.weight",
    "blocks.{block}.m2.m.2.bn.{entry}": "layers.{layer}.mlp.contract.norm.{entry}",
}
"""By the names of the layer-wise view."""
_UNUSED = ("head_cls.**", "head_cls_dist.**", "**.num_batches_tracked", "**.learn_tradeoff")
_UNPRUNED = 2
"""Layers that run on every token before the first selection, in every published size."""
SIZE = training_size("img_size", positions="poss", extra=lambda _: 1, patch=lambda _: 16)


def evo_levit_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of Evo-ViT on LeViT; `network` is its constructor's arguments.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    values, depths = pyramid_values(network, SIZE), network[DEPTHS]
    layers, stages = _ratios(network, depths)
    pruned = tuple(ratio != 1 for ratio in layers)
    shown = layout_from_keys(network.facts).pruned
    # The stage view shows which layers have a ratio below 1, and not which ratio.
    network.agreed("prune_ratio below 1", _numbers(pruned), None if shown is None else _numbers(shown))
    stage_wise = network.flag("stage_wise_prune") is not False
    selections = _selections_by_stage(layers, stages, depths) if stage_wise else selections_by_layer(layers)
    # The fixed trade-off is a constant of the source.
    tradeoff = 0.5 if network.flag("learn_tradeoff_mode") is False else None
    spec = EvoLevitSpec.model_validate({**values, "selections": selections, "tradeoff": tradeoff})
    return Architecture(spec, evo_levit_key_map(spec, views=_views(network.facts, depths, pruned)))


def evo_levit_key_map(spec: EvoLevitSpec, *, views: tuple[Callable[[str], str], ...] = (str,)) -> KeyMap:
    """Evo-ViT's names for the layers of `spec`; `views` rename those of the layer-wise view."""
    return KeyMap(EVO_LEVIT_KEYS, unused=_UNUSED, numbers=official_numbers(spec, blocks_per_layer=1), views=views)


def _numbers(pruned: Sequence[bool]) -> tuple[int, ...]:
    return tuple(layer for layer, one in enumerate(pruned) if one)


def _ratios(network: Section, depths: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`prune_ratio`: per layer and per stage; unstated it is that of the published sizes."""
    value = network.values.get("prune_ratio")
    if value is None:
        return (1.0,) * _UNPRUNED + (0.5,) * (sum(depths) - _UNPRUNED), (0.5,) * len(depths)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise network.wrong("prune_ratio", "two lists are needed, one entry a layer and one a stage")
    lists = Section("prune_ratio", {"layers": value[0], "stages": value[1]})
    layers, stages = lists.numbers("layers") or (), lists.numbers("stages") or ()
    if len(layers) != sum(depths) or len(stages) != len(depths):
        raise ConfigError(
            f"'prune_ratio' has {len(layers)} and {len(stages)} entries; "
            f"{sum(depths)} layers in {len(depths)} stages need one each"
        )
    if not all(0 <= ratio <= 1 for ratio in (*layers, *stages)):
        raise ConfigError("'prune_ratio': each entry must be between 0 and 1")
    if layers[0] != 1:
        raise ConfigError("'prune_ratio' of the first layer must be 1: there are no scores before it to choose by")
    return layers, stages


def _selections_by_stage(
    layers: tuple[float, ...], stages: tuple[float, ...], depths: tuple[int, ...]
) -> tuple[TokenSelection, ...]:
    """One selection a stage, from its first layer with a ratio to its end, by the stage's ratio."""
    found, first = [], 0
    for depth, ratio in zip(depths, stages, strict=True):
        last = first + depth
        begin = next((layer for layer in range(first, last) if layers[layer] != 1), last)
        if any(layers[layer] == 1 for layer in range(begin, last)):
            raise ConfigError(
                f"'prune_ratio' of layers {first} to {last - 1}: in the stage-wise form the layers with ratio 1 of a "
                "stage come first"
            )
        if begin < last:
            found.append(TokenSelection(first=begin, last=last, ratio=ratio))
        first = last
    # Ratios of 1 in every stage are the dense network.
    return () if all(selection.ratio == 1 for selection in found) else tuple(found)


# The two views of a layer.


def _views(facts: KeyFacts, depths: Sequence[int], pruned: Sequence[bool]) -> tuple[Callable[[str], str], ...]:
    """What the file has, for `KeyMap.views`: each must be whole. A file without any layers is missing the first."""
    if not facts.has("stage_blocks.**"):
        return (str,)
    stage_name = functools.partial(_renamed, {layer: stage for stage, layer in stage_view(depths, pruned)})
    return (str, stage_name) if facts.has("blocks.**") else (stage_name,)


def _renamed(prefixes: Mapping[str, str], name: str) -> str:
    """`name` with its module's prefix replaced."""
    parts = name.split(".")
    # A StageModule's part is stage_blocks.I.m.K; one of the layer-wise view is blocks.I.m1; others end at the number.
    for length in (4, 3, 2):
        prefix = ".".join(parts[:length])
        if prefix in prefixes:
            return ".".join((prefixes[prefix], *parts[length:]))
    return name


def stage_view(depths: Sequence[int], pruned: Sequence[bool]) -> Iterator[tuple[str, str]]:
    """Per part of a layer: its prefix in the stage view, and in the layer-wise view.

    A stage's unpruned layers come one by one, then its pruned ones in one module, then the subsampling and its MLP.
    """
    block = layer = 0
    # `blocks.*` numbers two more blocks after each stage: the subsampling and its MLP.
    for number, depth in enumerate(depths):
        parts: dict[bool, list[str]] = {False: [], True: []}
        for _ in range(depth):
            parts[pruned[layer]] += [f"blocks.{layer + 2 * number}.{part}" for part in ("m1", "m2")]
            layer += 1
        for name in parts[False]:
            yield f"stage_blocks.{block}", name
            block += 1
        for inner, name in enumerate(parts[True]):
            yield f"stage_blocks.{block}.m.{inner}", name
        block += bool(parts[True])
        if number + 1 < len(depths):
            for extra in range(2):
                yield f"stage_blocks.{block + extra}", f"blocks.{layer + 2 * number + extra}"
            block += 2


def with_equal_views(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """`state` as it is, after comparing the two views of each layer where it has both.

    Raises:
        CheckpointMismatch: an entry differs.
    """
    layout = layout_from_keys(facts_from_state(state))
    if layout.pruned is None:
        return state
    prefixes = dict(stage_view(layout.depths, layout.pruned))
    pairs = ((name, _renamed(prefixes, name)) for name in state if name.startswith("stage_blocks."))
    different = [one for one, other in pairs if other in state and not torch.equal(state[one], state[other])]
    refuse_faults({"different from the same layer's entry in blocks.*": different}, source)
    return state


READER = Reader(
    title="Evo-ViT on LeViT",
    recognises=lambda facts: facts.has("**.learn_tradeoff", "poss"),
    settings=LEVIT_SETTINGS,
    architecture=evo_levit_architecture,
    tables=(EVO_LEVIT_KEYS,),
    needed=("poss", "patch_embed.0.c.weight", "head.l.*"),
    prepared=with_equal_views,
)
