"""The report of a run: a row per frame in `frames.jsonl`, and `summary.json` with the distribution of every number."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from dovit_deploy.runtime.results import Frame, FrameTiming, FrameTokens

Row = dict[str, Any]

QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
_WORDS = ("index", "source", "time_s", "top")
"""Fields of a row that have no distribution: what identifies it, and the answer."""


def row_from_frame(frame: Frame, tokens: FrameTokens, timing: FrameTiming) -> Row:
    """One row of `frames.jsonl`: times in ms, MACs in 10^9, `flops_saved` a fraction."""
    return {
        "index": frame.index,
        "source": frame.source,
        "time_s": float(frame.time_s),
        "windows": len(tokens.windows),
        "latency_ms": {
            "decode": timing.decode,
            "preprocess": timing.preprocess,
            "model": timing.model,
            "postprocess": timing.postprocess,
            "total": timing.total,
        },
        "tokens": {"total": tokens.total, "kept": list(tokens.kept)},
        "gmacs": {"dense": tokens.gmacs_dense, "actual": tokens.gmacs_actual},
        "flops_saved": tokens.flops_saved,
    }


class RunReport:
    """Writes rows as they come and keeps of each number only the number: 8 bytes a frame and field."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._columns: dict[tuple[str, ...], array[float]] = {}
        self.frames = 0

    def add(self, row: Row) -> None:
        """Append `row` to the file and to the statistics."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.frames += 1
        for name, value in row.items():
            if name not in _WORDS:
                self._collect((name,), value)

    def _collect(self, path: tuple[str, ...], value: Any) -> None:  # noqa: ANN401  JSON
        if isinstance(value, Mapping):
            for name, part in value.items():
                self._collect((*path, name), part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                self._collect((*path, str(number)), part)
        else:
            self._columns.setdefault(path, array("d")).append(float(value))

    def statistics(self) -> dict[str, Any]:
        """Each numeric field with its mean and percentiles, nested as in a row; lists become lists."""
        tree: dict[str, Any] = {}
        for path, column in self._columns.items():
            place = tree
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = distribution(np.frombuffer(column, dtype=np.float64))
        if isinstance(tree.get("tokens"), dict):
            tree["tokens"]["kept"] = list(tree["tokens"]["kept"].values())
        return tree


def distribution(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Mean and percentiles of a column."""
    quantiles = np.percentile(values, list(QUANTILES.values()))
    return {
        "mean": float(values.mean()),
        **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }
