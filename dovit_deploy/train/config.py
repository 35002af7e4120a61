"""TrainConfig: everything that decides a training run, as data; with the seed it is the recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dovit_deploy.bundle.spec import ConvStem, FcnHead, GateSpec, ModelSpec, Noun, SetrHead

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""RGB, on the scale 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""RGB, on the scale 0..255."""


class Phase(Noun):
    """A part of the run with one crop size; small crops first see more of the data in the same time."""

    until: float = Field(gt=0, le=1)
    """Where the phase ends, as a share of the whole run."""
    crop: tuple[int, int]
    """Height and width in pixels, whole patches, no larger than the padded input."""
    batch: int = Field(ge=1)


class Augmentation(Noun):
    """Ranges from which each view is drawn; every pair is (lowest, highest)."""

    scale: tuple[float, float] = (0.7, 2.0)
    aspect: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.8, 1.2)
    channel_gain: tuple[float, float] = (0.92, 1.08)
    gamma: tuple[float, float] = (0.7, 1.4)
    saturation: tuple[float, float] = (0.5, 1.4)


class TokenPassing(Noun):
    """When tokens are stopped in training, exactly as at inference."""

    start: float = Field(default=0.65, ge=0, le=1)
    """Share of the run after which it begins; the learning rate must still fall there."""
    share: float = Field(default=0.75, ge=0, le=1)
    """Share of the steps, from then on, that stop tokens; the others stay dense."""
    thresholds: tuple[float, float] = (0.8, 0.99)
    """Each step draws one threshold from this range."""


class TrainConfig(Noun):
    """A run: the network, its length (`steps` or `minutes` of processor time, not both) and the recipe."""

    spec: ModelSpec
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    phases: tuple[Phase, ...]
    augmentation: Augmentation = Augmentation()
    passing: TokenPassing = TokenPassing()
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.05
    """On matrices and kernels only."""
    warm_up: float = 0.04
    """Share of the run."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    average_decay: float = 0.995
    """Of the exponential moving average of the weights, which is what the run yields."""
    auxiliary_weight: float = 0.4
    detach_auxiliary: bool = True
    """Gates do not train the layers below them: otherwise the first layers become the final classifier."""
    class_weight_power: float = 0.5
    """Class weights are (1 / frequency) to this power; 0 weighs all pixels alike."""
    bfloat16: bool = True
    save_seconds: float = 120.0
    """Processor seconds between two states on the disk."""
    validations: int = Field(default=8, ge=0)
    """How many times the validation split is looked at."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(ends) or ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: they must rise and the last must end at 1")
        patch, limits = self.spec.patch, [side * self.spec.patch for side in self.spec.grid]
        for phase in self.phases:
            if any(side % patch or side > limit for side, limit in zip(phase.crop, limits, strict=True)):
                raise ValueError(f"crop {phase.crop} must be multiples of {patch} up to {tuple(limits)}")
        return self

    def phase_at(self, progress: float) -> Phase:
        """The phase that covers `progress` in [0, 1]."""
        return next((phase for phase in self.phases if progress < phase.until), self.phases[-1])


def small_spec(size: tuple[int, int], classes: int) -> ModelSpec:
    """The default network: a ViT of width 192 and 12 layers behind a convolutional stem, under 7 M parameters."""
    gates = tuple(GateSpec(layer=layer, head=FcnHead(channels=128)) for layer in (3, 6, 9))
    return ModelSpec(
        family="dovit",
        size=size,
        stem=ConvStem(widths=(24, 48, 96)),
        width=192,
        depth=12,
        heads=3,
        hidden=768,
        classes=classes,
        gates=gates,
        position_mode="bilinear",
        head=SetrHead(channels=96, convs=2, up_scale=2, kernel=3),
    )


def default_config(
    size: tuple[int, int], classes: int, *, minutes: float | None = None, steps: int | None = None, seed: int = 0
) -> TrainConfig:
    """The recipe for a data set of images of `size` (height, width), trained from scratch."""
    spec = small_spec(size, classes)
    full = tuple(side * spec.patch for side in spec.grid)
    small = tuple(max(spec.patch, round(side * 0.72 / spec.patch) * spec.patch) for side in full)
    return TrainConfig(
        spec=spec,
        minutes=minutes,
        steps=steps,
        seed=seed,
        phases=(
            Phase(until=0.6, crop=(small[0], small[1]), batch=8),
            Phase(until=1.0, crop=(full[0], full[1]), batch=4),
        ),
    )
