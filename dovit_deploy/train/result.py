"""What a run yields: the averaged weights as a checkpoint, with thresholds chosen on the watched split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.bundle.model_spec import AnySpec
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.cost.model import cost_model
from dovit_deploy.measure.datasets import Dataset
from dovit_deploy.models.checkpoint import OwnConfig, save_checkpoint
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.forward import Network
from dovit_deploy.train.masked import uniform_passing
from dovit_deploy.train.validate import Validation, validate

THRESHOLDS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""What is tried. At 0 every token stops at the first gate: the control that says what the deep layers earn."""
UNMEASURED_THRESHOLD = 0.95
"""Where tokens stop when there was nothing to choose a threshold on."""


class CurvePoint(Noun):
    """The watched split at one threshold for all gates and classes; None: with nothing stopped."""

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


def curve_point(spec: AnySpec, threshold: float | None, result: Validation, dense_miou: float) -> CurvePoint:
    """What `result` says, with the costs that its token counts stand for."""
    cost = cost_model(spec)
    dense, images = cost.dense(), len(result.kept)
    stops_nothing = threshold is None and bool(spec.gates)
    actual = [dense if stops_nothing else cost.actual(kept) for kept in result.kept.tolist()]
    return CurvePoint(
        threshold=threshold,
        miou=result.miou,
        pixel_accuracy=result.pixel_accuracy,
        drop=dense_miou - result.miou,
        flops_saved=1 - sum(report.total for report in actual) / (images * dense.total),
        layers_saved=1 - sum(report.layers for report in actual) / (images * dense.layers),
        kept=tuple(np.mean(result.kept, axis=0).tolist()),
    )


def threshold_curve(
    model: Network, data: Dataset, *, scaling: Scaling, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[CurvePoint, ...]:
    """The network without its gates first, then each threshold, in float32."""
    dense = validate(model, data, passing=None, scaling=scaling)
    points = [curve_point(model.spec, None, dense, dense.miou)]
    for threshold in thresholds if model.spec.gates else ():
        result = validate(model, data, passing=uniform_passing(model.spec, threshold), scaling=scaling)
        points.append(curve_point(model.spec, threshold, result, dense.miou))
    return tuple(points)


def chosen_threshold(points: Sequence[CurvePoint], max_drop: float) -> float:
    """The threshold that saves most of those that lose at most `max_drop` points; 1 (nothing stops) if none does.

    The control at 0 is no choice: it would make the deep layers useless.
    """
    fitting = [(point.flops_saved, point.threshold) for point in points if point.threshold and point.drop <= max_drop]
    return max(fitting, default=(0.0, 1.0))[1]


def save_result(
    folder: Path,
    model: Network,
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
