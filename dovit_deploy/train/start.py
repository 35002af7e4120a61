"""What does `--init` start a run from? A trained network with gates added, or a backbone that gets a head as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dovit_deploy.checkpoints.backbone import Backbone, backbone_from_path
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.errors import ConfigError, HeadMissing
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.parts import LinearHead, QueryHead
from dovit_deploy.families.registry import spec_at_size, state_at_size
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.train.network import (
    OPEN_WITH_BACKBONE,
    OPEN_WITH_INIT,
    NetworkChoice,
    evovit_from_trained,
    head_on_backbone,
    spec_from_trained,
)
from dovit_deploy.train.rates import GATE_PARTS

Given = Checkpoint | Backbone
"""What lies at the path of `--init`."""


@dataclass(frozen=True)
class Start:
    """What a run starts from: the network, and trained weights for it (in deployment form), gates perhaps missing."""

    spec: AnySpec
    state: dict[str, Tensor]
    """Without a head where `given` is a backbone."""
    given: Given


def given_at(path: Path, config: str | None) -> Given:
    """Understand what lies at `path`, a network with a head or a backbone without one.

    Raises:
        DovitError: whatever `checkpoint_from_path` finds wrong with it.
    """
    try:
        return checkpoint_from_path(path, config=config)
    except HeadMissing:
        return backbone_from_path(path, config=config)


def start_from_path(
    path: Path, choice: NetworkChoice, *, config: str | None, size: tuple[int, int], classes: int
) -> Start:
    """Understand the weights of `--init`, at the run's input size and with the run's gates.

    Raises:
        ConfigError: they have another number of classes, the choice contradicts them, or their gates cannot be trained.
        DovitError: whatever `checkpoint_from_path` finds wrong with them.
    """
    given = given_at(path, config)
    if isinstance(given, Backbone):
        _refuse_stated(choice, OPEN_WITH_BACKBONE, "backbone")
        whole: AnySpec = given.spec(classes=classes, head=head_on_backbone(choice, given.values), taps=choice.taps)
    else:
        whole = given.spec
        refuse_other_task(whole, classes, f"--init {path}", instead=", its backbone alone, or train from scratch")
        is_vit = isinstance(whole, VisionTransformerSpec)
        _refuse_stated(choice, OPEN_WITH_INIT if is_vit else frozenset({"size"}), "checkpoint")
    chosen = spec_at_size(whole, choice.size or size)
    if isinstance(chosen, VisionTransformerSpec):
        chosen = spec_from_trained(chosen, choice, source=str(path))
        if choice.family == "evovit":
            chosen = evovit_from_trained(chosen, choice.ratio, source=str(path))
    return start_at(chosen, whole, given)


def start_again(path: Path, spec: AnySpec, *, config: str | None) -> Start:
    """The weights of `--init` for a run that has the network `spec`; raises as `start_from_path`."""
    given = given_at(path, config)
    if not isinstance(given, Backbone):
        return start_at(spec, given.spec, given)
    if not isinstance(spec, VisionTransformerSpec | EvoDeitSpec):
        raise ConfigError(f"--init {path}: a backbone; the run's network is {spec.family}")
    return start_at(spec, given.spec(classes=spec.classes, head=LinearHead()), given)


def start_at(spec: AnySpec, whole: AnySpec, given: Given) -> Start:
    """`given`, weights of the network `whole`, for `spec`, which has its layers at perhaps another size."""
    state = state_at_size(given.state, whole, spec.size)
    if isinstance(whole, VisionTransformerSpec) and isinstance(spec, VisionTransformerSpec | EvoDeitSpec):
        state = _state_of(spec, state, whole)
    return Start(spec, state, given)


def refuse_other_task(spec: AnySpec, classes: int, option: str, *, instead: str = "") -> None:
    """Raise ConfigError unless `spec`, of the checkpoint that `option` gives, is a segmenter of so many classes.

    `instead`: what else than another checkpoint can be given.
    """
    if not isinstance(spec, VisionTransformerSpec | EvoDeitSpec | StvitSegmenterSpec) or spec.task != "segmentation":
        raise ConfigError(f"{option}: a {spec.family} for {spec.task}; training starts from a segmenter")
    if isinstance(spec, VisionTransformerSpec) and spec.pooled_keys:
        raise ConfigError(
            f"{option}: a network whose layers see what has stopped (context: pooled), which is not trained here; "
            "give the one that it was made of"
        )
    if isinstance(spec.head, QueryHead):
        raise ConfigError(f"{option}: a network whose queries answer ({spec.family}), which is not trained here")
    if spec.classes != classes:
        raise ConfigError(
            f"{option}: a network of {spec.classes} classes, the data set has {classes}; "
            f"give a checkpoint of these classes{instead}"
        )


def _refuse_stated(choice: NetworkChoice, open_keys: frozenset[str], whose: str) -> None:
    stated = sorted(choice.model_fields_set - open_keys)
    if stated:
        raise ConfigError(f"network.{stated[0]} is the {whose}'s affair when --init is given; take it out")


def _state_of(
    chosen: VisionTransformerSpec | EvoDeitSpec, state: dict[str, Tensor], spec: VisionTransformerSpec
) -> dict[str, Tensor]:
    """What of `state`, weights of `spec`, the network `chosen` has: its layers, and what belongs to gates in both."""
    has_lenses = {"lenses": False, "tap_lenses": False}
    if isinstance(chosen, VisionTransformerSpec):
        has_lenses = {"lenses": chosen.answer == "lens", "tap_lenses": chosen.tap_answer == "lens"}
    renumbered = {str(spec.gates.index(gate)): number for number, gate in enumerate(chosen.gates) if gate in spec.gates}
    taken: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        number = inner.partition(".")[0]
        if part == "blocks" and int(number) >= chosen.depth:
            continue
        if part in GATE_PARTS:
            if number not in renumbered or not has_lenses.get(part, True):
                continue
            name = f"{part}.{renumbered[number]}.{inner.removeprefix(f'{number}.')}"
        taken[name] = tensor
    return taken
