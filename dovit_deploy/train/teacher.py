"""Which network does a run learn from beside the labels? That of another checkpoint (`--teacher`), dense and frozen.

It may be deeper than the run's own network and trained at another input size; it answers the run's own crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.checkpoints.backbone import Backbone
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.registry import spec_at_size
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.train.config import Scaling, TrainConfig
from dovit_deploy.train.forward import TrainableNetwork
from dovit_deploy.train.initialise import device_from_name, load_start, trainable_model
from dovit_deploy.train.network import NetworkChoice, spec_from_trained
from dovit_deploy.train.start import given_at, refuse_other_task, start_at
from dovit_deploy.train.state import GivenFacts, given_facts


@dataclass(frozen=True)
class Teacher:
    """The network of `--teacher` at the run's input size, without its gates, on the run's device."""

    network: TrainableNetwork
    given: Checkpoint


def teacher_from_path(path: Path, config: TrainConfig, classes: tuple[ClassEntry, ...]) -> Teacher:
    """Understand the checkpoint at `path` as a teacher of the run `config`, whose data set has `classes`.

    Raises:
        ConfigError: it is no segmenting vision transformer with a head, or its classes, patches, scaling of pixels
            or, where features are compared, width are not the run's.
        DovitError: whatever `checkpoint_from_path` finds wrong with it.
    """
    option, given = f"--teacher {path}", given_at(path, None)
    if isinstance(given, Backbone):
        raise ConfigError(f"{option}: a backbone without a head, which answers nothing; give a trained network")
    whole = given.spec
    refuse_other_task(whole, config.spec.classes, option)
    if not isinstance(config.spec, VisionTransformerSpec | EvoDeitSpec):
        raise ConfigError(f"{option}: a run of {config.spec.family} cannot learn from it; vision transformers can")
    if not isinstance(whole, VisionTransformerSpec):
        raise ConfigError(f"{option}: a {whole.family}; a teacher is a vision transformer (Segmenter, SETR, DoViT)")
    _refuse_other_classes(given.classes, classes, option)
    _refuse_other_inputs(given, config, option)
    _refuse_other_width(whole, config, option)
    # It answers densely: what its gates say is not asked.
    dense = NetworkChoice(gates=(), answer="feature")
    spec = spec_from_trained(spec_at_size(whole, config.spec.size), dense, source=str(path))
    return Teacher(frozen_network(spec, start_at(spec, whole, given).state, config), given)


def frozen_network(spec: AnySpec, state: dict[str, Tensor], config: TrainConfig) -> TrainableNetwork:
    """The network of `spec` with the weights `state`, in deployment form, to be asked and not trained, on the device of
    the run `config`."""
    network = trainable_model(spec)
    load_start(network, state)
    network.to(device_from_name(config.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def _refuse_other_classes(own: tuple[ClassEntry, ...], classes: tuple[ClassEntry, ...], option: str) -> None:
    """Raise ConfigError at the first class whose name or colour differs."""
    for number, (one, wanted) in enumerate(zip(own, classes, strict=True)):
        if one != wanted:
            raise ConfigError(
                f"{option}: class {number} is {one.name!r} {list(one.color)}, the data set's is {wanted.name!r} "
                f"{list(wanted.color)}; a teacher has the same classes, in the same order and colours"
            )


def _refuse_other_inputs(given: Checkpoint, config: TrainConfig, option: str) -> None:
    """Raise ConfigError where the run's crops are not what the teacher takes."""
    patch, own = config.spec.patch, Scaling(mean=given.preprocessing.mean, std=given.preprocessing.std)
    if given.spec.patch != patch:
        raise ConfigError(f"{option}: has patches of {given.spec.patch} pixels, the run's network of {patch}")
    if own != config.scaling:
        raise ConfigError(
            f"{option}: takes pixels of mean {own.mean} and deviation {own.std}, "
            f"the run's network {config.scaling.mean} and {config.scaling.std}; they see the same crops"
        )


def _refuse_other_width(spec: VisionTransformerSpec, config: TrainConfig, option: str) -> None:
    """Raise ConfigError where features of different widths were to be compared."""
    own = config.spec
    width = own.head_width if isinstance(own, VisionTransformerSpec) else own.width
    if config.distillation.features and spec.head_width != width:
        raise ConfigError(
            f"{option}: its head reads {spec.head_width} channels, the run's {width}; "
            "features = 0 in [distillation] compares the answers alone"
        )


def refuse_teacher_flag(path: Path | None, facts: GivenFacts | None) -> None:
    """Raise UsageError if `--teacher` is given to a run that went on without, by its record, or the other way round.

    Asked before recipes are compared: the flag is a key of theirs, too, which nobody has to know.
    """
    if (path is None) != (facts is None):
        raise _other_teacher(path, facts)


def refuse_other_teacher(path: Path | None, given: Teacher | None, facts: GivenFacts | None) -> None:
    """Raise UsageError if `--teacher`, at `path`, is not what the run that goes on has learnt from, by its record."""
    if given_facts(None if given is None else given.given) != facts:
        raise _other_teacher(path, facts)


def _other_teacher(path: Path | None, facts: GivenFacts | None) -> UsageError:
    # Its weights are not among the run's own, so that it has to be given again.
    own = "without --teacher" if facts is None else f"with --teacher, the checkpoint {facts.source}"
    other = "" if path is None else f", not with {path}"
    return UsageError(f"--resume: the run began {own}{other}; give what it began with")
