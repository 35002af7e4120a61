"""What does each step see? Plans decide which images, views augment them.

Batches are made ahead by worker processes if wished. A batch depends on the seed and its plan alone,
whoever makes it and when.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dovit_deploy import packages
from dovit_deploy.datasets.dataset import IGNORE, Sample
from dovit_deploy.errors import DatasetError, DovitError
from dovit_deploy.train.config import ORDER_STREAM, PLAN_STREAM, VIEW_STREAM, Augmentation, Phase, Scaling, TrainConfig
from dovit_deploy.train.data import TrainingData


@dataclass(frozen=True)
class Plan:
    """One step's batch before it is made."""

    step: int
    phase: Phase
    images: tuple[int, ...]
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
        rng = np.random.default_rng((self.config.seed, PLAN_STREAM, step))
        # Drawn for each batch, so that a share that is no whole number of images holds on average.
        rendered = phase.batch if not self.images else int(rng.binomial(phase.batch, phase.rendered))
        images = tuple(self.next_index() for _ in range(phase.batch - rendered))
        scenes = tuple(range(self.scenes, self.scenes + rendered))
        self.scenes += rendered
        return Plan(step, phase, images, scenes, (self.seen, self.scenes))

    def next_index(self) -> int:
        """Every image once per epoch, in an order of the epoch's own."""
        epoch, position = divmod(self.seen, self.images)
        self.seen += 1
        order = np.random.default_rng((self.config.seed, ORDER_STREAM, epoch)).permutation(self.images)
        return int(order[position])


class BatchMaker:
    """Plan -> batch; picklable, so that worker processes can hold one. Looks like a data set to PyTorch's loader."""

    def __init__(self, config: TrainConfig, training_data: TrainingData) -> None:
        self.config, self.training_data = config, training_data

    def batch(self, plan: Plan) -> Batch:
        """Decode or render, then augment; raises DatasetError naming the file that cannot be used."""
        config, spec = self.config, self.config.spec
        rng = np.random.default_rng((config.seed, VIEW_STREAM, plan.step))
        free = np.array(spec.grid) - np.array(plan.phase.crop) // spec.patch
        views, origins = [], []
        samples = (*map(self.training_data.image, plan.images), *map(self.training_data.scene, plan.scenes))
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
            origins.append(np.rint(np.array(view.position) * free).astype(np.int64))
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
        # Raised here, in the process that the user sees.
        if isinstance(batch, Fault):
            raise DatasetError(batch.message)
        yield batch


def _quiet(worker: int) -> None:
    """A worker computes in one thread, leaves Ctrl-C to the training process and ends when that one says so."""
    del worker
    # Workers share the cores with the training itself.
    packages.opencv().setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# One random view of a labelled image: a warp that flips, scales, stretches and crops, then a change of colour.


@dataclass(frozen=True)
class View:
    """What the network is trained on.

    `pixels` (3, h, w) float32 normalised, `label` (h, w) uint8; `position` says where in the augmented image the crop
    lies, row and column each in [0, 1], 0 at the top or left edge and 1 at the bottom or right edge.
    """

    pixels: NDArray[np.float32]
    label: NDArray[np.uint8]
    position: tuple[float, float]


def normalised(rgb: NDArray[np.uint8], scaling: Scaling) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    mean, std = np.array(scaling.mean, np.float32), np.array(scaling.std, np.float32)
    pixels: NDArray[np.float32] = (rgb.astype(np.float32) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 bilinearly resized to `size` (height, width); unchanged when it has that size."""
    if rgb.shape[:2] == size:
        return rgb
    cv2 = packages.opencv()
    return cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def random_view(
    sample: Sample,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    ranges: Augmentation,
    scaling: Scaling,
    rng: np.random.Generator,
) -> View:
    """A view of `crop` (height, width) pixels, cut from `sample` as if it had been resized to `size` first."""
    cv2 = packages.opencv()
    height, width = sample.label.shape
    scale, aspect = _draw(ranges.scale, rng), np.sqrt(_draw(ranges.aspect, rng))
    zoom = np.array([scale * size[0] / height / aspect, scale * size[1] / width * aspect])
    position = rng.random(2)
    start = position * (zoom * (height, width) - crop)
    # Pixel centres lie at half-integers: x' + 0.5 = zoom * (x + 0.5) - start.
    shift = 0.5 * zoom - start - 0.5
    # One warp for everything: each further resampling would blur the image and fray the labels.
    matrix = np.array([[zoom[1], 0, shift[1]], [0, zoom[0], shift[0]]])
    if rng.random() < 0.5:
        matrix[0] = [-zoom[1], 0, crop[1] - 1 - shift[1]]
        position[1] = 1 - position[1]
    target = (crop[1], crop[0])
    rgb = cv2.warpAffine(
        _recoloured(sample.rgb, ranges, rng),
        matrix,
        target,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    label = cv2.warpAffine(
        sample.label, matrix, target, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
    )
    inside = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, target, flags=cv2.INTER_NEAREST)
    # Outside the image lies what padding puts there at inference: zeros after normalisation.
    return View(normalised(rgb, scaling) * inside, label, (float(position[0]), float(position[1])))


def _draw(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Log-uniform, so that halving is as likely as doubling."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _recoloured(rgb: NDArray[np.uint8], ranges: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gamma, brightness and a gain per channel by table, then saturation."""
    cv2 = packages.opencv()
    curve = (np.arange(256) / 255.0) ** _draw(ranges.gamma, rng) * _draw(ranges.brightness, rng)
    gains = np.array([_draw(ranges.channel_gain, rng) for _ in range(3)])
    table = np.clip(255.0 * curve[:, None] * gains, 0, 255).astype(np.uint8)
    coloured = cv2.LUT(rgb, table[None])
    grey = cv2.cvtColor(cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    saturation = _draw(ranges.saturation, rng)
    return cv2.addWeighted(coloured, saturation, grey, 1 - saturation, 0)  # type: ignore[no-any-return]
