"""The ways to run that are compared: a name, a family, and what it does with one frame. One engine, precision, thread.

Families: "dense", "token passing", "curve" (further thresholds), "control", "smaller", "dense-trained",
"dense-trained smaller", "shallower", "merging".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from timed_session import TimedSession, processor_ms

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import FP32
from dovit_deploy.commands.arguments import numbers
from dovit_deploy.datasets.dataset import Sample
from dovit_deploy.measure.controls import Steering
from dovit_deploy.measure.evaluate import SegmentationTally
from dovit_deploy.runtime.latency_fit import run_every_size
from dovit_deploy.runtime.results import FrameTokens
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunsOne, short_thresholds, thresholds_from
from why_not.merging import MergingSession


@dataclass(frozen=True)
class LabelledFrame:
    """A labelled sample, and what the rule did with it at the bundle's own thresholds."""

    sample: Sample
    number: int
    tokens: FrameTokens | None
    """None: no control asks for it."""


class Runtime(NamedTuple):
    """What all ways of one table run in."""

    engine: str = "onnxruntime"
    precision: str = FP32


@dataclass(frozen=True)
class Alternatives:
    """What is to be compared, by bundle files, thresholds (as on the command line) and tokens merged per layer."""

    bundle: Path
    thresholds: Sequence[str] = ()
    curve: Sequence[str] = ()
    smaller: Sequence[Path] = ()
    dense_trained: Path | None = None
    dense_trained_smaller: Sequence[Path] = ()
    shallower: Sequence[Path] = ()
    merge: Sequence[int] = ()
    controls: bool = True
    """Whether random stopping, and everything at the first gate, run, too."""


@dataclass
class Way:
    """One way to run, and what it gave on the frames of one split."""

    name: str
    family: str
    run: Callable[[LabelledFrame], SegmentationResult]
    tally: SegmentationTally = field(default_factory=SegmentationTally)
    model_ms: list[float] = field(default_factory=list)
    """Per frame: the model step, without preparing the image and reading the logits; CPU time."""
    wall_ms: list[float] = field(default_factory=list)
    """Per frame: the model step, wall time."""

    def measure(self, frame: LabelledFrame) -> None:
        """Segment `frame` and count it."""
        result = self.run(frame)
        self.tally.add(frame.sample, result)
        self.model_ms.append(processor_ms(result))
        self.wall_ms.append(result.timing.model)


class WayComparison:
    """All ways, dense first, the bundle's own thresholds second.

    Args:
        chosen: what is compared with the bundle.
        folder: an existing folder that outlives the object, for the graphs that are made here.
        runtime: what all of it runs in; merging in the same engine, but always in fp32.

    Raises:
        UsageError: a bundle does not carry the precision.
    """

    def __init__(self, chosen: Alternatives, *, folder: Path, runtime: Runtime | None = None) -> None:
        self.runtime = runtime or Runtime()
        self._session = self._opened(chosen.bundle)
        self.main = _timed(self._session)
        self.manifest = self.main.session.bundle.manifest
        self._controlled = chosen.controls
        self.ways = self._passing(chosen.thresholds, chosen.curve) + (self._controls() if chosen.controls else [])
        self.ways += [self._dense(path, "smaller", "same weights, {size}") for path in chosen.smaller]
        if chosen.dense_trained is not None:
            self.ways.append(self._dense(chosen.dense_trained, "dense-trained", "dense-trained"))
        for path in chosen.dense_trained_smaller:
            self.ways.append(self._dense(path, "dense-trained smaller", "dense-trained, {size}"))
        self.ways += [self._dense(path, "shallower", "dense-trained, {depth} layers") for path in chosen.shallower]
        # Merging is made for networks that were trained dense; without one the bundle's own weights serve.
        merged = Bundle.open(chosen.dense_trained or chosen.bundle)
        self.ways += [self._merging(merged, count, folder) for count in chosen.merge]

    def warm_up(self) -> None:
        """Have the engine compile whatever it compiles for a number of tokens: no frame's time is to hold that."""
        spec = self.manifest.spec
        if spec.gates:
            run_every_size(self._session, spec.tokens)

    def frame(self, sample: Sample, number: int) -> LabelledFrame:
        """`sample` as every way gets it; runs the rule once, untimed, for the control that stops as many at random."""
        return LabelledFrame(sample, number, self.main.predict(sample.rgb).tokens if self._controlled else None)

    def _passing(self, thresholds: Iterable[str], curve: Iterable[str]) -> list[Way]:
        own = _short(short_thresholds(thresholds_from(None, self.manifest)))
        ways = [
            Way("dense", "dense", lambda frame: self.main.predict(frame.sample.rgb, dense=True)),
            Way(f"own thresholds ({own})", "token passing", lambda frame: self.main.predict(frame.sample.rgb)),
        ]
        # A threshold that is an operating point is not measured a second time for the curve.
        points = dict.fromkeys(thresholds, "token passing")
        further = {text: "curve" for text in curve if text not in points}
        return ways + [self._at(text, family) for text, family in (points | further).items()]

    def _at(self, text: str, family: str) -> Way:
        given = numbers(text, option="--thresholds")
        limits = thresholds_from(given[0] if len(given) == 1 else given, self.manifest)
        name = f"threshold {_short(short_thresholds(limits))}"
        return Way(name, family, lambda frame: self.main.predict(frame.sample.rgb, thresholds=limits))

    def _controls(self) -> list[Way]:
        steering = Steering(self.main.session)

        def random(frame: LabelledFrame) -> SegmentationResult:
            assert frame.tokens is not None
            return steering.random(frame.sample.rgb, frame.tokens, number=frame.number)

        return [
            Way("as many stopped at random", "control", random),
            Way(
                "everything stopped at the first gate",
                "control",
                lambda frame: steering.first_gate(frame.sample.rgb),
            ),
        ]

    def _opened(self, path: Path) -> Session:
        engine, precision = self.runtime
        return Session(Bundle.open(path), engine=engine, precision=precision, threads=1)

    def _dense(self, path: Path, family: str, name: str) -> Way:
        """`name` may hold {size} and {depth}, of the model."""
        predictor = _timed(self._opened(path))
        height, width = predictor.spec.size
        # Width first, as in the published tables; everywhere else a size is height x width.
        full = name.format(size=f"{width}x{height}", depth=predictor.spec.depth)
        return Way(full, family, lambda frame: predictor.predict(frame.sample.rgb, dense=True))

    def _merging(self, bundle: Bundle, count: int, folder: Path) -> Way:
        engine, precision = self.runtime
        graphs = folder / f"{engine}-{precision}"
        graphs.mkdir(exist_ok=True)
        predictor = _timed(MergingSession(bundle, count, folder=graphs, engine=engine))
        name = f"merging {count} tokens a layer" + ("" if precision == FP32 else f", in {FP32}")
        return Way(name, "merging", lambda frame: predictor.predict(frame.sample.rgb))


def _timed(session: RunsOne) -> Predictor:
    return Predictor(TimedSession(session))


def _short(thresholds: Sequence[float | list[float]]) -> str:
    """`0.7` where all gates share it, `0.9, 1, 1` per gate, `per class` where classes differ."""
    values = [row for row in thresholds if isinstance(row, float)]
    if len(values) < len(thresholds):
        return "per class"
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
