"""What does a worker leave of a row? Its answers, frame by frame, and a marker that says that they are all there.

    <row>.<random>.0.frames   some frames: a safetensors file, what is said of them in its header, masks as PNGs in it
    <row>.json                the marker, written last: which files, made with what, and hashes of the outer frames

Every attempt writes files of its own name, so that one that was killed and the one that takes its place never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from dovit_deploy.errors import OutputFailed
from dovit_deploy.files import write_bytes, write_text
from dovit_deploy.record import Record
from dovit_deploy.runtime.audit import Audited
from dovit_deploy.runtime.classification import ClassificationResult
from dovit_deploy.runtime.results import FrameTokens, Region
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.sources.source import RGB, FailedFrame, Frame

FRAMES_A_FILE = 128
"""So many answers are in memory at most, in a worker and in the driver."""
Bits = npt.NDArray[np.uint8]


class WindowEntry(Record):
    """A window of a frame: where it lay, and what its tokens did."""

    corner: tuple[int, int, int, int]
    """Top, left, height, width."""
    kept: tuple[int, ...]
    dense: float
    actual: float
    """10^9 MACs."""
    capped: int
    compiled: int
    grids: tuple[tuple[int, int], ...]
    """Shapes of its decisions, whose bits lie beside this."""


class FrameEntry(Record):
    """Everything that a run writes of a frame, but for its pixels."""

    index: int
    source: str
    time_s: str
    """Exact: "1001/30000"."""
    digest: str
    """Of the pixels."""
    timing: tuple[float, float, float, float]
    """Milliseconds: decode, preprocess, model, postprocess."""
    windows: tuple[WindowEntry, ...]
    input_size: tuple[int, int]
    patch: int
    pads: tuple[int, int]
    region: tuple[float, float, float, float] | None
    still: bool
    audited: tuple[float, float] | None
    scores: tuple[tuple[int, str, float], ...] | None
    """Of a classifier: id, name, probability."""
    shares: dict[str, float]
    """Of each class that is present, of the pixels."""


class FailedEntry(Record):
    """A frame that could not be read."""

    index: int
    source: str
    message: str


Entry = FrameEntry | FailedEntry
_ENTRIES = TypeAdapter(list[FrameEntry | FailedEntry])


class PartOrigin(Record):
    """What computed a part: parts that differ in it may differ in their answers' last bits."""

    bundle: str
    """Digest of what the bundle computes."""
    settings: str
    """Digest of how it was asked to."""
    features: tuple[str, ...]
    """Instruction sets of the processor."""
    versions: dict[str, str]


class PartMarker(Record):
    """That a row is done."""

    row: str
    fingerprint: str
    """Of the source, as it was read."""
    origin: PartOrigin
    files: tuple[str, ...]
    frames: int
    first: str
    """Digest of the pixels of the frame before the first one, where the row is a segment with one; else ""."""
    last: str
    """Of the last frame."""
    saved: float
    """Sum over the frames of the fraction of the FLOPs that was saved."""
    seconds: float
    """That a worker was busy with it."""
    cpu_seconds: float
    worker: str


def pixel_digest(rgb: RGB) -> str:
    """A hash of an image's pixels."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()[:16]


@dataclass(frozen=True)
class Answered:
    """An entry with what lies beside it."""

    entry: Entry
    mask: bytes = b""
    """The class map as a PNG; empty for a classifier."""
    keep: Bits | None = None
    """The decisions of all windows and gates, packed one after another."""


def answered_from_result(frame: Frame, digest: str, result: ImageResult, audited: Audited | None) -> Answered:
    """What is kept of the answer to a frame."""
    tokens, timing = result.tokens, result.timing
    grids = [grid.ravel() for window in tokens.windows for grid in window.report.keep]
    classes = result.classes if isinstance(result, ClassificationResult) else None
    entry = FrameEntry(
        index=frame.index,
        source=frame.source,
        time_s=str(frame.time_s),
        digest=digest,
        timing=(timing.decode, timing.preprocess, timing.model, timing.postprocess),
        windows=_windows(tokens),
        input_size=tokens.input_size,
        patch=tokens.patch,
        pads=tokens.pads,
        region=None if tokens.region is None else _of_region(tokens.region),
        still=tokens.still,
        audited=None if audited is None else (audited.differing, audited.ms),
        scores=None if classes is None else tuple((one.id, one.name, one.probability) for one in classes),
        shares={share.name: share.share for share in result.shares()},
    )
    bits = np.packbits(np.concatenate(grids)) if grids else np.zeros(0, dtype=np.uint8)
    return Answered(entry, result.png() if classes is None else b"", bits)


def _windows(tokens: FrameTokens) -> tuple[WindowEntry, ...]:
    return tuple(
        WindowEntry(
            corner=(window.top, window.left, window.height, window.width),
            kept=window.report.kept,
            dense=window.report.gmacs_dense,
            actual=window.report.gmacs_actual,
            capped=window.report.capped,
            compiled=window.report.compiled,
            grids=tuple((grid.shape[0], grid.shape[1]) for grid in window.report.keep),
        )
        for window in tokens.windows
    )


def _of_region(region: Region) -> tuple[float, float, float, float]:
    return region.top, region.left, region.height, region.width


def answered_from_failure(frame: FailedFrame) -> Answered:
    """What is kept of a frame that could not be read."""
    return Answered(FailedEntry(index=frame.index, source=frame.source, message=frame.message))


class PartWriter:
    """Writes the answers of one row into a folder; nothing counts before `finish`.

    Args:
        folder: of all parts.
        row: the name of the row.

    Raises:
        OutputFailed: (from every method) the disk refuses it.
    """

    def __init__(self, folder: Path, row: str) -> None:
        self._folder, self._row = folder, row
        self._attempt = os.urandom(4).hex()
        self._held: list[Answered] = []
        self.files: list[str] = []
        self.frames = 0

    def add(self, answered: Answered) -> None:
        """One more frame, in the order of the row."""
        self._held.append(answered)
        self.frames += isinstance(answered.entry, FrameEntry)
        if len(self._held) == FRAMES_A_FILE:
            self._flush()

    def finish(self, marker: PartMarker) -> None:
        """All frames were added: the row counts as done from here on."""
        write_text(self._folder / f"{self._row}.json", marker.model_dump_json(indent=1) + "\n")

    def flush(self) -> tuple[str, ...]:
        """Write what is held; the names of all files."""
        if self._held:
            self._flush()
        return tuple(self.files)

    def _flush(self) -> None:
        import safetensors.numpy

        tensors = {}
        for number, answered in enumerate(self._held):
            if answered.mask:
                tensors[f"mask.{number}"] = np.frombuffer(answered.mask, dtype=np.uint8)
            if answered.keep is not None and answered.keep.size:
                tensors[f"keep.{number}"] = answered.keep
        entries = json.dumps([answered.entry.model_dump(mode="json") for answered in self._held])
        name = f"{self._row}.{self._attempt}.{len(self.files)}.frames"
        write_bytes(self._folder / name, safetensors.numpy.save(tensors, {"entries": entries}))
        self.files.append(name)
        self._held.clear()


def marker_of(folder: Path, row: str) -> PartMarker | None:
    """The marker of a row; None: it is not done, or what is left of it cannot be read."""
    try:
        marker = PartMarker.model_validate_json((folder / f"{row}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return marker if all((folder / name).is_file() for name in marker.files) else None


def entries_of(folder: Path, marker: PartMarker) -> Iterator[Entry]:
    """The entries of a row alone, without what lies beside them."""
    for name in marker.files:
        yield from _read(folder / name)[0]


def answers_of(folder: Path, marker: PartMarker) -> Iterator[Answered]:
    """The answers of a row, in their order."""
    import safetensors

    for name in marker.files:
        entries, names = _read(folder / name)
        with safetensors.safe_open(folder / name, "numpy") as file:
            for number, entry in enumerate(entries):
                mask = file.get_tensor(f"mask.{number}").tobytes() if f"mask.{number}" in names else b""
                keep = file.get_tensor(f"keep.{number}") if f"keep.{number}" in names else None
                yield Answered(entry, mask, keep)


def _read(path: Path) -> tuple[list[Entry], frozenset[str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:
            return _ENTRIES.validate_json(file.metadata()["entries"]), frozenset(file.keys())
    except (OSError, safetensors.SafetensorError, KeyError, ValidationError) as error:
        raise OutputFailed(
            f"{path}: a part that was written cannot be read ({error}); delete it, and --resume"
        ) from error


def seconds_of(entry: FrameEntry) -> Fraction:
    """The time of a frame, exact."""
    return Fraction(entry.time_s)
