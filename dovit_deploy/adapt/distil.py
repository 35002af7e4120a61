"""How does an adapted network learn to do without what has stopped? From its dense answers, on unlabelled images.

The layers behind the first gate, the decode head, gates and lenses are trained as `dovit train` trains: in most steps
tokens stop by random quotas. The target is what the dense network answers, which stays as it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from dovit_deploy.adapt.network import adapted_checkpoint
from dovit_deploy.adapt.report import DistilEntry
from dovit_deploy.adapt.run_folder import DistilFolder, DistilRecord, folder_of, network_digest, refuse_begun
from dovit_deploy.adapt.unlabelled import UnlabelledSet
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.errors import UsageError
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.parts import QueryHead
from dovit_deploy.families.registry import spec_at_size, state_at_size
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.interruption import stop_requests
from dovit_deploy.train.config import Augmentation, Distillation, Scaling, TokenPassing, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.initialise import with_step_seconds
from dovit_deploy.train.loop import Trainer, TrainingProgress, starting_model
from dovit_deploy.train.rates import is_trained
from dovit_deploy.train.recipe import PhaseChoice, Recipe, run_config
from dovit_deploy.train.start import Start
from dovit_deploy.train.target import TeacherAnswers
from dovit_deploy.train.teacher import frozen_network

MinutesClock = Literal["wall", "processor"]
CLOCKS: tuple[MinutesClock, ...] = get_args(MinutesClock)

TEACHER_SHARE = 4 / 3
"""A step beside one without a teacher: that runs forward alone, a third of forward and backward."""
SMALL, LARGE = 4, 2
"""Crops in a batch of the first phase, and whole inputs in one of the second."""
SAVED_SHARE, SAVE_SECONDS = 0.1, (10.0, 120.0)
"""Of the minutes, between two states on the disk; and at least and at most so many seconds."""
SMALLER_CROP = 0.72
"""Of each side, in the first phase."""


@dataclass(frozen=True)
class DistilRequest:
    """A distillation as the user asks for it."""

    minutes: float | None
    """None: as the run that goes on has it; likewise `seed` and `clock`."""
    seed: int | None = None
    clock: MinutesClock | None = None
    resume: bool = False
    overwrite: bool = False


def refuse_undistillable(spec: VisionTransformerSpec, source: str) -> None:
    """Raise UsageError for a network that training cannot run."""
    if isinstance(spec.head, QueryHead):
        raise UsageError(
            f"--minutes: {source} answers by queries, and such a network is not fine-tuned here; "
            "leave --minutes out, and its gates are fitted to it as it is"
        )
    if spec.pooled_keys:
        raise UsageError(
            "--context pooled: a network that is fine-tuned learns to do without what has stopped, and sees nothing of "
            "it; leave out --context pooled, or --minutes and --resume"
        )


def distil_config(
    spec: VisionTransformerSpec, scaling: Scaling, *, minutes: float, seed: int, clock: MinutesClock
) -> TrainConfig:
    """The run that fine-tunes the network of `spec`; raises ConfigError for one that cannot be."""
    crop = tuple(max(1, round(SMALLER_CROP * side)) * spec.patch for side in spec.grid)
    recipe = Recipe(
        minutes=minutes,
        clock=clock,
        seed=seed,
        phases=(PhaseChoice(until=0.6, crop=(crop[0], crop[1]), batch=SMALL), PhaseChoice(until=1.0, batch=LARGE)),
        augmentation=Augmentation(scale=(0.75, 1.75)),
        passing=TokenPassing(mode="quota", start=0.0, share=0.8, quotas=((0.1, 0.6),)),
        # Where gates answer, the head reads nothing of what has stopped, whose features may be anything.
        distillation=Distillation(teacher="checkpoint", features=0.0 if spec.answer == "gate" else 0.5, pixels=1.0),
        # Four times as much changed 7.5 % of the dense answer's pixels within forty steps, this 3 %.
        learning_rate=2e-5,
        layer_decay=0.85,
        gate_rate=5e-5,
        frozen_layers=spec.gates[0].layer,
        weight_decay=0.02,
        warm_up=0.06,
        average_decay=0.99,
        auxiliary_weight=0.13,
        detach_aux=False,
        freeze_norms=True,
        validations=0,
        save_seconds=min(SAVE_SECONDS[1], max(SAVE_SECONDS[0], SAVED_SHARE * 60.0 * minutes)),
    )
    return run_config(recipe, spec, scaling=scaling)


@dataclass(frozen=True)
class Distillery:
    """A distillation that is ready to begin or to go on."""

    export: ExportPlan
    dense: Checkpoint
    spec: VisionTransformerSpec
    """Of the network with gates, at the size of the graphs."""
    data: UnlabelledSet
    folder: DistilFolder

    @classmethod
    def prepare(
        cls,
        export: ExportPlan,
        dense: Checkpoint,
        data: UnlabelledSet,
        request: DistilRequest,
        *,
        remark: Callable[[str], None],
    ) -> Distillery:
        """Begin a folder for the run, or open the one to go on with.

        Args:
            export: of the network with gates.
            dense: the network as it was given.
            data: what it learns from.
            request: how long, and whether it goes on.
            remark: called with a line about what goes on.

        Raises:
            UsageError: there is a run already, or the one that goes on began with something else; or the minutes are
                too few to see each image once.
            InputError: what is to go on cannot be read.
        """
        spec = export.manifest.spec
        assert isinstance(spec, VisionTransformerSpec)
        network, path = network_digest(dense), folder_of(export.output)
        if request.resume and path.exists():
            folder = DistilFolder.open(path)
            _refuse_other(folder.record, request, spec, network, data)
            return cls(export, dense, spec, data, folder)
        if request.minutes is None:
            raise UsageError(f"--resume: there is nothing to go on with at {path}; begin with --minutes M")
        if request.resume:
            remark(f"nothing was kept at {path} yet; it begins")
        refuse_begun(path, overwrite=request.overwrite)
        found = dense.preprocessing
        config = distil_config(
            spec,
            Scaling(mean=found.mean, std=found.std),
            minutes=request.minutes,
            seed=request.seed or 0,
            clock=request.clock or "wall",
        )
        config = _timed(config, data)
        record = DistilRecord(network=network, images=len(data), digest=data.digest, config=config)
        folder = DistilFolder.create(path, record, overwrite=request.overwrite)
        return cls(export, dense, spec, data, folder)

    @property
    def config(self) -> TrainConfig:
        """Of the run."""
        return self.folder.record.config

    def distilled(
        self, parts: dict[str, Tensor], *, report: Callable[[TrainingProgress], None]
    ) -> tuple[Checkpoint, DistilEntry]:
        """Train until the minutes are over; the moving average as a checkpoint, and what was done.

        Args:
            parts: gates and lenses before the first step.
            report: called after every step.

        Raises:
            Interrupted: the user asked to stop; the state is saved.
            CheckError: the gradient is not finite.
        """
        state = state_at_size(self.dense.state, self.dense.spec, self.spec.size)
        config, dense = self.config, spec_at_size(self.dense.spec, self.spec.size)
        trainer = Trainer(
            config,
            TrainingData(self.data, None),
            None,
            self.folder.run,
            target=TeacherAnswers.of(self.spec.classes),
            start=Start(self.spec, {**state, **parts}, self.dense),
            teacher=frozen_network(dense, state, config),
        )
        trainer.resume()
        with stop_requests() as stop:
            trainer.run(stopped=stop.is_set, report=report)
        made = {name: value.detach().cpu().contiguous() for name, value in trainer.average.state_dict().items()}
        # What is not trained stays as it was given, bit for bit: folding the norms of its training form would round.
        kept = {name: value for name, value in state.items() if not is_trained(name, config)}
        checkpoint = replace(adapted_checkpoint(self.dense, self.spec, {}), state={**deployed(made), **kept})
        return checkpoint, self._entry(trainer)

    def _entry(self, trainer: Trainer) -> DistilEntry:
        losses = [row["loss"] for row in self.folder.run.rows() if "loss" in row]
        # A tenth of the steps, since each sees other images and other quotas.
        some = max(1, len(losses) // 10)
        return DistilEntry(
            minutes=self.config.minutes or 0.0,
            clock=self.config.clock,
            seed=self.config.seed,
            images=len(self.data),
            steps=trainer.step,
            seconds=trainer.seconds,
            loss_first=sum(losses[:some]) / some,
            loss_last=sum(losses[-some:]) / some,
        )


def _timed(config: TrainConfig, data: UnlabelledSet) -> TrainConfig:
    """`config` with its precision resolved; raises UsageError where the minutes are too few to see each image once."""
    config, seconds = with_step_seconds(config, starting_model(config, None))
    steps = -(-len(data) // config.phases[0].batch)
    needed, minutes = TEACHER_SHARE * steps * seconds / 60, config.minutes or 0.0
    if needed > minutes:
        raise UsageError(
            f"--minutes {minutes:g}: to see {data.named} once takes about {needed:.2g} minutes on this machine; "
            "give more minutes, or fewer images (--limit)"
        )
    return config


def _refuse_other(
    record: DistilRecord, request: DistilRequest, spec: VisionTransformerSpec, network: str, data: UnlabelledSet
) -> None:
    """Raise UsageError where a run is to go on with something else than it began with."""
    config = record.config
    if network != record.network:
        raise UsageError(
            "--resume: the run began with another network, mean or std; give that one, or begin again: --overwrite"
        )
    if (data.digest, len(data)) != (record.digest, record.images):
        raise UsageError(
            f"--resume: {data.name} has other images than the run began with ({record.images} to learn from); give the "
            "same IMAGES, and what decides which are learnt from (--limit, --max-disagree, --unit), or begin again: "
            "--overwrite"
        )
    if spec != config.spec:
        raise UsageError("--resume: the run began with other --gates, --answer or --size; leave them as they were")
    own = {"minutes": config.minutes, "seed": config.seed, "clock": config.clock}
    for name, value in own.items():
        given = getattr(request, name)
        if given is not None and given != value:
            raise UsageError(f"--resume: --{name} is {value} in the run and {given} is given; leave it out")
