"""Mean intersection over union of the network in training, on a split, dense or with tokens passed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from dovit_deploy.measure.datasets import IGNORE, Dataset
from dovit_deploy.train.augment import normalised, resized
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.forward import Network, training_forward
from dovit_deploy.train.masked import Passing


@dataclass(frozen=True)
class Validation:
    """`confusion` (K, K): pixels of true class (row) called class (column); `kept` (images, stages): tokens run."""

    confusion: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """Per class, in percent; NaN for a class that neither occurs nor is predicted."""
        hit = np.diag(self.confusion).astype(np.float64)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        shares: NDArray[np.float64] = np.divide(100.0 * hit, union, out=np.full(len(hit), np.nan), where=union > 0)
        return shares

    @property
    def miou(self) -> float:
        """Mean over the classes that occur, in percent."""
        return float(np.nanmean(self.iou)) if not np.isnan(self.iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """In percent."""
        return float(100.0 * np.trace(self.confusion) / max(1, self.confusion.sum()))


def class_map_from_logits(logits: Tensor, spec_size: tuple[int, int], patch: int, size: tuple[int, int]) -> Tensor:
    """(1, K, h, w) -> (H, W) uint8 at `size`: up-sampled over the padded input, padding cut, resized if need be."""
    whole = tuple(-(-side // patch) * patch for side in spec_size)
    fine = functional.interpolate(logits.float(), size=whole, mode="bilinear", align_corners=False)
    fine = fine[..., : spec_size[0], : spec_size[1]]
    if size != spec_size:
        fine = functional.interpolate(fine, size=size, mode="bilinear", align_corners=False)
    return fine.argmax(1)[0].to(torch.uint8)


@torch.no_grad()
def validate(
    model: Network,
    data: Dataset,
    *,
    passing: Passing | None,
    scaling: Scaling,
    bfloat16: bool = False,
) -> Validation:
    """Run `model` over every image of `data`, one at a time, in evaluation mode; its mode is put back."""
    spec, classes = model.spec, model.spec.classes
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    confusion = np.zeros((classes, classes), np.int64)
    kept = np.zeros((len(data), len(spec.counts)), np.int64)
    for number in range(len(data)):
        sample = data.sample(number)
        pixels = torch.from_numpy(normalised(resized(sample.rgb, spec.size), scaling))[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            output = training_forward(model, pixels, passing=passing)
        predicted = class_map_from_logits(output.logits, spec.size, spec.patch, sample.label.shape)
        known = sample.label != IGNORE
        pairs = sample.label[known].astype(np.int64) * classes + predicted.cpu().numpy()[known]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        running = [spec.extra_tokens + int(gate.keep.sum()) for gate in output.gates]
        kept[number] = [spec.tokens, *running] if spec.gates else spec.counts
    model.train(was_training)
    return Validation(confusion, kept)
