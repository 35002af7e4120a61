"""What is in a bundle: its manifest, how it was verified, what it costs, which files it has."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from dovit_deploy.bundle.directory import PARITY, Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.errors import BundleError
from dovit_deploy.measure.model_contents import CostRow, Rows, cost_rows, gate_rows, network_rows, picture_rows


class ParityContents(Noun):
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


class BundleContents(Noun):
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
