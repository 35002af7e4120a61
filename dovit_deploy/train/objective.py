"""What does a step minimise? The loss of the decode head, those of the gates, and the distance from a dense teacher.

What the answers are held to is the run's target (`target`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.train.batches import Batch
from dovit_deploy.train.config import Stopping, TrainConfig
from dovit_deploy.train.forward import TrainableNetwork, training_forward
from dovit_deploy.train.gathered import Quotas
from dovit_deploy.train.masked import GateOutput, Passing, uniform_passing
from dovit_deploy.train.skips import Skips
from dovit_deploy.train.target import Target, distillation_loss


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
    """What the steps of a run minimise; `target` lies where the network does."""

    def __init__(self, config: TrainConfig, target: Target) -> None:
        self.config, self.target = config, target

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
        config, spec, target = self.config, self.config.spec, self.target
        device = target.weights.device
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
        rule, wanted = config.distillation, None
        if teacher is not None and (passing is not None or rule.teacher == "checkpoint"):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                wanted = training_forward(teacher, pixels, origin=origin)
        main = target.loss(output, labels, wanted, rule)
        shares = target.shares(labels, wanted, spec) if output.gates else labels
        gates = [gate_loss(gate, shares, target.weights) for gate in output.gates]
        total = main + config.auxiliary_weight * sum(gates, target.weights.new_zeros(()))
        row = {"loss": main.item(), **{f"gate{i}": loss.item() for i, loss in enumerate(gates)}}
        row |= {f"kept{i}": float(gate.keep.float().mean()) for i, gate in enumerate(output.gates)}
        if wanted is not None and target.with_labels:
            distilled = distillation_loss(output, wanted, features=rule.features, pixels=rule.pixels)
            total, row["distillation"] = total + distilled, distilled.item()
        return total, row
