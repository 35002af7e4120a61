"""Official key names of Evo-ViT on LeViT against ours, and its two views of one layer. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dovit_deploy.bundle.evovit_levit_spec import EvoLevitSpec
from dovit_deploy.bundle.levit_spec import LevitStage, LevitSubsample
from dovit_deploy.models.key_facts import KeyFacts, facts_from_state
from dovit_deploy.models.levit_layout import layout_from_keys
from dovit_deploy.models.official_keys import Rule, affine, rule
from dovit_deploy.models.official_state import refuse_faults

_NORMS = ("weight", "bias", "running_mean", "running_var")


def evo_levit_rules(spec: EvoLevitSpec) -> list[Rule]:
    """Every entry that inference reads of Evo-ViT on LeViT, by the names of the layer-wise view (`blocks.*`)."""
    first, last = spec.stages[0], spec.stages[-1]
    widths = (3, first.width // 8, first.width // 4, first.width // 2, first.width)
    rules = [
        rule("cls_token", "class_token", 1, 1, first.width),
        rule("poss", "positions", 1, spec.tokens, first.width),
    ]
    for number in range(4):
        rules += _normed(f"patch_embed.{2 * number}", f"stem.down.{number}", widths[number + 1], widths[number], 3, 3)
    for number, (first_layer, last_layer) in enumerate(spec.stage_layers):
        stage = spec.stages[number]
        for layer in range(first_layer, last_layer):
            rules += _layer_rules(f"blocks.{layer + 2 * number}", f"layers.{layer}", stage, spec)
        if number < len(spec.subsamples):
            rules += _down_rules(f"blocks.{last_layer + 2 * number}", last_layer + 2 * number + 1, number, spec)
    for source, target in (("head", "head.classifier"), ("head_dist", "head.distilled"))[: 1 + spec.distilled]:
        rules += [
            *(rule(f"{source}.bn.{entry}", f"{target}.prior.{entry}", last.width) for entry in _NORMS),
            *affine(f"{source}.l", f"{target}.projection", spec.classes, last.width),
        ]
    return rules


def _normed(source: str, target: str, *shape: int) -> list[Rule]:
    """LeViT's Linear_BN and Conv2d_BN."""
    return [
        rule(f"{source}.c.weight", f"{target}.projection.weight", *shape),
        *(rule(f"{source}.bn.{entry}", f"{target}.norm.{entry}", shape[0]) for entry in _NORMS),
    ]


def _packed(source: str, targets: tuple[str, ...], heads: int, rows: int, inputs: int) -> list[Rule]:
    """A Linear_BN whose rows are laid out head by head, cut into its parts; its norm is one number a row."""
    return [
        Rule((f"{source}.c.weight",), (rows, inputs), tuple(f"{t}.projection.weight" for t in targets), heads=heads),
        *(
            Rule((f"{source}.bn.{entry}",), (rows,), tuple(f"{t}.norm.{entry}" for t in targets), heads=heads)
            for entry in _NORMS
        ),
    ]


def _layer_rules(source: str, target: str, stage: LevitStage, spec: EvoLevitSpec) -> list[Rule]:
    parts = tuple(f"{target}.attention.{part}" for part in ("query", "key", "value"))
    rows = stage.heads * (2 * stage.key + stage.value)
    return [
        *_packed(f"{source}.m1.m.qkv", parts, stage.heads, rows, stage.width),
        *_normed(f"{source}.m1.m.proj.1", f"{target}.attention.output", stage.width, stage.heads * stage.value),
        *_tradeoff(f"{source}.m1.m", f"{target}.attention", spec),
        *_normed(f"{source}.m2.m.0", f"{target}.mlp.expand", stage.hidden, stage.width),
        *_normed(f"{source}.m2.m.2", f"{target}.mlp.contract", stage.width, stage.hidden),
    ]


def _down_rules(source: str, mlp: int, number: int, spec: EvoLevitSpec) -> list[Rule]:
    part: LevitSubsample = spec.subsamples[number]
    before, after = spec.stages[number].width, spec.stages[number + 1].width
    rows, columns = spec.stage_grids[number]
    target = f"downs.{number}"
    parts = tuple(f"{target}.attention.{name}" for name in ("key", "value"))
    return [
        rule(f"{source}.poss", f"{target}.positions", 1, 1 + rows * columns, before),
        *_packed(f"{source}.kv", parts, part.heads, part.heads * (part.key + part.value), before),
        *_normed(f"{source}.q.1", f"{target}.attention.query", part.heads * part.key, before),
        *_normed(f"{source}.proj.1", f"{target}.attention.output", after, part.heads * part.value),
        *_tradeoff(source, f"{target}.attention", spec),
        *_normed(f"blocks.{mlp}.m.0", f"{target}.mlp.expand", part.hidden, after),
        *_normed(f"blocks.{mlp}.m.2", f"{target}.mlp.contract", after, part.hidden),
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
