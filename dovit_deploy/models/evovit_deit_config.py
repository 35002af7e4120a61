"""Evo-ViT on DeiT: constructor arguments and keys -> EvoDeitSpec. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovit_deploy.bundle.evovit_deit_spec import EvoDeitSpec, PooledHead
from dovit_deploy.bundle.token_selection import Selection
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import Architecture
from dovit_deploy.models.deit_settings import DEIT_SETTINGS, HEADS, LAYERS, UNUSED, deit_width, dense_deit_spec
from dovit_deploy.models.evovit_deit_keys import evo_deit_rules
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section

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


def selections_from_ratios(ratios: tuple[float, ...], *, stage_wise: bool) -> tuple[Selection, ...]:
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
    return tuple(Selection(first=first, last=last, ratio=ratios[first]) for first, last in chosen)


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
