"""What is at a path, and if it is a bundle: what is in it, and how was it verified?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.bundle.parity import CompactWeights
from dovit_deploy.checkpoints.folders import INDEXES, other_checkpoint
from dovit_deploy.errors import InputError, SourceError
from dovit_deploy.measure.inspect_checkpoint import ExportCheck, checkpoint_contents
from dovit_deploy.measure.inspect_files import Facts, onnx_contents, safetensors_contents, source_contents
from dovit_deploy.measure.inspect_network import CostRow, cost_rows, gate_facts, input_facts, network_facts
from dovit_deploy.printing import plural
from dovit_deploy.record import Record
from dovit_deploy.signatures import head_of, placeholder_for

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
CHECKPOINT_FILES = ("config.json", "checkpoint.pth", *INDEXES)
"""Of our own format and of transformers, of Segmenter's, and lists of parts; any makes a folder a checkpoint."""


class Contents(Protocol):
    """What was found; every kind of file has its own record."""

    @property
    def kind(self) -> str:
        """What the file is."""

    @property
    def path(self) -> str:
        """What was inspected."""

    @property
    def facts(self) -> Facts:
        """What a user reads."""

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """Everything, as JSON values."""


def contents_of(path: Path, *, check: ExportCheck | None = None) -> Contents:
    """Describe what is at `path`, recognised by its suffix and by the files in it.

    Args:
        path: a file or folder.
        check: whether a checkpoint that is understood can be exported.

    Raises:
        InputError: it cannot be read, or is nothing that is known here.
        UntrustedError: a bundle or checkpoint that must not be trusted.
        PackageMissing: what reads it is not installed.
    """
    placeholder = placeholder_for(path)
    if placeholder is not None:
        raise InputError(f"{path}: {placeholder}")
    # Bundles first: a folder of one may hold files with any of the suffixes below.
    suffix = path.suffix.lower()
    if suffix == ".dovit" or (path / "manifest.json").is_file():
        return bundle_contents(Bundle.open(path))
    if (
        suffix in CHECKPOINT_SUFFIXES
        or path.name in INDEXES
        or any((path / name).is_file() for name in CHECKPOINT_FILES)
    ):
        return checkpoint_contents(path, check=check)
    if suffix == ".onnx" and path.is_file():
        return onnx_contents(path)
    if suffix == ".safetensors" and path.is_file():
        # By its first bytes, what torch.save writes under any name.
        torchs = head_of(path).startswith((b"PK\x03\x04", b"\x80\x02"))
        return checkpoint_contents(path, check=check) if torchs else safetensors_contents(path)
    try:
        return source_contents(path)
    except SourceError:
        found = other_checkpoint(path) if path.is_dir() else None
        if found is None:
            raise
        raise InputError(f"{path} is {found[0]}", found[1]) from None


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
    compact: CompactWeights | None
    """Where large weights are stored in float16: what that cost."""


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
    def facts(self) -> Facts:
        """What a user reads."""
        manifest = self.manifest
        defaults = manifest.defaults
        return (
            ("name", f"{manifest.name}, format version {manifest.version}, {manifest.task}"),
            *network_facts(manifest.spec),
            *gate_facts(manifest.spec, defaults.thresholds, defaults.floor),
            *((("thresholds", f"from {defaults.origin}"),) if manifest.spec.gates else ()),
            ("tokens", _token_text(manifest)),
            *input_facts(manifest.preprocessing, manifest.classes),
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
    """Tokens that enter each stage."""
    if not manifest.spec.gates:
        return f"{' -> '.join(map(str, manifest.spec.counts))}, the same for every image"
    counts = " -> ".join(str(count.typical) for count in manifest.counts)
    return f"{counts} typically, {manifest.counts[0].maximum} at most"


def _parity(bundle: Bundle) -> ParityContents | None:
    report = bundle.parity()
    if report is None:
        return None
    runs = [run for form in report.forms for run in form.runs]
    return ParityContents(
        passed=not report.failures,
        reference=report.reference,
        engines=tuple(f"{form.form} ({form.engine})" for form in report.forms),
        runs=len(runs),
        logits_error=report.answers_error,
        explained=sum(gate.explained for run in runs for gate in run.gates),
        failures=report.failures,
        compact=report.compact,
    )


def _parity_text(parity: ParityContents | None) -> str:
    if parity is None:
        return "no report"
    if not parity.passed:
        return f"FAILED against {parity.reference}: {parity.failures[0]}"
    error = "" if parity.logits_error is None else f", largest logit difference {parity.logits_error:.1e}"
    rounded = "" if parity.compact is None else f"; {parity.compact.text}"
    return (
        f"verified against {parity.reference} in {plural(parity.runs, 'run')}: {', '.join(parity.engines)}{error}, "
        f"{plural(parity.explained, 'explained flip')}{rounded}"
    )
