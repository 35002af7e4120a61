"""The objective of a step: the decode head's loss, the gates' losses, and what a dense teacher adds."""

from __future__ import annotations

import torch
from torch import Tensor

from dovit_deploy.train.batches import Batch
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.forward import Network, training_forward
from dovit_deploy.train.loss import distillation_loss, gate_loss, pixel_loss, token_histograms
from dovit_deploy.train.masked import uniform_passing


class Objective:
    """`weights` (K,) weigh the classes; they lie where the network does."""

    def __init__(self, config: TrainConfig, weights: Tensor) -> None:
        self.config, self.weights = config, weights

    def __call__(
        self, model: Network, batch: Batch, *, threshold: float | None, teacher: Network | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum that is minimised, and its parts as numbers; without `threshold` nothing stops or is distilled."""
        config, spec, device = self.config, self.config.spec, self.weights.device
        pixels = batch.pixels.to(device, memory_format=torch.channels_last)
        labels, origin = batch.labels.to(device), batch.origin.to(device)
        passing = None if threshold is None else uniform_passing(spec, threshold)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            output = training_forward(
                model,
                pixels,
                passing=passing,
                origin=origin,
                detach_gates=config.detach_aux,
                detach_stopped=config.passing.detach_stopped,
            )
        main = pixel_loss(output.logits, labels, self.weights)
        histograms = token_histograms(labels, spec.patch, spec.classes) if output.gates else labels
        gates = [gate_loss(gate, histograms, self.weights) for gate in output.gates]
        total = main + config.auxiliary_weight * sum(gates, self.weights.new_zeros(()))
        row = {"loss": main.item(), **{f"gate{i}": loss.item() for i, loss in enumerate(gates)}}
        row |= {f"kept{i}": float(gate.keep.float().mean()) for i, gate in enumerate(output.gates)}
        if teacher is not None and passing is not None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                wanted = training_forward(teacher, pixels, origin=origin)
            rule = config.distillation
            distilled = distillation_loss(output, wanted, features=rule.features, pixels=rule.pixels)
            total, row["distillation"] = total + distilled, distilled.item()
        return total, row
