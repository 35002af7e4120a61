"""Constructor arguments and keys -> EvoLevitSpec, for Evo-ViT on LeViT. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dovit_deploy.bundle.evovit_levit_spec import EvoLevitSpec
from dovit_deploy.bundle.token_selection import Selection
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import Architecture, training_size
from dovit_deploy.models.evovit_levit_keys import evo_levit_rules, rules_in_views, with_equal_views
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.levit_layout import layout_from_keys
from dovit_deploy.models.levit_settings import LEVIT_SETTINGS, levit_parts, levit_subsamples
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section

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


def _layer_wise(layers: tuple[float, ...]) -> tuple[Selection, ...]:
    return tuple(
        Selection(first=layer, last=layer + 1, ratio=ratio) for layer, ratio in enumerate(layers) if ratio != 1
    )


def _stage_wise(layers: tuple[float, ...], stages: tuple[float, ...], depths: tuple[int, ...]) -> tuple[Selection, ...]:
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
            found.append(Selection(first=begin, last=last, ratio=ratio))
        first = last
    return () if all(selection.ratio == 1 for selection in found) else tuple(found)


READER = Reader(
    recognises=lambda facts: facts.has(r".*\.learn_tradeoff|poss"),
    settings=LEVIT_SETTINGS,
    architecture=evo_levit_architecture,
    prepared=with_equal_views,
)
