"""The training loop: steps until the budget is spent, a moving average of the weights, exact resumption."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.bundle.spec import ModelSpec, SetrHead
from dovit_deploy.errors import CheckError, ConfigError
from dovit_deploy.measure.datasets import SegmentationFolder
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.augment import random_view
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.initialise import initialise
from dovit_deploy.train.loss import class_weights, gate_loss, pixel_loss, token_histograms
from dovit_deploy.train.masked import Passing, masked_forward
from dovit_deploy.train.schedule import learning_rate_at, progress_of
from dovit_deploy.train.state import RunFolder, RunState
from dovit_deploy.train.validate import validate


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels; none on biases, norms and embeddings."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        embedding = name in ("extra_tokens", "positions")
        (free if parameter.ndim < 2 or embedding else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards `model`, parameters and batch-norm statistics alike; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    mine, theirs = average.state_dict(), model.state_dict()
    for name, value in theirs.items():
        if value.is_floating_point():
            mine[name].lerp_(value, 1 - decay)
        else:
            mine[name].copy_(value)


def trainable_model(spec: ModelSpec) -> VisionTransformer:
    """The network of `spec` with its batch norms apart; ConfigError for gates that cannot be trained here."""
    if any(isinstance(gate.head, SetrHead) for gate in spec.gates):
        raise ConfigError("gates with up-sampling (setr) heads are not trained; use linear or fcn heads")
    return VisionTransformer(spec, trainable=True)


class Trainer:
    """One run: `data` is what it learns from, `watched` (may be None) what it is looked at on."""

    def __init__(
        self, config: TrainConfig, data: SegmentationFolder, watched: SegmentationFolder | None, folder: RunFolder
    ) -> None:
        if len(data.classes.names) != config.spec.classes:
            raise ConfigError(f"{data.root}: {len(data.classes.names)} classes, the network has {config.spec.classes}")
        self.config, self.data, self.watched, self.folder = config, data, watched, folder
        self.model = trainable_model(config.spec)
        initialise(self.model, config.seed)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
        )
        frequencies = torch.from_numpy(data.class_frequencies())
        self.weights = class_weights(frequencies, config.class_weight_power)
        self.step, self.seen, self.seconds = 0, 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return progress_of(self.config, step=self.step, seconds=self.seconds)

    def resume(self) -> bool:
        """Take up the state on the disk; False when there is none."""
        state = self.folder.load()
        if state is None:
            return False
        self.model.load_state_dict(state.model)
        self.average.load_state_dict(state.average)
        self.optimiser.load_state_dict(state.optimiser)
        self.step, self.seen, self.seconds = state.step, state.seen, state.seconds
        self.folder.forget_after(self.step)
        return True

    def save(self) -> None:
        """Put the whole state on the disk."""
        models = self.model.state_dict(), self.average.state_dict()
        self.folder.save(RunState(self.step, self.seen, self.seconds, *models, self.optimiser.state_dict()))

    def run(self, *, stop_after: int | None = None) -> None:
        """Train until the budget is spent, or until step `stop_after`; the state is saved at the end."""
        saved = self.seconds
        looked = int(self.progress * self.config.validations)
        while self.progress < 1.0 and (stop_after is None or self.step < stop_after):
            started = time.process_time()
            row = self.train_step()
            self.seconds += time.process_time() - started
            self.folder.log({"step": self.step, "seconds": round(self.seconds, 2), **row})
            if self.seconds - saved > self.config.save_seconds:
                self.save()
                saved = self.seconds
            if int(self.progress * self.config.validations) > looked:
                looked = int(self.progress * self.config.validations)
                self.look()
        self.save()

    def look(self) -> None:
        """Log the average's mIoU on the watched split."""
        if self.watched is None:
            return
        result = validate(self.average, self.watched, passing=None, bfloat16=self.config.bfloat16)
        self.folder.log({"step": self.step, "miou": result.miou, "pixel_accuracy": result.pixel_accuracy})

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; returns what is logged."""
        progress = self.progress
        rng = np.random.default_rng((self.config.seed, 1, self.step))
        phase = self.config.phase_at(progress)
        pixels, labels, origin = self.batch(phase, rng)
        passing, threshold = self.passing(progress, rng)
        rate = learning_rate_at(self.config, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss, row = self.loss(pixels, labels, origin, passing)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise CheckError(f"step {self.step}: the gradient is not finite; lower the learning rate")
        self.optimiser.step()
        update_average(self.average, self.model, self.step, self.config.average_decay)
        self.step += 1
        return {"rate": rate, "threshold": threshold, "norm": float(norm), **row}

    def loss(
        self, pixels: Tensor, labels: Tensor, origin: Tensor, passing: Passing | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the decode head's and the gates' losses, and each of them as a number."""
        config, spec = self.config, self.config.spec
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            output = masked_forward(
                self.model, pixels, passing=passing, origin=origin, detach_gates=config.detach_auxiliary
            )
        main = pixel_loss(output.logits, labels, self.weights)
        histograms = token_histograms(labels, spec.patch, spec.classes)
        gates = [gate_loss(gate, histograms, self.weights) for gate in output.gates]
        total = main + config.auxiliary_weight * sum(gates, torch.zeros(()))
        kept = [float(gate.keep.float().mean()) for gate in output.gates]
        row = {"loss": main.item(), **{f"gate{i}": loss.item() for i, loss in enumerate(gates)}}
        return total, row | {f"kept{i}": share for i, share in enumerate(kept)}

    def passing(self, progress: float, rng: np.random.Generator) -> tuple[Passing | None, float]:
        """What stops tokens in this step: nothing early in the run, later one random threshold; 1 when dense."""
        rule, spec = self.config.passing, self.config.spec
        if not spec.gates or progress < rule.start or rng.random() >= rule.share:
            return None, 1.0
        threshold = float(rng.uniform(*rule.thresholds))
        thresholds = torch.full((len(spec.gates), spec.classes), threshold)
        return Passing(thresholds, torch.zeros(())), threshold

    def batch(self, phase: Phase, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`pixels` (B, 3, h, w), `labels` (B, h, w) uint8 and `origin` (B, 2): where each crop's grid lies."""
        spec = self.config.spec
        free = np.array(spec.grid) - np.array(phase.crop) // spec.patch
        views, origins = [], []
        for _ in range(phase.batch):
            sample = self.data.sample(self.next_index())
            view = random_view(sample, size=spec.size, crop=phase.crop, ranges=self.config.augmentation, rng=rng)
            views.append(view)
            origins.append(np.rint(np.array(view.place) * free).astype(np.int64))
        pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
        labels = torch.from_numpy(np.stack([view.label for view in views]))
        return pixels.to(memory_format=torch.channels_last), labels, torch.from_numpy(np.stack(origins))

    def next_index(self) -> int:
        """Every image once per epoch, in an order of the epoch's own."""
        epoch, place = divmod(self.seen, len(self.data))
        self.seen += 1
        order = np.random.default_rng((self.config.seed, 2, epoch)).permutation(len(self.data))
        return int(order[place])
