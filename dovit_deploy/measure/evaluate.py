"""How right a deployed bundle is: every sample of a data set dense, dynamic and under the controls, in one loop.

All ways of running see the same decoded image in turn, so that their answers are paired. Tasks differ in what is
counted of an answer, which is their tally; what follows from the counts is in `report`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from dovit_deploy.bundle.interface import FP32
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.datasets.classification import LabelledImages
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.datasets.summary import DataSummary
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.measure.agreement import Agreement
from dovit_deploy.measure.controls import ELSEWHERE, Steering
from dovit_deploy.measure.decisions import Decisions, StopMap, decisions_of
from dovit_deploy.measure.intervals import Blocks, accuracy_drop_interval, blocks_of, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts, Hits, accuracy, boundary_counts, top_hits
from dovit_deploy.runtime.classification import ClassificationResult
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import ImageResult, predictor_for
from dovit_deploy.sources.source import RGB


@dataclass(frozen=True)
class EvalPlan:
    """What is to be measured."""

    dataset: str
    """As the user named it; the split likewise."""
    split: str
    settings: RunSettings
    """Of the dynamic run."""
    controls: Sequence[str] | None = None
    """Which of `CONTROLS` are run, where the model has gates; None: neither these nor smaller inputs are asked for."""
    data: DataSummary | None = None
    """What was found in the data set when it was opened, for the report."""


class LabelledSample(Protocol):
    """An image and its label: a class map (H, W), or the number of a class."""

    @property
    def stem(self) -> str: ...
    @property
    def rgb(self) -> RGB: ...
    @property
    def label(self) -> ClassMap | int: ...


class LabelledSet(Protocol):
    """A split of a data set of any task."""

    name: str

    @property
    def moments(self) -> Sequence[Moment] | None: ...
    def __len__(self) -> int: ...
    def sample(self, index: int) -> LabelledSample: ...
    def check(self) -> None: ...


class Tally(ABC):
    """One way of running the bundle, image by image: what its metric needs of the answers, and what they cost."""

    task: ClassVar[str]

    def __init__(self) -> None:
        self.kept: list[tuple[int, ...]] = []
        """Tokens entering each stage, summed over the windows of an image."""
        self.gmacs: list[float] = []

    def add(self, sample: LabelledSample, answer: ImageResult) -> None:
        """Count one image's answer."""
        self._judge(sample.label, answer)
        self.kept.append(answer.tokens.kept)
        self.gmacs.append(answer.tokens.gmacs_actual)

    @abstractmethod
    def _judge(self, label: ClassMap | int, answer: ImageResult) -> None:
        """Compare the answer with the label."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The metric that a drop is measured in, over the whole set, in percent; NaN when nothing is labelled."""

    @abstractmethod
    def drop_interval(self, dense: Tally, blocks: Blocks) -> tuple[float, float] | None:
        """95 % interval of how far this score lies below that of `dense`, in points; None for too few images."""


class SegmentationTally(Tally):
    """Scored by mIoU."""

    task = "segmentation"

    def __init__(self) -> None:
        super().__init__()
        self._pixels: list[ClassCounts] = []
        self._boundary: list[ClassCounts] = []

    def _judge(self, label: ClassMap | int, answer: ImageResult) -> None:
        assert isinstance(answer, SegmentationResult) and not isinstance(label, int)
        # As large as the bundle's class list, also where the labels use fewer classes.
        classes = len(answer.palette.names)
        self._pixels.append(ClassCounts.of(label, answer.class_map, classes=classes))
        self._boundary.append(boundary_counts(label, answer.class_map, classes=classes))

    @property
    def counts(self) -> ClassCounts:
        """Pixels of all images, (n, K)."""
        return ClassCounts.stacked(self._pixels)

    @property
    def boundary_counts(self) -> ClassCounts:
        """Pixels along the contours of all images, (n, K)."""
        return ClassCounts.stacked(self._boundary)

    @property
    def score(self) -> float:
        return self.counts.miou

    def drop_interval(self, dense: Tally, blocks: Blocks) -> tuple[float, float] | None:
        assert isinstance(dense, SegmentationTally)
        return miou_drop_interval(dense.counts, self.counts, blocks)

    def boundary_drop_interval(self, dense: SegmentationTally, blocks: Blocks) -> tuple[float, float] | None:
        """The same of the boundary IoU."""
        return miou_drop_interval(dense.boundary_counts, self.boundary_counts, blocks)


class ClassificationTally(Tally):
    """Scored by top-1 accuracy."""

    task = "classification"

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []
        self.ranked: list[tuple[int, ...]] = []
        """Class ids of each answer, the most probable first."""

    def _judge(self, label: ClassMap | int, answer: ImageResult) -> None:
        assert isinstance(answer, ClassificationResult) and isinstance(label, int)
        self.labels.append(label)
        self.ranked.append(tuple(entry.id for entry in answer.classes))

    def hits(self, *, top: int) -> Hits:
        """(n,): the label is among the first `top` classes of the answer."""
        return top_hits(self.ranked, self.labels, top=top)

    @property
    def score(self) -> float:
        return accuracy(self.hits(top=1))

    def drop_interval(self, dense: Tally, blocks: Blocks) -> tuple[float, float] | None:
        assert isinstance(dense, ClassificationTally)
        return accuracy_drop_interval(dense.hits(top=1), self.hits(top=1))


T = TypeVar("T", bound=Tally)


@dataclass
class SmallerRun(Generic[T]):
    """The same weights, dense, at a smaller input."""

    size: tuple[int, int]
    """Height and width in pixels."""
    engine: str
    tally: T


@dataclass
class Measured(Generic[T]):
    """All ways of running, over the whole data set."""

    blocks: Blocks
    """Of the images."""
    dynamic: T
    """The bundle as it is deployed."""
    dense: T | None
    """None: the bundle has no dense form."""
    controls: dict[str, T] | None
    """By the names of `CONTROLS`, empty for a model without gates; None: not asked for."""
    smaller: tuple[SmallerRun[T], ...]
    exact: T | None
    """The dense network in fp32: `dense` itself where that is its precision; None where it did not run."""
    exact_engine: str
    """In which it ran."""
    agreement: Agreement
    """Of the deployed bundle's classes with those of `exact`."""
    stems: list[str] = field(default_factory=list)
    dense_gmacs: list[float] = field(default_factory=list)
    """10^9 MACs of the dense network on each image, also where it cannot be run."""
    stop_map: StopMap | None = None
    """That the control by position followed; None: it did not run."""


def evaluate(
    session: Session,
    data: LabelledSet,
    tally: type[T],
    plan: EvalPlan,
    *,
    smaller: Sequence[Session] = (),
    exact: Session | None = None,
    decisions: Decisions | None = None,
    advance: Callable[[float], None],
) -> Measured[T]:
    """Run every sample of `data` in every way that the bundle has.

    Args:
        session: of the deployed bundle.
        data: of the bundle's classes, see `check_classes`.
        tally: of the bundle's task.
        plan: how the dynamic run is set, and whether there are controls.
        smaller: sessions of the same network at other input sizes, run dense.
        exact: of the same bundle in fp32, run dense, where `session` computes in another precision.
        decisions: of the rule on these images; None: gathered here, where a control is made of them.
        advance: called after each image with the share of its MACs that was saved.

    Raises:
        DatasetError: a file that cannot be used, or no label in the whole data set.
        UsageError: a bundle of another task, or controls of a segmentation model without gates.
        CheckError: the model's logits are not finite.
    """
    manifest = session.bundle.manifest
    _check_request(manifest, tally, plan)
    # A fault in the last image is found before the first is run, not an hour later.
    data.check()
    blocks = blocks_of(len(data), data.moments)
    steered = tuple(plan.controls or ()) if manifest.spec.gates else ()
    if decisions is None and set(steered) & set(ELSEWHERE):
        decisions = decisions_of(session, data, plan.settings, blocks)
    steered = _possible(steered, decisions)
    # Every model with gates has a dense form, so that whatever is steered is compared.
    compared = {name: tally() for name in ("dense", *steered) if manifest.spec.has_dense}
    own = session.backend.precision == FP32
    measured = Measured(
        blocks=blocks,
        dynamic=tally(),
        dense=compared.get("dense"),
        exact=compared.get("dense") if own else tally() if exact is not None else None,
        exact_engine=(session if exact is None else exact).backend.name,
        agreement=Agreement(len(manifest.classes)),
        controls=None if plan.controls is None else {name: compared[name] for name in steered},
        smaller=tuple(SmallerRun(one.bundle.manifest.spec.size, one.backend.name, tally()) for one in smaller),
        stop_map=decisions.stop_map if decisions is not None and "position" in steered else None,
    )
    predictor, small = predictor_for(session), [predictor_for(one) for one in smaller]
    steering = Steering(session, decisions)
    exactly = None if exact is None else predictor_for(exact)
    nothing_stopped = RunSettings.stop_nothing(manifest.spec, dense=True)
    for number in range(len(data)):
        sample = data.sample(number)
        answer = predictor.run(sample.rgb, plan.settings)
        measured.stems.append(sample.stem)
        measured.dynamic.add(sample, answer)
        measured.dense_gmacs.append(answer.tokens.gmacs_dense)
        results: Mapping[str, ImageResult] = {}
        if steered:
            # The oracles need the logits of the dense run, so the controls bring that run with them.
            results = steering.results(steered, sample.rgb, answer.tokens, number=number)
        elif compared:
            results = {"dense": predictor.run(sample.rgb, nothing_stopped)}
        for name, each in compared.items():
            each.add(sample, results[name])
        found = results.get("dense") if exactly is None else exactly.run(sample.rgb, nothing_stopped)
        if measured.exact is not None and found is not None:
            measured.agreement.add(found, answer)
            if measured.exact is not measured.dense:
                measured.exact.add(sample, found)
        for one, run in zip(small, measured.smaller, strict=True):
            run.tally.add(sample, one.run(sample.rgb, nothing_stopped))
        advance(answer.tokens.flops_saved)
    if math.isnan(measured.dynamic.score):
        raise DatasetError(f"{data.name}: no labelled pixel in the whole split")
    return measured


def _check_request(manifest: Manifest, tally: type[Tally], plan: EvalPlan) -> None:
    if manifest.task != tally.task:
        raise UsageError(f"{manifest.name}: its task is {manifest.task}; these labels are for {tally.task}")
    if plan.controls is not None and tally.task == "segmentation" and not manifest.spec.gates:
        raise UsageError(f"{manifest.name} is a model without gates; there is nothing to control")


def _possible(controls: Sequence[str], decisions: Decisions | None) -> tuple[str, ...]:
    """Without those that rest on other images, where there are none."""
    made = () if decisions is None else decisions.available
    return tuple(name for name in controls if name not in ELSEWHERE or name in made)


def check_classes(data: Dataset | LabelledImages, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not the bundle's.

    Raises:
        DatasetError: another number of classes, or the same names in another order.
    """
    if isinstance(data, LabelledImages):
        source, names = data.order, [entry.name for entry in data.classes]
        fix_number = "where only some classes have images, list all of them in classes.json or synsets.txt"
        fix_order = "list them as the bundle does in classes.json"
    else:
        source, names = "the data set", list(data.classes.names)
        fix_number = "evaluate on a data set of the bundle's classes, or list those of the data set in classes.json"
        fix_order = "number the labels as the bundle does"
    given, own = [name.lower() for name in names], [entry.name.lower() for entry in manifest.classes]
    if len(own) != len(given):
        raise DatasetError(
            f"{source} gives {len(given)} classes ({_few(given)}), the bundle {manifest.name} has {len(own)} "
            f"({_few(own)}); {fix_number}"
        )
    # Other names for the same number of classes are the user's business; the same names permuted are a mistake.
    if own != given and sorted(own) == sorted(given):
        number = next(number for number in range(len(own)) if own[number] != given[number])
        raise DatasetError(
            f"class {number} is '{given[number]}' by {source} and '{own[number]}' in the bundle {manifest.name}: "
            f"the same names in another order; {fix_order}"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
