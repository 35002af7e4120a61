"""Official key names of Evo-ViT on LeViT against ours, and its two views of one layer. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dovit_deploy.bundle.evovit_spec import EvoLevitSpec, LevitStage, LevitSubsample
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


def one_view(state: Mapping[str, Tensor], pruned: list[bool], spec: EvoLevitSpec, source: str) -> dict[str, Tensor]:
    """The state with every layer under `blocks.*`; the source registers each twice, as `stage_blocks.*` too.

    A file may hold either view, whole, or both with equal entries.

    Args:
        state: official names -> tensors.
        pruned: per layer, whether it lies in a StageModule of the stage view.
        spec: the architecture.
        source: the file's name, for messages.

    Raises:
        CheckpointMismatch: both views are there, and differ.
    """
    places = dict(stage_view(spec, pruned))
    layers = {name: tensor for name, tensor in state.items() if not name.startswith("stage_blocks.")}
    # An entry that is no part of a layer keeps its name; the strict comparison that follows lists it.
    stages = {_renamed(name, places): tensor for name, tensor in state.items() if name not in layers}
    names = [name for name in layers if name.startswith("blocks.")]
    if names and stages:
        shared = stages.keys() & layers.keys()
        faults = {
            "in blocks.* only": [name for name in names if name not in stages and not _counter(name)],
            "in stage_blocks.* only": [name for name in stages if name not in layers and not _counter(name)],
            "different in the two": sorted(name for name in shared if not _same(layers[name], stages[name])),
        }
        refuse_faults(faults, source)
    return {**stages, **layers}


def _counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _renamed(name: str, places: Mapping[str, str]) -> str:
    parts = name.split(".")
    # stage_blocks.I.<entry> of a layer on its own, stage_blocks.I.m.K.<entry> inside a StageModule.
    for length in (4, 2):
        place = ".".join(parts[:length])
        if place in places:
            return ".".join((places[place], *parts[length:]))
    return name


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def stage_view(spec: EvoLevitSpec, pruned: list[bool]) -> Iterator[tuple[str, str]]:
    """Per part of a layer: its place in the stage view, and in the layer-wise view.

    A stage's unpruned layers come one by one, then its pruned ones in one module, then the subsampling and its MLP.
    """
    place = 0
    for number, (first, last) in enumerate(spec.stage_layers):
        parts: dict[bool, list[str]] = {False: [], True: []}
        for layer in range(first, last):
            parts[pruned[layer]] += [f"blocks.{layer + 2 * number}.{part}" for part in ("m1", "m2")]
        for name in parts[False]:
            yield f"stage_blocks.{place}", name
            place += 1
        for inner, name in enumerate(parts[True]):
            yield f"stage_blocks.{place}.m.{inner}", name
        place += bool(parts[True])
        if number < len(spec.subsamples):
            for extra in range(2):
                yield f"stage_blocks.{place + extra}", f"blocks.{last + 2 * number + extra}"
            place += 2
