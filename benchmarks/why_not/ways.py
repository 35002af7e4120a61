"""The ways to run that are compared: a name, a family, and what it does with one frame. One engine, precision, thread.

Families: "dense", "token passing", "curve" (further thresholds), "control", "smaller", "dense-trained",
"dense-trained smaller", "shallower", "merging".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from timed_session import TimedSession, processor_ms

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import FP32
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.commands.arguments import numbers
from dovit_deploy.datasets.dataset import Sample
from dovit_deploy.families.spec import ModelSpec
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
        self._session = opened(chosen.bundle, self.runtime)
        self.main = timed(self._session)
        self.manifest = self.main.session.bundle.manifest
        self._controlled = chosen.controls
        self.ways = self._passing(chosen.thresholds, chosen.curve) + (self._controls() if chosen.controls else [])
        self.ways += [dense_way(path, "smaller", "same weights, {size}", self.runtime) for path in chosen.smaller]
        if chosen.dense_trained is not None:
            self.ways.append(dense_way(chosen.dense_trained, "dense-trained", "dense-trained", self.runtime))
        for path in chosen.dense_trained_smaller:
            self.ways.append(dense_way(path, "dense-trained smaller", "dense-trained, {size}", self.runtime))
        for path in chosen.shallower:
            self.ways.append(dense_way(path, "shallower", "dense-trained, {depth} layers", self.runtime))
        # Merging is made for networks that were trained dense; without one the bundle's own weights serve.
        merged = Bundle.open(chosen.dense_trained or chosen.bundle)
        self.ways += [merging_way(merged, count, folder, self.runtime) for count in chosen.merge]

    def warm_up(self) -> None:
        """Have the engine compile whatever it compiles for a number of tokens: no frame's time is to hold that."""
        spec = self.manifest.spec
        if spec.gates:
            run_every_size(self._session, spec.tokens)

    def frame(self, sample: Sample, number: int) -> LabelledFrame:
        """`sample` as every way gets it; runs the rule once, untimed, for the control that stops as many at random."""
        return LabelledFrame(sample, number, self.main.predict(sample.rgb).tokens if self._controlled else None)

    def _passing(self, thresholds: Iterable[str], curve: Iterable[str]) -> list[Way]:
        ways = [
            Way("dense", "dense", lambda frame: self.main.predict(frame.sample.rgb, dense=True)),
            passing_way(self.main, None, "token passing"),
        ]
        # A threshold that is an operating point is not measured a second time for the curve.
        points = dict.fromkeys(thresholds, "token passing")
        further = {text: "curve" for text in curve if text not in points}
        return ways + [passing_way(self.main, text, family) for text, family in (points | further).items()]

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


def opened(path: Path, runtime: Runtime) -> Session:
    """A session of a bundle in one thread.

    Raises:
        UsageError: the bundle does not carry the precision.
    """
    return Session(Bundle.open(path), engine=runtime.engine, precision=runtime.precision, threads=1)


def passing_way(predictor: Predictor, thresholds: str | None, family: str) -> Way:
    """A bundle that stops tokens at `thresholds`, as on the command line; None: its own."""
    manifest = predictor.session.bundle.manifest
    limits = limits_of(manifest, thresholds)
    return Way(
        passing_name(manifest, thresholds), family, lambda frame: predictor.predict(frame.sample.rgb, thresholds=limits)
    )


def passing_name(manifest: Manifest, thresholds: str | None) -> str:
    """Of `thresholds`, as on the command line; None: the bundle's own."""
    short = shown_thresholds(short_thresholds(limits_of(manifest, thresholds)))
    return f"own thresholds ({short})" if thresholds is None else f"threshold {short}"


def limits_of(manifest: Manifest, thresholds: str | None) -> NDArray[np.float32]:
    """(gates, classes): `thresholds`, as on the command line; None: the bundle's own."""
    given = None if thresholds is None else numbers(thresholds, option="--thresholds")
    return thresholds_from(given[0] if given is not None and len(given) == 1 else given, manifest)


def dense_way(path: Path, family: str, name: str, runtime: Runtime) -> Way:
    """A bundle with nothing stopped; `name` may hold {size} (height x width) and {depth}, of the model."""
    predictor = timed(opened(path, runtime))
    return Way(named(name, predictor.spec), family, lambda frame: predictor.predict(frame.sample.rgb, dense=True))


def named(name: str, spec: ModelSpec) -> str:
    """`name` with {size} (height x width) and {depth} filled in."""
    height, width = spec.size
    return name.format(size=f"{height}x{width}", depth=spec.depth)


def merging_way(bundle: Bundle, count: int, folder: Path, runtime: Runtime) -> Way:
    """The bundle's weights dense with `count` tokens merged a layer, in fp32; its graphs lie in `folder`."""
    engine, precision = runtime
    graphs = folder / f"{engine}-{precision}"
    graphs.mkdir(exist_ok=True)
    predictor = timed(MergingSession(bundle, count, folder=graphs, engine=engine))
    name = merging_name(count, precision)
    return Way(name, "merging", lambda frame: predictor.predict(frame.sample.rgb))


def merging_name(count: int, precision: str) -> str:
    """Of `count` tokens merged a layer in a table of this precision."""
    return f"merging {count} tokens a layer" + ("" if precision == FP32 else f", in {FP32}")


def timed(session: RunsOne) -> Predictor:
    """What runs images, and says how long the processor computed."""
    return Predictor(TimedSession(session))


def shown_thresholds(thresholds: Sequence[float | list[float]]) -> str:
    """`0.7` where all gates share it, `0.9, 1, 1` per gate, `per class` where classes differ."""
    values = [row for row in thresholds if isinstance(row, float)]
    if len(values) < len(thresholds):
        return "per class"
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
