"""What a run yields: the averaged weights as a checkpoint, with thresholds chosen on the validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import cost_model
from dovit_deploy.record import Record
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.forward import TrainableNetwork
from dovit_deploy.train.masked import uniform_passing
from dovit_deploy.train.validation import Validation, validate

THRESHOLDS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""What is tried. At 0 every token stops at the first gate: the control that says what the deep layers earn."""
UNMEASURED_THRESHOLD = 0.95
"""Where tokens stop when there was nothing to choose a threshold on."""


class ThresholdPoint(Record):
    """The validation images at one threshold for all gates and classes; None: with nothing stopped."""

    threshold: float | None
    miou: float
    """In percent."""
    pixel_accuracy: float
    """In percent."""
    drop: float
    """Points of mIoU lost against the dense network."""
    flops_saved: float
    """Share of all MACs, auxiliary heads counted as run."""
    layers_saved: float
    """Share of the transformer layers' MACs."""
    kept: tuple[float, ...]
    """Mean number of tokens that enter each stage, extra tokens included."""


def curve_point(spec: AnySpec, threshold: float | None, result: Validation, dense_miou: float) -> ThresholdPoint:
    """What `result` says, with the costs that its token counts stand for."""
    cost = cost_model(spec)
    dense, images = cost.dense(), len(result.kept)
    # `kept` of a dense pass counts the tokens that gates would see, but no gate runs: the cost is the dense one.
    stops_nothing = threshold is None and bool(spec.gates)
    actual = [dense if stops_nothing else cost.actual(kept) for kept in result.kept.tolist()]
    return ThresholdPoint(
        threshold=threshold,
        miou=result.miou,
        pixel_accuracy=result.pixel_accuracy,
        drop=dense_miou - result.miou,
        flops_saved=1 - sum(report.total for report in actual) / (images * dense.total),
        layers_saved=1 - sum(report.layers for report in actual) / (images * dense.layers),
        kept=tuple(np.mean(result.kept, axis=0).tolist()),
    )


@dataclass(frozen=True)
class ThresholdCurve:
    """Accuracy and costs by threshold; without points where there was nothing to measure on."""

    points: tuple[ThresholdPoint, ...] = ()
    images: int = 0
    """Validation images that each point was measured on."""


def threshold_curve(
    model: TrainableNetwork,
    data: Dataset,
    *,
    scaling: Scaling,
    thresholds: Sequence[float] = THRESHOLDS,
    seconds: float | None = None,
    clock: Callable[[], float] = perf_counter,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ThresholdCurve:
    """The network without its gates first, then each threshold, in float32, all on the same images.

    Args:
        seconds: about how long it may take, by `clock`; with more images than there is time for, some are taken that
            are spread evenly. None: all images.
        advance: called after every image with the number of runs that are done, and of all.
    """
    wanted = tuple(thresholds) if model.spec.gates else ()
    passes, began = 1 + len(wanted), clock()

    def in_time(done: int) -> bool:
        advance(done, passes * len(data))
        return seconds is None or clock() - began < seconds / passes

    dense = validate(model, data, passing=None, scaling=scaling, go_on=in_time)
    images = len(dense.kept)
    points = [curve_point(model.spec, None, dense, dense.miou)]
    for before, threshold in enumerate(wanted, start=1):

        def shown(done: int, before: int = before) -> bool:
            advance(before * images + done, passes * images)
            return True

        passing = uniform_passing(model.spec, threshold)
        result = validate(model, data, passing=passing, scaling=scaling, most=images, go_on=shown)
        points.append(curve_point(model.spec, threshold, result, dense.miou))
    return ThresholdCurve(tuple(points), images)


def chosen_threshold(points: Sequence[ThresholdPoint], max_drop: float) -> float:
    """The threshold that saves most of those that lose at most `max_drop` points; 1 (nothing stops) if none does.

    The control at 0 is no choice: it would make the deep layers useless.
    """
    fitting = [(point.flops_saved, point.threshold) for point in points if point.threshold and point.drop <= max_drop]
    return max(fitting, default=(0.0, 1.0))[1]


def save_result(
    folder: Path,
    model: TrainableNetwork,
    classes: tuple[ClassEntry, ...],
    *,
    threshold: float,
    scaling: Scaling,
    license_note: str,
    documents: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Write `model` as a checkpoint of ours at `folder`, in training form, so that it can be trained further.

    `documents` (file name -> text) lie beside the weights.
    """
    config = OwnConfig(
        spec=model.spec,
        # The loss stretched the logits' grid over the padded crop.
        preprocessing=Preprocessing(
            mean=scaling.mean, std=scaling.std, assumed=False, stride=None, logits_cover="padded"
        ),
        classes=classes,
        thresholds=(threshold,) * len(model.spec.gates),
        license=license_note,
    )
    save_checkpoint(folder, config, model.state_dict(), documents=documents, overwrite=overwrite)
