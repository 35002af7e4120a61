"""How right is a way? Its answers against those of ONNX Runtime fp32, dense and with tokens, and against labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.measure.intervals import Blocks, blocks_of, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts, boundary_counts
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.settings import RunsOne
from on_cpu.frames import NamedFrame
from on_cpu.result import CellAccuracy


@dataclass(frozen=True)
class Answers:
    """Class maps of all frames of a case, in their order."""

    maps: tuple[ClassMap, ...]

    @classmethod
    def of(cls, way: RunsOne, samples: Sequence[NamedFrame], *, dense: bool) -> Answers:
        """What `way` answers by its own decisions, or dense."""
        predictor = Predictor(way)
        return cls(tuple(predictor.predict(sample.rgb, dense=dense).class_map for sample in samples))

    def agreement(self, other: Answers) -> float:
        """Share of the pixels that have the same class in both."""
        pairs = list(zip(self.maps, other.maps, strict=True))
        return sum(int((one == two).sum()) for one, two in pairs) / sum(one.size for one, _ in pairs)

    def scored(self, samples: Sequence[NamedFrame], classes: int) -> Scores | None:
        """None where nothing is labelled."""
        labels = [sample.label for sample in samples if sample.label is not None]
        if len(labels) < len(self.maps):
            return None
        pairs = list(zip(labels, self.maps, strict=True))
        whole = [ClassCounts.of(label, answer, classes=classes) for label, answer in pairs]
        boundary = [boundary_counts(label, answer, classes=classes) for label, answer in pairs]
        return Scores(ClassCounts.stacked(whole), ClassCounts.stacked(boundary))


@dataclass(frozen=True)
class Scores:
    """Counts of all frames, (n, K): of all pixels, and of those along contours."""

    whole: ClassCounts
    boundary: ClassCounts

    def drop(self, before: Scores, blocks: Blocks) -> tuple[float, tuple[float, float] | None]:
        """Points of mIoU below `before`, with the interval."""
        return before.whole.miou - self.whole.miou, miou_drop_interval(before.whole, self.whole, blocks)


def compared(
    own: Answers, dense: Answers, same: Answers | None, samples: Sequence[NamedFrame], *, classes: int
) -> CellAccuracy:
    """A way's answers beside those of ONNX Runtime fp32.

    Args:
        own: the way's.
        dense: dense.
        same: run like this way; None: nothing is.
        samples: the frames.
        classes: how many the model knows.
    """
    found = CellAccuracy(
        frames=len(samples),
        agreement=own.agreement(dense),
        same_agreement=None if same is None else own.agreement(same),
    )
    scores, before = own.scored(samples, classes), dense.scored(samples, classes)
    if scores is None or before is None:
        return found
    moments = [sample.moment for sample in samples if sample.moment is not None]
    blocks = blocks_of(len(samples), moments or None)
    drop, interval = scores.drop(before, blocks)
    alike = None if same is None else same.scored(samples, classes)
    same_drop, same_interval = (None, None) if alike is None else scores.drop(alike, blocks)
    return found.model_copy(
        update={
            "miou": scores.whole.miou,
            "boundary_iou": scores.boundary.miou,
            "drop": drop,
            "drop_interval": interval,
            "boundary_drop_interval": miou_drop_interval(before.boundary, scores.boundary, blocks),
            "same_drop": same_drop,
            "same_drop_interval": same_interval,
        }
    )
