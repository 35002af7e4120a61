"""What each step sees, made ahead by worker processes if wished: a batch depends on the seed and its plan alone."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dovit_deploy import packages
from dovit_deploy.errors import DatasetError, DovitError
from dovit_deploy.train.augment import random_view
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.material import Material


@dataclass(frozen=True)
class Plan:
    """One step's batch before it is made."""

    step: int
    phase: Phase
    pictures: tuple[int, ...]
    """Numbers of images of the data set."""
    scenes: tuple[int, ...]
    """Numbers of rendered scenes."""
    seen: tuple[int, int]
    """Images and scenes shown once this step is done."""


@dataclass(frozen=True)
class Batch:
    """`pixels` (B, 3, h, w), `labels` (B, h, w) uint8 and `origin` (B, 2): where each crop's grid lies."""

    plan: Plan
    pixels: Tensor
    labels: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Fault:
    """An error of a worker process, in words: exceptions that cross processes lose their message."""

    message: str


class Planner:
    """Decides which images a step sees: every image once per epoch, scenes one after the other."""

    def __init__(self, config: TrainConfig, images: int, *, seen: int = 0, scenes: int = 0) -> None:
        self.config, self.images, self.seen, self.scenes = config, images, seen, scenes

    def plan(self, step: int, progress: float) -> Plan:
        """The batch of `step`, at `progress` in [0, 1]."""
        phase = self.config.phase_at(progress)
        rng = np.random.default_rng((self.config.seed, 3, step))
        rendered = phase.batch if not self.images else int(rng.binomial(phase.batch, phase.rendered))
        pictures = tuple(self.next_index() for _ in range(phase.batch - rendered))
        scenes = tuple(range(self.scenes, self.scenes + rendered))
        self.scenes += rendered
        return Plan(step, phase, pictures, scenes, (self.seen, self.scenes))

    def next_index(self) -> int:
        """Every image once per epoch, in an order of the epoch's own."""
        epoch, place = divmod(self.seen, self.images)
        self.seen += 1
        order = np.random.default_rng((self.config.seed, 2, epoch)).permutation(self.images)
        return int(order[place])


class BatchMaker:
    """Plan -> batch; picklable, so that worker processes can hold one. Looks like a data set to PyTorch's loader."""

    def __init__(self, config: TrainConfig, material: Material) -> None:
        self.config, self.material = config, material

    def batch(self, plan: Plan) -> Batch:
        """Decode or render, then augment; raises DatasetError naming the file that cannot be used."""
        config, spec = self.config, self.config.spec
        rng = np.random.default_rng((config.seed, 1, plan.step))
        free = np.array(spec.grid) - np.array(plan.phase.crop) // spec.patch
        views, origins = [], []
        samples = (*map(self.material.picture, plan.pictures), *map(self.material.scene, plan.scenes))
        for sample in samples:
            view = random_view(
                sample,
                size=spec.size,
                crop=plan.phase.crop,
                ranges=config.augmentation,
                scaling=config.scaling,
                rng=rng,
            )
            views.append(view)
            origins.append(np.rint(np.array(view.place) * free).astype(np.int64))
        pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
        labels = torch.from_numpy(np.stack([view.label for view in views]))
        return Batch(plan, pixels, labels, torch.from_numpy(np.stack(origins)))

    def __getitem__(self, plan: Plan) -> Batch | Fault:
        try:
            return self.batch(plan)
        except DovitError as error:
            return Fault(str(error))


def batches(maker: BatchMaker, plans: Iterable[Plan], *, workers: int) -> Iterator[Batch]:
    """The batches of `plans`, in their order.

    Raises:
        DatasetError: a file cannot be used.
    """
    if not workers:
        yield from map(maker.batch, plans)
        return
    # PyTorch's loader asks only for `__getitem__` of what a sampler yields.
    loader: DataLoader[Batch | Fault] = DataLoader(
        maker,  # type: ignore[arg-type]
        batch_size=None,
        sampler=plans,
        num_workers=workers,
        worker_init_fn=_quiet,
    )
    for batch in loader:
        if isinstance(batch, Fault):
            raise DatasetError(batch.message)
        yield batch


def _quiet(worker: int) -> None:
    """A worker computes in one thread, leaves Ctrl-C to the training process and ends when that one says so."""
    del worker
    packages.opencv().setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
