"""What is a step to answer? What labels say, or, of images without labels, what a dense teacher answers.

The target is one thing that a run is handed. It says what the decode head's answer is held to, and what share of each
class gates are to see in every token; all else of a step is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.spec import Grid
from dovit_deploy.train.config import Distillation, TrainConfig
from dovit_deploy.train.masked import TrainingOutput


class Target(Protocol):
    """What is learnt from."""

    with_labels: bool
    """A teacher, where there is one, is learnt from beside it; False: the teacher is the target."""

    @property
    def weights(self) -> Tensor:
        """(K,) of the classes, where the network lies."""

    def on(self, device: torch.device) -> Self:
        """This, on the device of the network."""

    def loss(
        self, output: TrainingOutput, labels: Tensor, teacher: TrainingOutput | None, rule: Distillation
    ) -> Tensor:
        """Of what the decode head answers; `labels` (B, H, W) uint8, void where nothing is known."""

    def shares(self, labels: Tensor, teacher: TrainingOutput | None, spec: AnySpec) -> Tensor:
        """(B, N, K): how much of each class a gate is to see in each token."""


@dataclass(frozen=True)
class Labels:
    """The labels of the images."""

    weights: Tensor
    with_labels = True

    @classmethod
    def of(cls, frequencies: Sequence[float], config: TrainConfig) -> Self:
        """Of images of whose labelled pixels each class has this share; rare classes weigh more, as `config` says."""
        shares = torch.as_tensor(frequencies, dtype=torch.float64)
        return cls(class_weights(shares, config.class_weight_power))

    def on(self, device: torch.device) -> Self:
        return replace(self, weights=self.weights.to(device))

    def loss(
        self, output: TrainingOutput, labels: Tensor, teacher: TrainingOutput | None, rule: Distillation
    ) -> Tensor:
        del teacher, rule
        return pixel_loss(output.logits, labels, self.weights)

    def shares(self, labels: Tensor, teacher: TrainingOutput | None, spec: AnySpec) -> Tensor:
        del teacher
        return token_histograms(labels, spec.patch, spec.classes)


@dataclass(frozen=True)
class TeacherAnswers:
    """What the run's teacher answers; nobody knows better, so that all classes weigh the same."""

    weights: Tensor
    with_labels = False

    @classmethod
    def of(cls, classes: int) -> Self:
        """Of a teacher that knows so many classes."""
        return cls(torch.ones(classes))

    def on(self, device: torch.device) -> Self:
        return replace(self, weights=self.weights.to(device))

    def loss(
        self, output: TrainingOutput, labels: Tensor, teacher: TrainingOutput | None, rule: Distillation
    ) -> Tensor:
        del labels
        return distillation_loss(output, _there(teacher), features=rule.features, pixels=rule.pixels)

    def shares(self, labels: Tensor, teacher: TrainingOutput | None, spec: AnySpec) -> Tensor:
        grid = (labels.shape[1] // spec.patch, labels.shape[2] // spec.patch)
        # Networks that answer by queries are not trained.
        return answered_shares(_there(teacher).logits.float(), grid, queries=False)


def _there(teacher: TrainingOutput | None) -> TrainingOutput:
    if teacher is None:
        raise ValueError("a run without labels has no teacher to learn from in this step")
    return teacher


# Of labels.


def class_weights(frequencies: Tensor, power: float) -> Tensor:
    """(1 / frequency) ** power, scaled so that a labelled pixel weighs 1 on average; absent classes weigh nothing."""
    weights = torch.where(frequencies > 0, frequencies.clamp(min=1e-6) ** -power, 0.0)
    return (weights / (weights * frequencies).sum()).float()


def pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of `logits` (B, K, h, w) against `labels` (B, H, W) uint8, at half the resolution."""
    # The decode head has no finer detail to be judged by, and a loss over every pixel costs a good part of a step.
    target = labels[:, ::2, ::2].long()
    finer = functional.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(finer, target, weight=weights, ignore_index=IGNORE, reduction="sum")
    # By the weight that was counted, as "mean" does it; an image of void alone must not divide by zero.
    total = weights[target[target != IGNORE]].sum()
    return loss / total.clamp(min=1e-6)


def token_histograms(labels: Tensor, patch: int, classes: int) -> Tensor:
    """Share of each class among the pixels of each token, (B, N, K): labels (B, H, W), H and W whole patches.

    Shares are of *all* pixels of the token, so a token that is half void weighs half.
    """
    batch, height, width = labels.shape
    cells = labels.reshape(batch, height // patch, patch, width // patch, patch).transpose(2, 3)
    # Void (255) falls into one bin behind the classes, which is cut off below.
    cells = cells.reshape(-1, patch * patch).long().clamp(max=classes)
    count = torch.zeros(len(cells), classes + 1, device=labels.device)
    count.scatter_add_(1, cells, torch.ones(1, 1, device=labels.device).expand_as(cells))
    return (count[:, :classes] / patch**2).reshape(batch, -1, classes)


# Of a teacher.


def distillation_loss(student: TrainingOutput, teacher: TrainingOutput, *, features: float, pixels: float) -> Tensor:
    """`features` x mean squared difference of the last features + `pixels` x KL(teacher, student) of each position."""
    logits = teacher.logits.float()
    # Another decode head may answer on a finer or coarser grid of the same crop.
    if logits.shape != student.logits.shape:
        logits = functional.interpolate(logits, size=student.logits.shape[-2:], mode="bilinear", align_corners=False)
    wanted = logits.log_softmax(1)
    total = pixels * (wanted.exp() * (wanted - student.logits.float().log_softmax(1))).sum(1).mean()
    # Features of another width, which cannot be compared, have no weight.
    if features:
        total = total + features * functional.mse_loss(student.features.float(), teacher.features.float())
    return total


def answered_shares(logits: Tensor, grid: Grid, *, queries: bool) -> Tensor:
    """How much of each class an answer sees in every patch: logits (B, K, h, w) -> (B, N, K), sums of 1.

    Args:
        logits: on a grid that is a whole multiple of the patches'.
        grid: of the patches.
        queries: the answer is one of queries, sums of masks, which are no logits.
    """
    shares = logits.clamp(min=1e-9) / logits.clamp(min=1e-9).sum(1, keepdim=True) if queries else logits.softmax(1)
    return functional.adaptive_avg_pool2d(shares, grid).flatten(2).transpose(1, 2).contiguous()
