"""TrainConfig: everything that decides a training run, as data; with the data and the seed it is the run."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from dovit_deploy.bounds import Deviation, Mean, Note, PixelSide, Share
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import excess_of
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.record import Record

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""RGB, on the scale 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""RGB, on the scale 0..255."""


# Streams of random numbers. Whatever is drawn comes from a generator made of (seed, stream, step or epoch):
# nothing depends on what was drawn before or by whom, so a resumed run, or one with worker processes, draws the same.
VIEW_STREAM, ORDER_STREAM, PLAN_STREAM, THRESHOLD_STREAM, SKIP_STREAM, FIT_STREAM = 1, 2, 3, 4, 5, 6


class Scaling(Record):
    """From 0..255 to what the network takes: mean and standard deviation of red, green and blue."""

    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD


class Phase(Record):
    """A part of the run with one crop size; small crops first see more of the data in the same time."""

    until: float = Field(gt=0, le=1)
    """Where the phase ends, as a share of the whole run."""
    crop: tuple[PixelSide, PixelSide]
    """Height and width in pixels, whole patches, no larger than the padded input."""
    batch: int = Field(ge=1, le=65_536)
    rendered: float = Field(default=0.0, ge=0, le=1)
    """Share of the images that are rendered scenes; 1 makes the phase a pre-training on them."""


MOST_CHANGE = 100
"""Times; a view is made this much larger, brighter or more saturated at most."""


class Augmentation(Record):
    """Ranges from which each view is drawn; every pair is (lowest, highest)."""

    scale: tuple[float, float] = (0.7, 2.0)
    aspect: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.8, 1.2)
    channel_gain: tuple[float, float] = (0.92, 1.08)
    gamma: tuple[float, float] = (0.7, 1.4)
    saturation: tuple[float, float] = (0.5, 1.4)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (lowest, highest) in self:
            if not 0 < lowest <= highest <= MOST_CHANGE:
                raise ValueError(f"{name} ({lowest}, {highest}): lowest and highest, above 0 and at most {MOST_CHANGE}")
        return self


class TokenPassing(Record):
    """When tokens are stopped in training, exactly as at inference."""

    mode: Literal["random", "annealed", "quota", "off"] = "random"
    """random: late in the run, one random threshold a step. annealed: the threshold falls from 1 over the run, as the
    official recipe has it. quota: a random share of the tokens, the most confident, the same share of every image of a
    batch, so that they are taken out of it. off: every step is dense; the gates' heads learn all the same."""
    share: float = Field(default=0.75, ge=0, le=1)
    """Share of the steps that stop tokens, once it has begun; the others stay dense."""
    start: float = Field(default=0.65, ge=0, le=1)
    """random, quota: share of the run after which it begins; the learning rate must still fall there."""
    quotas: tuple[tuple[Share, Share], ...] = ((0.1, 0.6),)
    """quota: each step draws for each gate, from its range (one range serves all), which share of the tokens that reach
    the gate stops there."""
    thresholds: tuple[float, float] = (0.8, 0.99)
    """random: each step draws one threshold from this range."""
    final: float = Field(default=0.9, ge=0, le=1)
    """annealed: the threshold that the fall ends at."""
    until: float = Field(default=0.8, gt=0, le=1)
    """annealed: share of the run at which it ends."""
    detach_stopped: bool = False
    """Stopped tokens do not train the layers below the gate that stopped them: the decode head learns to read them, the
    first layers do not learn to be the last ones, and the deep layers keep their worth."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        for name, ranges in (("thresholds", (self.thresholds,)), ("quotas", self.quotas)):
            for lowest, highest in ranges:
                if not 0 <= lowest <= highest <= 1:
                    raise ValueError(f"{name} ({lowest}, {highest}): lowest and highest, within [0, 1]")
        if not self.quotas:
            raise ValueError("quotas: one range for all gates, or one for each")
        return self

    def quota_ranges(self, gates: int) -> tuple[tuple[float, float], ...]:
        """The range of each of so many gates."""
        return self.quotas * gates if len(self.quotas) == 1 else self.quotas


Stopping = float | tuple[float, ...]
"""What stops tokens in one step: one threshold for all gates, or for each gate the share of its tokens that stops."""


class Distillation(Record):
    """What a run learns from the answers of a dense network: a copy of its own, in steps that stop tokens, or another
    one, in every step."""

    teacher: Literal["off", "init", "average", "current", "checkpoint"] = "off"
    """init: the network that the run starts from. average: the moving average when tokens are first stopped, frozen.
    current: the moving average as it is at each step. checkpoint: the network of `--teacher`."""
    features: float = Field(default=0.5, ge=0, le=1e6)
    """Weight of the mean squared difference of the last features; above 0 a teacher must be as wide as the network."""
    pixels: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the Kullback-Leibler divergence of the class probabilities."""


class Settings(Record):
    """What a user may set and what travels unchanged into the run."""

    steps: int | None = Field(default=None, ge=1, le=10**9)
    minutes: float | None = Field(default=None, gt=0, le=1e6)
    clock: Literal["wall", "processor"] = "wall"
    """How `minutes` are counted; processor: of this process alone, so that others on the machine do not matter."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    augmentation: Augmentation = Augmentation()
    passing: TokenPassing = TokenPassing()
    distillation: Distillation = Distillation()
    learning_rate: float = Field(default=1e-3, gt=0, le=1e3)
    final_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that is left at the end: above 0 for a run that another one goes on from."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer learns at this share of the rate of the layer above; what stands before the first, one step more."""
    head_rate: float | None = Field(default=None, gt=0, le=1e3)
    """Learning rate of the decode head; None: the layers'. A new head learns faster than pretrained layers may."""
    gate_rate: float | None = Field(default=None, gt=0, le=1e3)
    """Learning rate of gates and lenses; None: the layers'."""
    frozen_layers: int = Field(default=0, ge=0, le=1_024)
    """So many of the first layers, and what stands before them, stay as `--init` gave them."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images that skip the last layer in a step, in proportion fewer of those below."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: float = Field(default=0.05, ge=0, le=1e3)
    """On matrices and kernels only."""
    warm_up: float = Field(default=0.04, ge=0, lt=1)
    """Share of the run."""
    clip: float = Field(default=1.0, gt=0, le=1e9)
    """Largest norm of the whole gradient."""
    average_decay: float = Field(default=0.995, ge=0, lt=1)
    """Of the exponential moving average of the weights, which is what the run yields."""
    auxiliary_weight: float = Field(default=0.4, ge=0, le=1e6)
    detach_aux: bool = True
    """Gates do not train the layers below them: otherwise the first layers become the final classifier."""
    trained: Literal["all", "gates"] = "all"
    """gates: everything else stays as `--init` gave it, so the dense network and what it answers do not change."""
    fitted: int = Field(default=0, ge=0, le=10_000)
    """So many batches are shown to the network before the first step, to fit its gates and lenses to what they see;
    0: they start from random numbers, or as `--init` gave them."""
    freeze_norms: bool = False
    """Batch norms use the statistics that the run starts with, in training as at inference, so that steps that stop
    tokens and steps that do not see the same network; for runs from `--init`."""
    class_weight_power: float = Field(default=0.5, ge=0, le=10)
    """Class weights are (1 / frequency) to this power; 0 weighs all pixels alike."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: whichever a short trial finds faster when the run is made."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=1_024)
    """Of PyTorch; 0 leaves it to PyTorch."""
    workers: int = Field(default=0, ge=0, le=1_024)
    """Processes that decode, render and augment ahead; 0: the training process does it. Results do not change."""
    scenes: int = Field(default=0, ge=0, le=10**7)
    """How many different rendered scenes there are, kept in the run's folder; 0: every one is new."""
    fullness: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest of the rendered streets: 0 is a bare road, 1 a street with all that stands and moves there."""
    save_seconds: float = Field(default=120.0, gt=0, le=1e6)
    """Between two states on the disk."""
    validations: int = Field(default=8, ge=0, le=10_000)
    """How many times during the run the validation images are evaluated."""
    max_drop: float = Field(default=0.8, ge=0, le=100)
    """Points of mIoU that the chosen threshold may cost on the validation images."""
    license: Note = ""
    """Note that travels with the weights."""


def crop_step(spec: AnySpec) -> int:
    """Sides of crops are multiples of this many pixels: whole tokens of those that the decode head sees."""
    return spec.head_patch if isinstance(spec, StvitSegmenterSpec) else spec.patch


VALIDATED_SHARE = 0.2
"""Of the minutes of a run: all its validations together last at most so much longer, the first image of each apart."""
CURVE_SHARE, CURVE_SECONDS = 0.1, 60.0
"""Measuring the thresholds at its end lasts at most so long, whichever is longer; the first image apart."""


OF_PLAIN_LAYERS = ("layer_decay", "frozen_layers", "drop_path", "fitted")
"""Settings that only a vision transformer's layers can be given."""


class TrainConfig(Settings):
    """A run: the network, its length (`steps` or `minutes`, not both), what it sees and the recipe."""

    spec: AnySpec
    phases: tuple[Phase, ...]
    scaling: Scaling = Scaling()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        excess = excess_of(self.spec)
        if excess is not None:
            raise ValueError(f"network: {excess}")
        self._check_layers()
        if self.steps is not None and self.fitted > self.steps:
            raise ValueError(f"fitted = {self.fitted}: more batches than the run has steps, {self.steps}")
        if not 0 <= self.fullness[0] <= self.fullness[1] <= 1:
            raise ValueError(f"fullness {self.fullness}: lowest and highest, within [0, 1]")
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(ends) or ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: they must rise and the last must end at 1")
        step, limits = crop_step(self.spec), tuple(side * self.spec.patch for side in self.spec.grid)
        for phase in self.phases:
            sides = zip(phase.crop, limits, strict=True)
            if any(side < 1 or side > limit or (side % step and side != limit) for side, limit in sides):
                raise ValueError(f"crop {phase.crop} must be multiples of {step} up to {limits}")
        return self

    def _check_layers(self) -> None:
        """Raise ValueError for what the network's layers and gates cannot be given."""
        gates, quotas = len(self.spec.gates), len(self.passing.quotas)
        if self.passing.mode == "quota" and gates and quotas not in (1, gates):
            raise ValueError(f"passing.quotas has {quotas} ranges, the network {gates} gates; one for all, or one each")
        if not isinstance(self.spec, VisionTransformerSpec):
            stated = [name for name in OF_PLAIN_LAYERS if getattr(self, name) != type(self).model_fields[name].default]
            if stated:
                raise ValueError(f"{stated[0]} is for vision transformers; the network is {self.spec.family}")
        elif self.frozen_layers > self.spec.depth:
            raise ValueError(f"frozen_layers = {self.frozen_layers}: the network has {self.spec.depth} layers")

    @property
    def bfloat16(self) -> bool:
        """Matrix products are computed in bfloat16."""
        return self.precision == "bf16"

    @property
    def renders(self) -> bool:
        """Some phase shows rendered scenes."""
        return any(phase.rendered > 0 for phase in self.phases)

    def phase_at(self, progress: float) -> Phase:
        """The phase that covers `progress` in [0, 1]."""
        return next((phase for phase in self.phases if progress < phase.until), self.phases[-1])

    def progress_at(self, *, step: int, seconds: float) -> float:
        """Share of the run that is done, in [0, 1]: by steps, or by the seconds of the run's clock."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (60.0 * (self.minutes or math.inf)))

    @property
    def validation_seconds(self) -> float | None:
        """How long one validation may take; None, without an end, where the run is counted in steps."""
        # What is measured is no training, but a run of three minutes must not be measured for an hour.
        if self.minutes is None or not self.validations:
            return None
        return 60.0 * self.minutes * VALIDATED_SHARE / self.validations

    @property
    def curve_seconds(self) -> float | None:
        """How long measuring the thresholds may take; None, without an end, where the run is counted in steps."""
        return None if self.minutes is None else max(CURVE_SECONDS, 60.0 * self.minutes * CURVE_SHARE)

    def learning_rate_at(self, progress: float) -> float:
        """Linear warm-up, then half a cosine to the final share, which is zero by default."""
        if progress < self.warm_up:
            # Not quite zero at the first step, which would be wasted.
            return self.learning_rate * max(progress / self.warm_up, 0.01)
        rest = (progress - self.warm_up) / max(1e-9, 1.0 - self.warm_up)
        fallen = 0.5 * (1.0 - math.cos(math.pi * rest))
        return self.learning_rate * (1.0 - (1.0 - self.final_rate) * fallen)

    def stopping_at(self, progress: float, rng: np.random.Generator) -> Stopping | None:
        """What stops tokens in one step; None when it is dense.

        Annealed: a threshold of 1 - min(1, progress / until) * (1 - final), as the official recipe has it.
        """
        rule = self.passing
        begun = rule.mode == "annealed" or (rule.mode in ("random", "quota") and progress >= rule.start)
        if not self.spec.gates or not begun or rng.random() >= rule.share:
            return None
        if rule.mode == "random":
            return float(rng.uniform(*rule.thresholds))
        if rule.mode == "quota":
            return tuple(float(rng.uniform(*bounds)) for bounds in rule.quota_ranges(len(self.spec.gates)))
        return 1.0 - min(1.0, progress / rule.until) * (1.0 - rule.final)
