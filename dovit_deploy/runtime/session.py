"""Session: all stages of one bundle in one backend. The whole dynamic runtime is the loop in `stages`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    CONFIDENCE,
    COUNT,
    DENSE,
    FLOOR,
    INDEX,
    KEPT,
    LOGITS,
    ORDER,
    PIXELS,
    THRESHOLDS,
    TOKENS,
    carried_from_outputs,
    carry_inputs,
    keep_name,
    stage_name,
    tokens_output,
)
from dovit_deploy.engines.base import NONE_GIVEN, Backend, Buffer, Engine, EngineOptions, PaddingEngine, as_float32
from dovit_deploy.engines.registry import backend_from_name
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.runtime.deadline import Capping
from dovit_deploy.runtime.given import check_pixels_array
from dovit_deploy.runtime.results import Answer, Pixels, RunTiming, TokenReport
from dovit_deploy.runtime.settings import Keep, RunSettings, Thresholds

Decide = Callable[[int, Mapping[str, Buffer]], npt.NDArray[np.int64]]


class Session:
    """A bundle ready to run, one image at a time; usable with `with`, or closed by `close()`.

    Args:
        bundle: an opened bundle, its path, or the name of an installed model.
        engine: a name of `engines.registry`; "torch" is the reference.
        precision: one that engine and bundle both have; None: the engine's own, fp32 but for TensorRT.
        threads: of one operator; None leaves it to the engine.
        callers: threads that will call `run_one` at once; more than one only of an engine that is `concurrent`.
        options: what only some engines use.
        backend: instead of the five above, a backend made by the caller.

    Raises:
        UsageError: unknown engine or precision.
        PackageMissing: the engine's package is not installed.
        GraphMismatch: the engine refuses a graph.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        engine: str = "onnxruntime",
        precision: str | None = None,
        threads: int | None = None,
        callers: int = 1,
        options: EngineOptions = NONE_GIVEN,
        backend: Backend | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.callers, self.threads = callers, threads
        self.backend = backend or backend_from_name(
            engine, precision=precision, threads=threads, options=options, callers=callers
        )
        self._cost = cost_model(self.bundle.manifest.spec)
        self._engines: dict[str, Engine] = {}
        self._padding: list[PaddingEngine] = []
        """Of the engines, those that compile sizes."""
        self._loading = threading.Lock()
        self._closed = False
        try:
            # All stages at once: what an engine refuses is then known before the first frame.
            for number in range(self.bundle.stages):
                self.engine(stage_name(number))
        except BaseException:
            # Those before it may hold device memory.
            self.close()
            raise

    def run(
        self,
        pixels: Pixels,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[Answer, TokenReport | list[TokenReport]]:
        """The model's answer and what was done to reach it.

        Args:
            pixels: (1, 3, H, W) or (B, 3, H, W) float32, normalised, at exactly the bundle's size.
            thresholds: one number, one per gate, or (gates, K); None: the bundle's own.
            floor: tokens less confident than this stop too; 0 is off; None: the bundle's own.
            keep: one boolean grid (h, w) per gate: replay these decisions instead of the gates' own (B = 1).
            dense: no gates and no floor.

        Returns:
            Logits (B, K, h, w) as the decode head gives them (see `Answer`), and a `TokenReport`, or a list for B > 1.
            Each image of a batch gives what it gives alone.

        Raises:
            InputError: pixels of another size or type, or a replay that is impossible.
            UsageError: thresholds or floor out of range, or given together with `dense`; `dense` of a model that has no
                dense network of its weights; or the session is closed.
        """
        height, width = self.bundle.manifest.spec.size
        check_pixels_array(pixels, f"(B, 3, {height}, {width})")
        if pixels.shape[0] < 1:
            raise InputError(f"pixels of shape {pixels.shape} given, (B, 3, {height}, {width}) needed")
        if keep is not None and pixels.shape[0] != 1:
            raise InputError(f"keep replays one image, {pixels.shape[0]} given")
        settings = RunSettings.resolve(self.bundle.manifest, thresholds=thresholds, floor=floor, keep=keep, dense=dense)
        # One by one: each image has token counts of its own, and no padding makes them equal.
        results = [self.run_one(pixels[number : number + 1], settings) for number in range(pixels.shape[0])]
        reports = [report for _, report in results]
        return _joined([answer for answer, _ in results]), reports[0] if len(reports) == 1 else reports

    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Answer, TokenReport]:
        """`run` for one image (1, 3, H, W): logits (1, K, h, w) and its report."""
        spec = self.bundle.manifest.spec
        if pixels.shape != (1, 3, *spec.size) or pixels.dtype != np.float32:
            raise InputError(
                f"pixels: {pixels.dtype} of shape {pixels.shape} given, "
                f"float32 of shape (1, 3, {spec.size[0]}, {spec.size[1]}) needed"
            )
        ready, pixels = self._ready(), as_float32(pixels)
        if settings.dense:
            answer, report = self._run_dense(pixels)
        elif spec.gates:
            answer, report = self._run_stages(pixels, settings)
        else:
            answer, report = self._run_whole(pixels)
        compiled = self._ready() - ready
        return answer, replace(report, compiled=compiled) if compiled else report

    def close(self) -> None:
        """Free the engines; the session cannot be used afterwards."""
        # Several threads may close at once, and one may be loading: each engine is freed once, and none comes after.
        with self._loading:
            self._closed = True
            engines = list(self._engines.values())
            self._engines.clear()
            self._padding.clear()
            for engine in engines:
                engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def engine(self, graph: str) -> Engine:
        """The engine of `graph` (stage0, ..., merged, dense), loaded at its first use.

        Raises:
            UsageError: the session is closed.
            BundleError: what is loaded now was changed since the bundle was opened.
        """
        # Who needs what is loaded does not wait for who loads another.
        loaded = self._engines.get(graph)
        if loaded is not None:
            return loaded
        # Of several callers that need a graph for the first time one loads it.
        with self._loading:
            if self._closed:
                raise UsageError(f"this session of {self.bundle.path.name} is closed; make a new one: Session(bundle)")
            if graph not in self._engines:
                engine = self.backend.load(self.bundle, graph)
                self._padding += [engine] if isinstance(engine, PaddingEngine) else []
                self._engines[graph] = engine
            return self._engines[graph]

    def _ready(self) -> int:
        """How many graphs are loaded, and sizes compiled, so far."""
        return len(self._engines) + sum(len(engine.buckets) for engine in self._padding)

    def size_run(self, number: int, count: int) -> int:
        """Tokens that stage `number` computes for `count` tokens: more of them where its engine pads."""
        engine = self.engine(stage_name(number))
        return engine.size_for(count) if isinstance(engine, PaddingEngine) else count

    def stages(
        self,
        pixels: Pixels,
        settings: RunSettings,
        *,
        decide: Decide | None = None,
    ) -> Iterator[tuple[dict[str, Buffer], Buffer | None]]:
        """Run stage by stage; yields each stage's outputs and the `index` that the next one gets (None at the end).

        Args:
            pixels: (1, 3, H, W) float32.
            settings: not of a dense run.
            decide: makes that index from the number of the gate and the outputs before it.
        """
        backend, spec = self.backend, self.bundle.manifest.spec
        carried: dict[str, Buffer] = {}
        inputs: dict[str, Buffer] = {PIXELS: backend.upload(pixels)}
        for number in range(len(spec.gates)):
            inputs[THRESHOLDS] = backend.upload(settings.thresholds[number])
            inputs[FLOOR] = backend.upload(np.asarray(settings.floor))
            outputs = self.engine(stage_name(number)).run(inputs)
            if decide is not None:
                index = backend.upload(decide(number, outputs))
            elif settings.replay is None:
                # The count is all that comes back from the device between two stages: 8 bytes.
                index = backend.narrow(outputs[ORDER], int(backend.download(outputs[COUNT])))
            else:
                index = backend.upload(settings.replay[number])
            yield outputs, index
            # What a stage does not take stays where it was made: no stage runs twice for one image.
            carried |= carried_from_outputs(outputs)
            inputs = {TOKENS: outputs[tokens_output(number)], INDEX: index}
            inputs |= {name: carried[name] for name in carry_inputs(spec, number + 1)}
        yield self.engine(stage_name(len(spec.gates))).run(inputs), None

    def _run_stages(self, pixels: Pixels, settings: RunSettings) -> tuple[Answer, TokenReport]:
        backend, taken, confidence, times = self.backend, [], [], [perf_counter()]
        capping = None if settings.deadline is None else Capping(settings.deadline, backend.download)
        for outputs, index in self.stages(pixels, settings, decide=capping):
            if index is None:
                # On a GPU the last stage is only enqueued: its time ends when its result is here.
                answer = self._answer(outputs)
            else:
                taken.append(index)
                confidence.append(outputs[CONFIDENCE])
            times.append(perf_counter())
        spec = self.bundle.manifest.spec
        # For the report alone, and after the clock: between the stages each copy would hold up the device.
        indices = [backend.download(index) for index in taken]
        kept = (spec.tokens, *(len(index) for index in indices))
        keep = tuple(_grid_from_index(index, spec.extra_tokens, spec.grid) for index in indices)
        grids = tuple(as_float32(backend.download(values)).reshape(spec.grid) for values in confidence)
        report = self._report(kept, keep, grids, times)
        return answer, report if capping is None else replace(report, capped=capping.capped)

    def _run_whole(self, pixels: Pixels) -> tuple[Answer, TokenReport]:
        """A model whose token counts are fixed: the graph itself reports how many ran, and which ones it chose."""
        download, start = self.backend.download, perf_counter()
        outputs = self.engine(stage_name(0)).run({PIXELS: self.backend.upload(pixels)})
        answer = self._answer(outputs)
        times = [start, perf_counter()]
        kept = tuple(int(count) for count in download(outputs[KEPT]))
        keep = tuple(
            download(outputs[keep_name(number)]).astype(bool).reshape(grid)
            for number, grid in enumerate(self.bundle.manifest.spec.keep_grids)
        )
        return answer, self._report(kept, keep, (), times)

    def _run_dense(self, pixels: Pixels) -> tuple[Answer, TokenReport]:
        spec = self.bundle.manifest.spec
        engine, start = self.engine(DENSE), perf_counter()
        answer = self._answer(engine.run({PIXELS: self.backend.upload(pixels)}))
        macs = self._cost.dense().total / 1e9
        timing = _timing([start, perf_counter()])
        return answer, TokenReport(_dense_counts(spec), macs, macs, (), (), timing)

    def _answer(self, outputs: Mapping[str, Buffer]) -> Answer:
        names = self.bundle.manifest.spec.outputs
        arrays = {name: as_float32(self.backend.download(outputs[name])) for name in names}
        return arrays.get(LOGITS, arrays)

    def _report(
        self,
        kept: tuple[int, ...],
        keep: tuple[npt.NDArray[np.bool_], ...],
        confidence: tuple[npt.NDArray[np.float32], ...],
        times: list[float],
    ) -> TokenReport:
        return TokenReport(
            kept=kept,
            gmacs_dense=self._cost.dense().total / 1e9,
            gmacs_actual=self._cost.actual(kept).total / 1e9,
            keep=keep,
            confidence=confidence,
            timing=_timing(times),
        )


def _dense_counts(spec: ModelSpec) -> tuple[int, ...]:
    """All tokens of every stage; a choice inside the graph may be made on a smaller grid than the first."""
    later = [spec.extra_tokens + rows * columns for rows, columns in spec.keep_grids]
    return (spec.tokens, *later) if later else (spec.tokens,) * len(spec.counts)


def _joined(answers: list[Answer]) -> Answer:
    """The answers of single images as one of a batch."""
    if isinstance(answers[0], dict):
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    return np.concatenate(answers)


def _grid_from_index(index: npt.NDArray[np.int64], extra: int, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    keep = np.zeros(grid[0] * grid[1], dtype=bool)
    # Extra tokens come first in every index and never stop.
    keep[index[extra:] - extra] = True
    return keep.reshape(grid)


def _timing(times: list[float]) -> RunTiming:
    stages = tuple(1e3 * (after - before) for before, after in itertools.pairwise(times))
    return RunTiming(model=sum(stages), stages=stages)
