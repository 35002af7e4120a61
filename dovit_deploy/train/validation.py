"""How good is a network while it is trained? mIoU over a split, dense or with tokens stopped, without any export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.measure.metrics import ClassCounts, PixelCounts, confusion_matrix
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.sources.source import RGB
from dovit_deploy.train.batches import normalised, resized
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.forward import TrainableNetwork, training_forward
from dovit_deploy.train.masked import Passing, TrainingOutput


@dataclass(frozen=True)
class Validation:
    """`confusion` (K, K) of what was run of the split, and `kept` (images, stages): the tokens that entered each stage,
    per image."""

    confusion: PixelCounts
    kept: NDArray[np.int64]

    @property
    def counts(self) -> ClassCounts:
        """What IoU is made of, (K,)."""
        return ClassCounts.from_confusion(self.confusion)

    @property
    def miou(self) -> float:
        """Mean over the classes that occur, in percent."""
        return self.counts.miou

    @property
    def pixel_accuracy(self) -> float:
        """In percent."""
        return self.counts.pixel_accuracy


def class_map_from_logits(logits: Tensor, spec_size: tuple[int, int], patch: int, size: tuple[int, int]) -> Tensor:
    """(1, K, h, w) -> (H, W) uint8 at `size`: up-sampled over the padded input, padding cut, resized if need be."""
    whole = tuple(-(-side // patch) * patch for side in spec_size)
    fine = functional.interpolate(logits.float(), size=whole, mode="bilinear", align_corners=False)
    fine = fine[..., : spec_size[0], : spec_size[1]]
    if size != spec_size:
        fine = functional.interpolate(fine, size=size, mode="bilinear", align_corners=False)
    return fine.argmax(1)[0].to(torch.uint8)


def spread_order(count: int) -> Sequence[int]:
    """0 to count - 1 in an order of which every beginning is spread evenly: 0, 4, 2, 6, 1, 5, 3, 7."""
    bits = count.bit_length()
    return sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))


def answered(
    model: TrainableNetwork,
    rgb: RGB,
    size: tuple[int, int],
    *,
    passing: Passing | None,
    scaling: Scaling,
    bfloat16: bool = False,
) -> tuple[TrainingOutput, ClassMap]:
    """What `model` makes of one image, (H, W, 3) uint8 of any size, and its class map at `size`."""
    spec, device = model.spec, next(model.parameters()).device
    pixels = torch.from_numpy(normalised(resized(rgb, spec.size), scaling))[None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        output = training_forward(model, pixels, passing=passing)
    return output, class_map_from_logits(output.logits, spec.size, spec.patch, size).cpu().numpy()


def _always(done: int) -> bool:
    del done
    return True


@torch.no_grad()
def validate(
    model: TrainableNetwork,
    data: Dataset,
    *,
    passing: Passing | None,
    scaling: Scaling,
    bfloat16: bool = False,
    most: int | None = None,
    go_on: Callable[[int], bool] = _always,
) -> Validation:
    """Run `model` over the images of `data`, one at a time, in evaluation mode; its mode is restored.

    Args:
        most: images at most, evenly spread; None: all.
        go_on: called after each image with the number done; what is done counts when it says False.
    """
    spec, classes = model.spec, model.spec.classes
    was_training = model.training
    model.eval()
    confusion = np.zeros((classes, classes), np.int64)
    kept = np.zeros((len(data), len(spec.counts)), np.int64)
    done: list[int] = []
    for number in spread_order(len(data))[:most]:
        sample = data.sample(number)
        output, predicted = answered(
            model, sample.rgb, sample.label.shape, passing=passing, scaling=scaling, bfloat16=bfloat16
        )
        confusion += confusion_matrix(sample.label, predicted, classes=classes)
        running = [spec.extra_tokens + int(gate.keep.sum()) for gate in output.gates]
        kept[number] = [spec.tokens, *running] if spec.gates else spec.counts
        done.append(number)
        if not go_on(len(done)):
            break
    model.train(was_training)
    return Validation(confusion, kept[sorted(done)])
