"""RunJob: a source through a session into an output folder, with the report that tells what happened."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import SourceError
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.output_folder import make_fresh, partial_path, put_in_place, remove
from dovit_deploy.runtime.frame_source import FailedFrame, Source
from dovit_deploy.runtime.pipeline import Pipeline
from dovit_deploy.runtime.results import Frame
from dovit_deploy.runtime.run_outputs import RunOutputs
from dovit_deploy.runtime.run_report import RunReport, row_from_frame
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.tasks import Answer, predictor_for

Summary = dict[str, Any]
Advance = Callable[[float], None]
"""Called after each frame with its share of FLOPs saved."""


class RunJob:
    """One run of `dovit run`.

    Args:
        session: what computes.
        source: where frames come from.
        folder: appears whole at the end, also after an interrupt; while it grows it is `NAME.partial`.
        kinds: of `run_outputs.KINDS`.
        thresholds: (gates, K), or None for the bundle's own.
        dense: stop nothing.
        every: the source's `--every`.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        *,
        folder: Path,
        kinds: tuple[str, ...],
        thresholds: npt.NDArray[np.float32] | None,
        dense: bool,
        every: int,
    ) -> None:
        self._session, self._source, self._folder = session, source, folder
        self._kinds, self._thresholds, self._dense, self._every = kinds, thresholds, dense, every
        self.failures: list[FailedFrame] = []
        self.warnings: list[str] = []

    def run(self, *, stop: threading.Event, advance: Advance, failed: Callable[[str], None]) -> Summary:
        """Work through the source; returns what `summary.json` holds.

        Raises:
            SourceError: not one frame could be read; nothing is left behind.
        """
        partial = partial_path(self._folder)
        make_fresh(partial)
        try:
            summary = self._fill(partial, stop=stop, advance=advance, failed=failed)
            if summary["frames"] == 0 and not summary["interrupted"]:
                reason = self.failures[0].message if self.failures else "the source gave no frame"
                raise SourceError(f"no picture was run: {reason}")
            (partial / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            put_in_place(partial, self._folder)
        finally:
            remove(partial)
        return summary

    def _fill(
        self, partial: Path, *, stop: threading.Event, advance: Advance, failed: Callable[[str], None]
    ) -> Summary:
        predictor = predictor_for(self._session)
        with (
            (partial / "frames.jsonl").open("w", encoding="utf-8") as file,
            RunOutputs(partial, self._source, kinds=self._kinds, every=self._every) as outputs,
        ):
            report = RunReport(file)

            def predict(frame: Frame) -> Answer:
                return predictor.predict(
                    frame.rgb, decode_ms=frame.decode_ms, thresholds=self._thresholds, dense=self._dense
                )

            def write(frame: Frame, result: Answer) -> None:
                outputs.write(frame, result)
                report.add({**row_from_frame(frame, result.tokens, result.timing), **result.facts()})
                advance(result.tokens.flops_saved)

            def note_failure(frame: FailedFrame) -> None:
                self.failures.append(frame)
                failed(frame.message)

            Pipeline(self._source, predict=predict, write=write, failed=note_failure, stop=stop).run()
        self.warnings = outputs.warnings
        return self._summary(report, interrupted=stop.is_set())

    def _summary(self, report: RunReport, *, interrupted: bool) -> Summary:
        session = self._session
        limits = self._thresholds
        if limits is None:
            limits = np.asarray(session.bundle.manifest.defaults.thresholds, dtype=np.float32)
        return {
            "frames": report.frames,
            "interrupted": interrupted,
            "engine": session.backend.name,
            "precision": session.backend.precision,
            "thresholds": None if self._dense else short_thresholds(limits),
            "dense": self._dense,
            "bundle": str(session.bundle.path),
            "machine": machine_facts(),
            "versions": package_versions(),
            "failed": [{"source": frame.source, "message": frame.message} for frame in self.failures],
            **report.statistics(),
        }


def short_thresholds(thresholds: npt.NDArray[np.float32]) -> list[Any]:
    """One number per gate where all classes share it, else one per gate and class."""
    rows = np.round(thresholds.astype(np.float64), 7)
    if rows.size and (rows == rows[:, :1]).all():
        return [float(row[0]) for row in rows]
    return [[float(value) for value in row] for row in rows]


def summary_lines(summary: Summary) -> list[str]:
    """What the user reads at the end."""
    if not summary["frames"]:
        return ["0 frames"]
    latency, tokens = summary["latency_ms"], summary["tokens"]
    kept = " -> ".join(f"{stage['mean']:.0f}" for stage in tokens["kept"])
    return [
        f"{summary['frames']} frames, {summary['engine']} {summary['precision']}",
        f"latency per frame (ms): total {latency['total']['p50']:.1f} median, {latency['total']['p99']:.1f} p99; "
        + ", ".join(f"{part} {latency[part]['p50']:.1f}" for part in ("decode", "preprocess", "model", "postprocess")),
        f"tokens per stage: {kept}",
        f"FLOPs saved: {summary['flops_saved']['mean']:.1%} "
        f"({summary['gmacs']['actual']['mean']:.2f} of {summary['gmacs']['dense']['mean']:.2f} GMACs)",
    ]
