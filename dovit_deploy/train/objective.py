"""What does a step minimise? The loss of the decode head, those of the gates, and the distance from a dense teacher."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.train.batches import Batch
from dovit_deploy.train.config import Stopping, TrainConfig
from dovit_deploy.train.forward import TrainableNetwork, training_forward
from dovit_deploy.train.gathered import Quotas
from dovit_deploy.train.masked import GateOutput, Passing, TrainingOutput, uniform_passing
from dovit_deploy.train.skips import Skips


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


def histogram_loss(logits: Tensor, histograms: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of `logits` (M, K) of tokens against the shares of the classes in them, (M, K)."""
    target = histograms * weights
    # Every token may have stopped before a gate.
    if not len(target):
        return weights.new_zeros(())
    return -(target * logits.float().log_softmax(1)).sum() / target.sum().clamp(min=1e-6)


def gate_loss(gate: GateOutput, histograms: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of a gate's head on the tokens that reached it, against `histograms` (B, N, K)."""
    return histogram_loss(gate.logits, histograms[gate.running], weights)


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


def passing_of(spec: AnySpec, stopping: Stopping | None) -> Passing | Quotas | None:
    """What a step's `stopping` means for the network of `spec`."""
    if isinstance(stopping, tuple):
        return Quotas(stopping)
    return None if stopping is None else uniform_passing(spec, stopping)


def skips_of(config: TrainConfig, draw: np.random.Generator) -> Skips | None:
    """What skips layers in a step; None where nothing does."""
    if not config.drop_path or not isinstance(config.spec, VisionTransformerSpec):
        return None
    return Skips(config.drop_path, config.spec.depth, draw)


class Objective:
    """`weights` (K,) weigh the classes; they lie where the network does."""

    def __init__(self, config: TrainConfig, weights: Tensor) -> None:
        self.config, self.weights = config, weights

    def __call__(
        self,
        model: TrainableNetwork,
        batch: Batch,
        *,
        stopping: Stopping | None,
        teacher: TrainableNetwork | None,
        skips: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum that is minimised, and its parts as numbers; without `stopping` nothing stops.

        A dense step is distilled from another network only: its own copy would answer the same. `skips` draws what
        skips layers.
        """
        config, spec, device = self.config, self.config.spec, self.weights.device
        pixels = batch.pixels.to(device, memory_format=torch.channels_last)
        labels, origin = batch.labels.to(device), batch.origin.to(device)
        passing = passing_of(spec, stopping)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            output = training_forward(
                model,
                pixels,
                passing=passing,
                origin=origin,
                detach_gates=config.detach_aux,
                detach_stopped=config.passing.detach_stopped,
                skips=skips_of(config, skips),
            )
        main = pixel_loss(output.logits, labels, self.weights)
        histograms = token_histograms(labels, spec.patch, spec.classes) if output.gates else labels
        gates = [gate_loss(gate, histograms, self.weights) for gate in output.gates]
        total = main + config.auxiliary_weight * sum(gates, self.weights.new_zeros(()))
        row = {"loss": main.item(), **{f"gate{i}": loss.item() for i, loss in enumerate(gates)}}
        row |= {f"kept{i}": float(gate.keep.float().mean()) for i, gate in enumerate(output.gates)}
        rule = config.distillation
        if teacher is not None and (passing is not None or rule.teacher == "checkpoint"):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                wanted = training_forward(teacher, pixels, origin=origin)
            distilled = distillation_loss(output, wanted, features=rule.features, pixels=rule.pixels)
            total, row["distillation"] = total + distilled, distilled.item()
        return total, row
