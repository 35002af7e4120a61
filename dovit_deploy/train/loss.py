"""What is minimised: pixel cross-entropy of the decode head, soft-label cross-entropy of the gates' heads, and the
distance from a dense teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.measure.datasets import IGNORE
from dovit_deploy.train.masked import GateOutput, MaskedOutput


def class_weights(frequencies: Tensor, power: float) -> Tensor:
    """(1 / frequency) ** power, scaled so that a labelled pixel weighs 1 on average; absent classes weigh nothing."""
    weights = torch.where(frequencies > 0, frequencies.clamp(min=1e-6) ** -power, 0.0)
    return (weights / (weights * frequencies).sum()).float()


def pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of `logits` (B, K, h, w) against `labels` (B, H, W) uint8, at half the resolution."""
    target = labels[:, ::2, ::2].long()
    finer = functional.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(finer, target, weight=weights, ignore_index=IGNORE, reduction="sum")
    total = weights[target[target != IGNORE]].sum()
    return loss / total.clamp(min=1e-6)


def token_histograms(labels: Tensor, patch: int, classes: int) -> Tensor:
    """Share of each class among the pixels of each token, (B, N, K): labels (B, H, W), H and W whole patches.

    Shares are of *all* pixels of the token, so a token that is half void weighs half.
    """
    batch, height, width = labels.shape
    cells = labels.reshape(batch, height // patch, patch, width // patch, patch).transpose(2, 3)
    cells = cells.reshape(-1, patch * patch).long().clamp(max=classes)
    count = torch.zeros(len(cells), classes + 1, device=labels.device)
    count.scatter_add_(1, cells, torch.ones(1, 1, device=labels.device).expand_as(cells))
    return (count[:, :classes] / patch**2).reshape(batch, -1, classes)


def gate_loss(gate: GateOutput, histograms: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of a gate's head on the tokens that reached it, against `histograms` (B, N, K)."""
    target = histograms[gate.running] * weights
    if not len(target):
        return weights.new_zeros(())
    loss = -(target * gate.logits.float().log_softmax(1)).sum()
    return loss / target.sum().clamp(min=1e-6)


def distillation_loss(student: MaskedOutput, teacher: MaskedOutput, *, features: float, pixels: float) -> Tensor:
    """`features` x mean squared difference of the last features + `pixels` x KL(teacher, student) of each position."""
    near = functional.mse_loss(student.features.float(), teacher.features.float())
    wanted = teacher.logits.float().log_softmax(1)
    apart = (wanted.exp() * (wanted - student.logits.float().log_softmax(1))).sum(1).mean()
    return features * near + pixels * apart
