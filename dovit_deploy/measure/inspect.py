"""What is in a bundle: its manifest, how it was verified, what it costs, which files it has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dovit_deploy.bundle.bundle import PARITY, Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, Preprocessing
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.errors import BundleError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.macs import FlopReport
from dovit_deploy.families.parts import head_text
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.record import Record
from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame, Source

# A network in words and numbers: what a bundle and a checkpoint have in common.

Rows = tuple[tuple[str, str], ...]

MOST_NAMES, FEW_NAMES = 200, 5
"""Of more classes than the first, only so many as the second are named."""


class CostRow(Record):
    """10^9 MACs of one image, by part."""

    case: str
    stem: float
    layers: float
    gates: float
    head: float
    total: float


def cost_row(case: str, report: FlopReport) -> CostRow:
    """A cost in 10^9 MACs."""
    return CostRow(
        case=case,
        stem=report.stem / 1e9,
        layers=report.layers / 1e9,
        gates=report.gates / 1e9,
        head=report.head / 1e9,
        total=report.total / 1e9,
    )


def cost_rows(spec: ModelSpec, counts: Sequence[int] | None) -> tuple[CostRow, ...]:
    """Cost of the dense network; for models with gates, with nothing stopped and at `counts` tokens per stage."""
    model = cost_model(spec)
    rows = [cost_row("dense", model.dense())]
    if spec.gates:
        rows.append(cost_row("nothing stopped", model.actual(spec.counts)))
        if counts is not None:
            rows.append(cost_row("typical", model.actual(counts)))
    elif len(spec.counts) > 1:
        rows.append(cost_row("every image", model.actual(spec.counts)))
    return tuple(rows)


def network_rows(spec: ModelSpec) -> Rows:
    """Family, size and shape of a network."""
    rows, columns = spec.grid
    return (
        ("family", spec.family),
        ("size", f"{spec.size[0]}x{spec.size[1]} pixels, {rows}x{columns} patches of {spec.patch}"),
        *spec.parts,
    )


def gate_rows(spec: ModelSpec, thresholds: Sequence[Sequence[float]], floor: float) -> Rows:
    """Where tokens stop: a row per gate, then the floor where it is on."""
    rows = [
        (f"gate {number}", f"before layer {gate.layer}, {head_text(gate.head)}, threshold {_limits(row)}")
        for number, (gate, row) in enumerate(zip(spec.gates, thresholds, strict=True))
    ]
    if not spec.gates:
        return (("gates", "none: a dense model" if len(spec.counts) == 1 else "none: token counts are fixed"),)
    return (*rows, *((("floor", f"{floor:g}"),) if floor else ()))


def _limits(row: Sequence[float]) -> str:
    """One number where all classes share it."""
    if len(set(row)) == 1:
        return f"{row[0]:g}"
    return f"{min(row):g} to {max(row):g} by class"


def picture_rows(preprocessing: Preprocessing, classes: Sequence[ClassEntry]) -> Rows:
    """What happens to pictures, and what they are cut into."""
    origin = " (assumed: ImageNet's)" if preprocessing.assumed else ""
    return (
        ("mean, std", f"{_triple(preprocessing.mean)}; {_triple(preprocessing.std)}{origin}"),
        _fitting_row(preprocessing),
        ("classes", _class_text(classes)),
    )


def _fitting_row(preprocessing: Preprocessing) -> tuple[str, str]:
    """How a picture gets the size of the model."""
    crop, stride = preprocessing.crop, preprocessing.stride
    if crop is not None:
        return "images", f"shorter side resized to {crop.shorter} ({crop.filter}), the centre is seen"
    return "larger images", "are resized" if stride is None else f"slide by {stride[0]}x{stride[1]}"


def _class_text(classes: Sequence[ClassEntry]) -> str:
    """How many, and their names; of many the first few."""
    names = [entry.name for entry in classes]
    if not names:
        return "none: a backbone without a head"
    shown = names if len(names) <= MOST_NAMES else [*names[:FEW_NAMES], "..."]
    return f"{len(names)}: {', '.join(shown)}"


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


class ParityContents(Record):
    """How far the graphs are from the reference."""

    passed: bool
    reference: str
    engines: tuple[str, ...]
    """Each form with its engine, as in "fast (onnxruntime)"."""
    runs: int
    logits_error: float | None
    """Largest difference of a logit (of a backbone without a head: of a feature)."""
    explained: int
    """Decisions that differ, and were closer to their threshold than the numerical error."""
    failures: tuple[str, ...]


class BundleContents(Record):
    """A bundle, as `manifest.json` and `parity.json` describe it."""

    kind: Literal["bundle"] = "bundle"
    path: str
    manifest: Manifest
    parity: ParityContents | None
    gmacs: tuple[CostRow, ...]
    bytes: int
    """All files that the manifest lists."""

    @property
    def rows(self) -> Rows:
        """What a user reads: label and text."""
        manifest = self.manifest
        defaults = manifest.defaults
        return (
            ("name", f"{manifest.name}, format version {manifest.version}, {manifest.task}"),
            *network_rows(manifest.spec),
            *gate_rows(manifest.spec, defaults.thresholds, defaults.floor),
            *((("thresholds", f"from {defaults.origin}"),) if manifest.spec.gates else ()),
            ("tokens", _token_text(manifest)),
            *picture_rows(manifest.preprocessing, manifest.classes),
            ("precisions", f"{', '.join(manifest.precisions)}; opset {manifest.opset}"),
            ("made", f"by {manifest.provenance.tool} from {manifest.provenance.source}"),
            *((("licence", manifest.provenance.license),) if manifest.provenance.license else ()),
            ("parity", _parity_text(self.parity)),
        )


def bundle_contents(bundle: Bundle) -> BundleContents:
    """Describe an opened bundle.

    Raises:
        BundleError: `parity.json` is not what it must be.
    """
    manifest = bundle.manifest
    return BundleContents(
        path=str(bundle.path),
        manifest=manifest,
        parity=_parity(bundle),
        gmacs=cost_rows(manifest.spec, [count.typical for count in manifest.counts]),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
    )


def _token_text(manifest: Manifest) -> str:
    """Tokens from stage to stage."""
    if not manifest.spec.gates:
        return f"{' -> '.join(map(str, manifest.spec.counts))}, the same for every image"
    counts = " -> ".join(str(count.typical) for count in manifest.counts)
    return f"{counts} typically, {manifest.counts[0].maximum} at most"


def _parity(bundle: Bundle) -> ParityContents | None:
    if PARITY not in bundle.manifest.files:
        return None
    try:
        report = ParityReport.model_validate_json((bundle.path / PARITY).read_bytes())
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{bundle.path.name}: {PARITY} is not a parity report ({place}); export it again") from error
    runs = [run for form in report.forms for run in form.runs]
    return ParityContents(
        passed=not report.failures,
        reference=report.reference,
        engines=tuple(f"{form.form} ({form.engine})" for form in report.forms),
        runs=len(runs),
        logits_error=report.answers_error,
        explained=sum(gate.explained for run in runs for gate in run.gates),
        failures=report.failures,
    )


def _parity_text(parity: ParityContents | None) -> str:
    if parity is None:
        return "no report"
    if not parity.passed:
        return f"FAILED against {parity.reference}: {parity.failures[0]}"
    error = "" if parity.logits_error is None else f", largest logit difference {parity.logits_error:.1e}"
    return (
        f"verified against {parity.reference} in {parity.runs} runs: {', '.join(parity.engines)}{error}, "
        f"{parity.explained} explained flips"
    )


# What is in an image, a folder of images, or a video: size, number of frames, rate, sound.


class PictureContents(Record):
    """A source of pictures."""

    kind: Literal["images", "video"]
    path: str
    bytes: int | None
    """None for a folder."""
    height: int | None
    """Upright, in pixels; of the first picture of a folder, None when that cannot be read."""
    width: int | None
    frames: int | None
    """None where the file does not tell."""
    rate: str | None
    """Frames per second, exact, as in "30000/1001"; None for images."""
    seconds: float | None
    audio: bool
    warnings: tuple[str, ...]

    @property
    def rows(self) -> Rows:
        """What a user reads: label and text."""
        size = "unknown" if self.height is None else f"{self.width}x{self.height} pixels (width x height)"
        seconds = "" if self.seconds is None else f", {self.seconds:.2f} s"
        return (
            ("size", size),
            ("frames", f"{'unknown' if self.frames is None else self.frames}{seconds}"),
            *((("rate", f"{self.rate} frames per second"),) if self.rate is not None else ()),
            *((("sound", "yes" if self.audio else "no"),) if self.kind == "video" else ()),
            *(("note", warning) for warning in self.warnings),
        )


def picture_contents(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PictureContents:
    """Describe the image, folder or video at `path`.

    Raises:
        SourceError: it does not open, cannot be decoded, or holds no picture.
        PackageMissing: what reads it is not installed.
    """
    with closing(open_source(str(path), max_pixels=max_pixels)) as source:
        size = _size(source)
        video = source.video
        rate = None if video is None else video.rate
        known = rate is not None and rate > 0 and source.count is not None
        return PictureContents(
            kind="images" if video is None else "video",
            path=str(path),
            bytes=path.stat().st_size if path.is_file() else None,
            height=size[0] if size else None,
            width=size[1] if size else None,
            frames=source.count,
            rate=None if rate is None else str(rate),
            seconds=float(source.count / rate) if known and source.count is not None and rate is not None else None,
            audio=video is not None and video.has_audio,
            warnings=tuple(source.warnings),
        )


def _size(source: Source) -> tuple[int, int] | None:
    """Height and width; images tell theirs only when they are read."""
    if source.video is not None:
        return source.video.size
    first = next(iter(source), None)
    if first is None or isinstance(first, FailedFrame):
        return None
    return first.rgb.shape[0], first.rgb.shape[1]
