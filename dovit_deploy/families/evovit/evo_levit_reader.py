"""Constructor arguments and keys -> EvoLevitSpec, for Evo-ViT on LeViT. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import Rule, refuse_faults, rule
from dovit_deploy.checkpoints.settings import (
    Architecture,
    KeyFacts,
    Ledger,
    Reader,
    Section,
    facts_from_state,
    training_size,
)
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.evovit.levit_reader import (
    LEVIT_SETTINGS,
    head_rules,
    layout_from_keys,
    levit_parts,
    levit_subsamples,
    mlp_rules,
    normed_rules,
    packed_rules,
    stem_rules,
)
from dovit_deploy.families.evovit.spec import EvoLevitSpec, LevitStage, LevitSubsample, TokenSelection

# Official key names of Evo-ViT on LeViT against ours, and its two views of one layer. Source: YifanXu74/Evo-ViT.


def evo_levit_rules(spec: EvoLevitSpec) -> list[Rule]:
    """Every entry that inference reads of Evo-ViT on LeViT, by the names of the layer-wise view (`blocks.*`)."""
    rules = [
        rule("cls_token", "class_token", 1, 1, spec.width),
        rule("poss", "positions", 1, spec.tokens, spec.width),
        *stem_rules(spec),
    ]
    for number, (first_layer, last_layer) in enumerate(spec.stage_layers):
        stage = spec.stages[number]
        for layer in range(first_layer, last_layer):
            rules += _layer_rules(f"blocks.{layer + 2 * number}", f"layers.{layer}", stage, spec)
        if number < len(spec.subsamples):
            rules += _down_rules(f"blocks.{last_layer + 2 * number}", last_layer + 2 * number + 1, number, spec)
    return rules + head_rules(spec)


def _layer_rules(source: str, target: str, stage: LevitStage, spec: EvoLevitSpec) -> list[Rule]:
    parts = tuple(f"{target}.attention.{part}" for part in ("query", "key", "value"))
    rows = stage.heads * (2 * stage.key + stage.value)
    return [
        *packed_rules(f"{source}.m1.m.qkv", parts, stage.heads, rows, stage.width),
        *normed_rules(f"{source}.m1.m.proj.1", f"{target}.attention.output", stage.width, stage.heads * stage.value),
        *_tradeoff(f"{source}.m1.m", f"{target}.attention", spec),
        *mlp_rules(f"{source}.m2.m", f"{target}.mlp", stage.width, stage.hidden),
    ]


def _down_rules(source: str, mlp: int, number: int, spec: EvoLevitSpec) -> list[Rule]:
    part: LevitSubsample = spec.subsamples[number]
    before, after = spec.stages[number].width, spec.stages[number + 1].width
    rows, columns = spec.stage_grids[number]
    target = f"downs.{number}"
    parts = tuple(f"{target}.attention.{name}" for name in ("key", "value"))
    return [
        rule(f"{source}.poss", f"{target}.positions", 1, 1 + rows * columns, before),
        *packed_rules(f"{source}.kv", parts, part.heads, part.heads * (part.key + part.value), before),
        *normed_rules(f"{source}.q.1", f"{target}.attention.query", part.heads * part.key, before),
        *normed_rules(f"{source}.proj.1", f"{target}.attention.output", after, part.heads * part.value),
        *_tradeoff(source, f"{target}.attention", spec),
        *mlp_rules(f"blocks.{mlp}.m", f"{target}.mlp", after, part.hidden),
    ]


def _tradeoff(source: str, target: str, spec: EvoLevitSpec) -> list[Rule]:
    return [] if spec.tradeoff is not None else [rule(f"{source}.learn_tradeoff", f"{target}.tradeoff", 1)]


def rules_in_views(rules: list[Rule], spec: EvoLevitSpec, pruned: Sequence[bool], facts: KeyFacts) -> list[Rule]:
    """`rules` under the names of every view that the file has: each must be whole. A file without layers gets the one.

    Args:
        rules: by the layer-wise view.
        spec: the architecture.
        pruned: per layer, whether the source puts it into a StageModule.
        facts: of the checkpoint.
    """
    depths = [stage.depth for stage in spec.stages]
    places = {layer: stage for stage, layer in stage_view(depths, pruned)}
    renamed = [replace(one, sources=tuple(_renamed(name, places) for name in one.sources)) for one in rules]
    if not facts.has(r"stage_blocks\..*"):
        return rules
    return [*rules, *renamed] if facts.has(r"blocks\..*") else renamed


def with_equal_views(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """`state` as it is, after comparing the two views of each layer where it has both.

    Raises:
        CheckpointMismatch: an entry differs.
    """
    layout = layout_from_keys(facts_from_state(state))
    if layout.pruned is None:
        return state
    places = dict(stage_view(layout.depths, layout.pruned))
    pairs = ((name, _renamed(name, places)) for name in state if name.startswith("stage_blocks."))
    different = [one for one, other in pairs if other in state and not torch.equal(state[one], state[other])]
    refuse_faults({"different from the same layer's entry in blocks.*": different}, source)
    return state


def _renamed(name: str, places: Mapping[str, str]) -> str:
    parts = name.split(".")
    # A StageModule's part is stage_blocks.I.m.K; one of the layer-wise view is blocks.I.m1; others end at the number.
    for length in (4, 3, 2):
        place = ".".join(parts[:length])
        if place in places:
            return ".".join((places[place], *parts[length:]))
    return name


def stage_view(depths: Sequence[int], pruned: Sequence[bool]) -> Iterator[tuple[str, str]]:
    """Per part of a layer: its place in the stage view, and in the layer-wise view.

    A stage's unpruned layers come one by one, then its pruned ones in one module, then the subsampling and its MLP.
    """
    place = layer = 0
    for number, depth in enumerate(depths):
        parts: dict[bool, list[str]] = {False: [], True: []}
        for _ in range(depth):
            parts[pruned[layer]] += [f"blocks.{layer + 2 * number}.{part}" for part in ("m1", "m2")]
            layer += 1
        for name in parts[False]:
            yield f"stage_blocks.{place}", name
            place += 1
        for inner, name in enumerate(parts[True]):
            yield f"stage_blocks.{place}.m.{inner}", name
        place += bool(parts[True])
        if number + 1 < len(depths):
            for extra in range(2):
                yield f"stage_blocks.{place + extra}", f"blocks.{layer + 2 * number + extra}"
            place += 2


_UNUSED = re.compile(r"head_cls(_dist)?\.(bn|l)\..*|.*\.num_batches_tracked|.*\.learn_tradeoff")
_UNPRUNED = 2
"""Layers that run on every token before the first selection, in every published size."""


def evo_levit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of Evo-ViT on LeViT.

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
    section.must_be("in_chans", 3)
    section.must_be("patch_size", 16)
    layout = layout_from_keys(facts)
    parts = levit_parts(section, facts, layout, ledger)
    size = training_size(section, "img_size", facts, ledger, positions="poss", extra=1, patch=16)
    layers, stages = _ratios(section, parts.depths)
    pruned = tuple(ratio != 1 for ratio in layers)
    # The stage view shows which layers have a ratio, not which.
    ledger.settle("prune_ratio below 1", layer_numbers(pruned), layer_numbers(layout.pruned), stand_in=())
    stage_wise = section.flag("stage_wise_prune") is not False
    selections = _stage_wise(layers, stages, parts.depths) if stage_wise else _layer_wise(layers)
    ledger.finish()
    spec = EvoLevitSpec(
        size=size,
        stages=parts.stages(),
        subsamples=levit_subsamples(section, parts),
        classes=parts.classes,
        distilled=parts.distilled,
        selections=selections,
        tradeoff=0.5 if section.flag("learn_tradeoff_mode") is False else None,
    )
    return Architecture(spec, rules_in_views(evo_levit_rules(spec), spec, pruned, facts), _UNUSED)


def layer_numbers(pruned: Sequence[bool] | None) -> tuple[int, ...] | None:
    """Which layers are pruned, or None where nobody tells."""
    return None if pruned is None else tuple(layer for layer, one in enumerate(pruned) if one)


def _ratios(section: Section, depths: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`prune_ratio`: per layer and per stage; unstated it is that of the published sizes."""
    value = section.values.get("prune_ratio")
    if value is None:
        return (1.0,) * _UNPRUNED + (0.5,) * (sum(depths) - _UNPRUNED), (0.5,) * len(depths)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise section.wrong("prune_ratio", "two lists are needed, one entry a layer and one a stage")
    lists = Section("prune_ratio", {"layers": value[0], "stages": value[1]}, section.source)
    layers, stages = lists.numbers("layers") or (), lists.numbers("stages") or ()
    if len(layers) != sum(depths) or len(stages) != len(depths):
        raise ConfigError(
            f"'prune_ratio' has {len(layers)} and {len(stages)} entries; "
            f"{sum(depths)} layers in {len(depths)} stages need one each"
        )
    if not all(0 <= ratio <= 1 for ratio in (*layers, *stages)):
        raise ConfigError("'prune_ratio': each entry must lie in 0 to 1")
    if layers[0] != 1:
        raise ConfigError("'prune_ratio' of the first layer must be 1: there are no scores before it to choose by")
    return layers, stages


def _layer_wise(layers: tuple[float, ...]) -> tuple[TokenSelection, ...]:
    return tuple(
        TokenSelection(first=layer, last=layer + 1, ratio=ratio) for layer, ratio in enumerate(layers) if ratio != 1
    )


def _stage_wise(
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
    return () if all(selection.ratio == 1 for selection in found) else tuple(found)


READER = Reader(
    recognises=lambda facts: facts.has(r".*\.learn_tradeoff|poss"),
    settings=LEVIT_SETTINGS,
    architecture=evo_levit_architecture,
    prepared=with_equal_views,
)
