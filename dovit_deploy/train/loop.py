"""The training loop: steps until the budget is spent, a moving average of the weights, exact resumption."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.errors import CheckError, ConfigError, Interrupted
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.printing import plural
from dovit_deploy.train.batches import Batch, BatchMaker, Plan, Planner, batches
from dovit_deploy.train.config import SKIP_STREAM, THRESHOLD_STREAM, Stopping, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.fitted import fit_gates
from dovit_deploy.train.forward import TrainableNetwork
from dovit_deploy.train.initialise import (
    adapt_norms,
    device_from_name,
    initialise,
    load_start,
    trainable_model,
)
from dovit_deploy.train.objective import Objective
from dovit_deploy.train.rates import is_trained, optimiser_from_groups, rate_groups, set_training
from dovit_deploy.train.start import Start
from dovit_deploy.train.state import RunFolder, RunState
from dovit_deploy.train.target import Target
from dovit_deploy.train.validation import validate

TIMED = 4
"""Batches after which it is known how long a fit to many takes."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands after a step."""

    step: int
    progress: float
    """Share of the run that is done."""
    loss: float
    """Of the decode head, smoothed."""
    miou: float | None
    """On the validation images, in percent, when last measured."""
    steps_per_s: float
    """Since the run began or went on, without what was measured in between."""


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards `model`, parameters and batch-norm statistics alike; faster in the first steps."""
    # With the full decay the average would consist of initial weights for hundreds of steps.
    decay = min(decay, (1 + step) / (10 + step))
    mine, theirs = average.state_dict(), model.state_dict()
    for name, value in theirs.items():
        if value.is_floating_point():
            mine[name].lerp_(value, 1 - decay)
        else:
            mine[name].copy_(value)


def starting_model(config: TrainConfig, start: Start | None) -> TrainableNetwork:
    """The network of a run before its first step, on the run's device."""
    model = trainable_model(config.spec)
    initialise(model, config.seed)
    if start is not None:
        load_start(model, start.state)
    model.to(device_from_name(config.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class Trainer:
    """One run.

    Args:
        config: the run; its precision is resolved.
        training_data: what it learns from.
        validation: what it is validated at on; may be absent.
        folder: where log and state go.
        target: what it learns to answer.
        start: weights to start from.
        teacher: the network of `--teacher`, frozen, on the run's device.
        clock: seconds, for tests; None: the one that `config` names.
    """

    def __init__(
        self,
        config: TrainConfig,
        training_data: TrainingData,
        validation: Dataset | None,
        folder: RunFolder,
        *,
        target: Target,
        start: Start | None = None,
        teacher: TrainableNetwork | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        # On a shared machine the wall clock counts what others do; the processor clock counts this process alone.
        self.clock = clock or (time.perf_counter if config.clock == "wall" else time.process_time)
        self.config, self.training_data, self.validation, self.folder = config, training_data, validation, folder
        if config.threads:
            torch.set_num_threads(config.threads)
        self.maker = BatchMaker(config, training_data)
        self.model = starting_model(config, start)
        self.device = next(self.model.parameters()).device
        self.step, self.seen, self.scenes, self.seconds = 0, 0, 0, 0.0
        if start is not None:
            first = next(iter(self.plans(None)))
            adapt_norms(self.model, start.state, self.maker.batch(first).pixels.to(self.device))
        # After the norms, whose adaptation is no training.
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(is_trained(name, config))
        self.average = self._frozen(self.model)
        self.teacher = self._frozen(self.model) if start and config.distillation.teacher == "init" else teacher
        groups = rate_groups(self.model, config)
        self.shares = [group.share for group in groups]
        self.optimiser = optimiser_from_groups(groups, config)
        self.objective = Objective(config, target.on(self.device))
        self.miou: float | None = None
        self._validated: int | None = None

    def _frozen(self, model: TrainableNetwork) -> TrainableNetwork:
        return copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def _learns_from_itself(self) -> bool:
        """The teacher is a copy of the run's own network; another one stays in its file."""
        return self.config.distillation.teacher != "checkpoint"

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.config.progress_at(step=self.step, seconds=self.seconds)

    def resume(self) -> bool:
        """Take up the state on the disk; False when there is none."""
        state = self.folder.load()
        if state is None:
            return False
        self.model.load_state_dict(state.model)
        self.average.load_state_dict(state.average)
        self.optimiser.load_state_dict(state.optimiser)
        if state.teacher is not None:
            self.teacher = self._frozen(self.model)
            self.teacher.load_state_dict(state.teacher)
        self.step, self.seen, self.scenes, self.seconds = state.step, state.seen, state.scenes, state.seconds
        self.folder.forget_after(self.step)
        self.miou = next((row["miou"] for row in reversed(self.folder.rows()) if "miou" in row), None)
        return True

    def save(self) -> None:
        """Put the whole state on the disk."""
        self.folder.save(
            RunState(
                step=self.step,
                seen=self.seen,
                scenes=self.scenes,
                seconds=self.seconds,
                model=self.model.state_dict(),
                average=self.average.state_dict(),
                optimiser=self.optimiser.state_dict(),
                teacher=self.teacher.state_dict() if self.teacher is not None and self._learns_from_itself else None,
            )
        )

    def run(
        self,
        *,
        stop_after: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
        report: Callable[[TrainingProgress], None] = lambda now: None,
        remark: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Train until the budget is spent, or until step `stop_after`; the state is saved at the end.

        Raises:
            ConfigError: gates are to be fitted to more batches than the run has time for.
            Interrupted: `stopped` says so after a step, when the state is saved too, or before the first.
        """
        began, saved, smooth = self.clock() - self.seconds, self.seconds, float("nan")
        if self.step == 0:
            self.fit(stopped, remark)
        first = (self.step, self.seconds)

        def now() -> TrainingProgress:
            rate = (self.step - first[0]) / max(self.seconds - first[1], 1e-9)
            return TrainingProgress(self.step, self.progress, smooth, self.miou, rate)

        def go_on() -> bool:
            report(now())
            return not stopped()

        for batch in batches(self.maker, self.plans(stop_after), workers=self.config.workers):
            validated = int(self.progress * self.config.validations)
            row = self.train_step(batch)
            self.seconds = self.clock() - began
            smooth = row["loss"] if np.isnan(smooth) else 0.95 * smooth + 0.05 * row["loss"]
            self.folder.log({"step": self.step, "seconds": round(self.seconds, 2), **row})
            # Before the state is saved, so that a run killed in between validates again.
            if int(self.progress * self.config.validations) > validated:
                paused = self.clock()
                self.validate(go_on)
                # What is measured is no training: it takes nothing from the minutes.
                began += self.clock() - paused
            if self.seconds - saved > self.config.save_seconds:
                self.save()
                saved = self.seconds
            if not go_on():
                self.save()
                raise Interrupted(f"stopped after step {self.step}; the same command with --resume goes on")
            if self.progress >= 1.0:
                break
        self.save()

    def fit(
        self, stopped: Callable[[], bool] = lambda: False, remark: Callable[[str], None] = lambda text: None
    ) -> None:
        """Fit gates and lenses to the first batches, as many as the recipe says, as the network is.

        Raises:
            Interrupted: `stopped` says so before a batch; there is no state yet.
            ConfigError: the batches would take longer than the run.
        """
        config, began = self.config, self.clock()
        if not config.fitted or not isinstance(self.model, VisionTransformer):
            return
        whole = None if config.minutes is None else 60.0 * config.minutes

        def first() -> Iterator[Batch]:
            for number, plan in enumerate(islice(self.plans(None), config.fitted)):
                if stopped():
                    raise Interrupted("stopped before the first step; the same command with --resume begins again")
                # The first ones also pay for what is made once.
                if whole and number == TIMED and (self.clock() - began) * config.fitted / number > whole:
                    raise ConfigError(
                        f"fitted = {config.fitted}: {config.fitted} batches take longer than the run of "
                        f"{config.minutes:g} minutes; lower it, and start again with another -o"
                    )
                yield self.maker.batch(plan)

        fit_gates(self.model, first(), config, self.objective.target.weights)
        self.average.load_state_dict(self.model.state_dict())
        taken = self.clock() - began
        if whole and taken > config.warm_up * whole > 0:
            shown, warm_up = plural(config.fitted, "batch", "batches"), config.warm_up * whole
            remark(f"fitting gates to {shown} took {taken:.0f} s of the run, more than its warm-up ({warm_up:.0f} s)")

    def plans(self, stop_after: int | None) -> Iterator[Plan]:
        """The plans of the steps to come; made ahead, they take the progress of a timed run as it is then."""
        planner = Planner(self.config, self.training_data.images, seen=self.seen, scenes=self.scenes)
        step = self.step
        while stop_after is None or step < stop_after:
            progress = self.config.progress_at(step=step, seconds=self.seconds)
            if progress >= 1.0:
                return
            yield planner.plan(step, progress)
            step += 1

    def validate(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Log the average's mIoU on the validation images, or on as many of them as there is time for.

        Args:
            go_on: called after every image; nothing is logged when it says False.
        """
        if self.validation is None:
            return
        began, seconds, unasked = self.clock(), self.config.validation_seconds, True

        def in_time(done: int) -> bool:
            del done
            nonlocal unasked
            unasked = go_on()
            return unasked and (seconds is None or self.clock() - began < seconds)

        result = validate(
            self.average,
            self.validation,
            passing=None,
            scaling=self.config.scaling,
            bfloat16=self.config.bfloat16,
            most=self._validated,
            go_on=in_time,
        )
        if not unasked:
            return
        # The same images every time, so that the run can be followed.
        self._validated = len(result.kept)
        self.miou = result.miou
        self.folder.log({"step": self.step, "miou": result.miou, "pixel_accuracy": result.pixel_accuracy})

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """One step of the optimiser; returns what is logged."""
        config, progress = self.config, self.progress
        stopping = config.stopping_at(progress, np.random.default_rng((config.seed, THRESHOLD_STREAM, self.step)))
        # The average knows the dense task best just before tokens stop for the first time.
        if stopping is not None and config.distillation.teacher == "average" and self.teacher is None:
            self.teacher = self._frozen(self.average)
        rate = config.learning_rate_at(progress)
        for group, share in zip(self.optimiser.param_groups, self.shares, strict=True):
            group["lr"] = rate * share
        set_training(self.model, config)
        # None instead of zeros: parameters without a gradient in this step are then skipped, weight decay included.
        self.optimiser.zero_grad(set_to_none=True)
        teacher = self.average if config.distillation.teacher == "current" else self.teacher
        skips = np.random.default_rng((config.seed, SKIP_STREAM, self.step))
        loss, row = self.objective(self.model, batch, stopping=stopping, teacher=teacher, skips=skips)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise CheckError(
                f"step {self.step}: the gradient is not finite; lower learning_rate and start again "
                "(the state before is kept)"
            )
        self.optimiser.step()
        update_average(self.average, self.model, self.step, config.average_decay)
        self.step += 1
        self.seen, self.scenes = batch.plan.seen
        return {"rate": rate, **stopping_row(stopping), "norm": float(norm), **row}


def stopping_row(stopping: Stopping | None) -> dict[str, float | list[float]]:
    """What the log says of what stopped tokens in a step; a threshold of 1 stops nothing."""
    if isinstance(stopping, tuple):
        return {"quotas": [round(share, 4) for share in stopping]}
    return {"threshold": 1.0 if stopping is None else stopping}
