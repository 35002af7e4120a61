"""What is in a bundle or a checkpoint (its network, its cost, how it was verified), and what is at a path at all?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import PARITY, Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, Preprocessing
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.checkpoints.folders import other_checkpoint
from dovit_deploy.errors import (
    BundleError,
    ConfigError,
    DovitError,
    InputError,
    NetworkUnknown,
    SourceError,
    UsageError,
)
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.macs import FlopReport
from dovit_deploy.families.parts import head_text
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.measure.inspect_files import Facts, onnx_contents, safetensors_contents, source_contents
from dovit_deploy.printing import plural
from dovit_deploy.record import Record
from dovit_deploy.signatures import head_of, placeholder_for

if TYPE_CHECKING:
    from dovit_deploy.checkpoints.checkpoint import Checkpoint

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
CHECKPOINT_FILES = ("config.json", "checkpoint.pth")
"""Of our own format, and of Segmenter's; either makes a folder a checkpoint."""


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


ExportCheck = Callable[["Checkpoint"], None]
"""Raises UsageError for a checkpoint that an export would refuse as it is."""


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
    if suffix in CHECKPOINT_SUFFIXES or any((path / name).is_file() for name in CHECKPOINT_FILES):
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


# A network: what a bundle and a checkpoint have in common.

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


def cost_rows(spec: ModelSpec, counts: Sequence[int] | None) -> tuple[CostRow, ...]:
    """Cost of the dense network; for models with gates, with nothing stopped and at `counts` tokens per stage."""
    model = cost_model(spec)
    costs = {"dense": model.dense()}
    if spec.gates:
        costs["nothing stopped"] = model.actual(spec.counts)
        if counts is not None:
            costs["typical"] = model.actual(counts)
    elif len(spec.counts) > 1:
        costs["every image"] = model.actual(spec.counts)
    return tuple(_cost_row(case, cost) for case, cost in costs.items())


def _cost_row(case: str, cost: FlopReport) -> CostRow:
    return CostRow(
        case=case,
        stem=cost.stem / 1e9,
        layers=cost.layers / 1e9,
        gates=cost.gates / 1e9,
        head=cost.head / 1e9,
        total=cost.total / 1e9,
    )


def network_facts(spec: ModelSpec) -> Facts:
    """Family, size and shape of a network."""
    rows, columns = spec.grid
    return (
        ("family", spec.family),
        ("size", f"{spec.size[0]}x{spec.size[1]} pixels, {rows}x{columns} patches of {spec.patch}"),
        *spec.parts,
    )


def gate_facts(spec: ModelSpec, thresholds: Sequence[Sequence[float]], floor: float) -> Facts:
    """Where tokens stop: a row per gate, then the floor where it is on."""
    rows = [
        (f"gate {number}", f"before layer {gate.layer}, {head_text(gate.head)}, threshold {_limits(row)}")
        for number, (gate, row) in enumerate(zip(spec.gates, thresholds, strict=True))
    ]
    if not spec.gates:
        return (("gates", "none: a dense model" if len(spec.counts) == 1 else "none: token counts are fixed"),)
    return (*rows, *((("floor", f"{floor:g}"),) if floor else ()))


def _limits(row: Sequence[float]) -> str:
    # A gate has a threshold for each class, in most bundles the same.
    if len(set(row)) == 1:
        return f"{row[0]:g}"
    return f"{min(row):g} to {max(row):g} by class"


def input_facts(preprocessing: Preprocessing, classes: Sequence[ClassEntry]) -> Facts:
    """How images are prepared, and which classes they are divided into."""
    origin = " (assumed: ImageNet's)" if preprocessing.assumed else ""
    return (
        ("mean, std", f"{_triple(preprocessing.mean)}; {_triple(preprocessing.std)}{origin}"),
        _fitting_fact(preprocessing),
        ("classes", _class_text(classes)),
    )


def _fitting_fact(preprocessing: Preprocessing) -> tuple[str, str]:
    """How an image gets the size of the model."""
    crop, stride = preprocessing.crop, preprocessing.stride
    if crop is not None:
        return "images", f"shorter side resized to {crop.shorter} ({crop.filter}), the centre is cropped"
    return "larger images", "are resized" if stride is None else f"slide by {stride[0]}x{stride[1]}"


def _class_text(classes: Sequence[ClassEntry]) -> str:
    """How many, and their names; of many the first few."""
    names = [entry.name for entry in classes]
    if not names:
        return "none: a backbone without a head"
    # ImageNet's thousand names would bury everything else; ADE20K's 150 are still read.
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
    if PARITY not in bundle.manifest.files:
        return None
    try:
        report = ParityReport.model_validate_json((bundle.path / PARITY).read_bytes())
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{bundle.path.name}: {PARITY} is not a parity report ({field}); export it again") from error
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
        f"verified against {parity.reference} in {plural(parity.runs, 'run')}: {', '.join(parity.engines)}{error}, "
        f"{plural(parity.explained, 'explained flip')}"
    )


# A checkpoint: the network where it can be determined, and in any case the entries of the file.


class NetworkContents(Record):
    """The network of a checkpoint that is understood."""

    spec: AnySpec
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...]
    thresholds: tuple[float, ...]
    floor: float
    license: str
    gmacs: tuple[CostRow, ...]


@dataclass(frozen=True)
class ExportOutlook:
    """What an export of a checkpoint would do; decided by the reader and the check that the export itself uses."""

    flags: str | None
    """What the command needs besides the path; None: nothing that is known here makes it succeed."""
    problem: str | None = None
    """Why it does not succeed without them."""


class CheckpointContents(Record):
    """A checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    """How many tensors of each type; of an understood checkpoint, as the network takes them."""
    network: NetworkContents | None
    problem: str | None
    """Why the network cannot be determined without --config, or at all."""
    export: Annotated[ExportOutlook, Field(exclude=True)]
    """What an export needs; for the command."""
    remarks: Annotated[tuple[str, ...], Field(exclude=True)]
    """How its entries were found in the file; for the curious."""

    @property
    def facts(self) -> Facts:
        """What a user reads."""
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        entries = (("tensors", f"{self.tensors} ({types}), {self.parameters:,} parameters"),)
        if self.network is None:
            return (*entries, ("network", f"not determined: {self.problem}"))
        network = self.network
        limits = [(value,) for value in network.thresholds]
        return (
            *network_facts(network.spec),
            *gate_facts(network.spec, limits, network.floor),
            *input_facts(network.preprocessing, network.classes),
            *((("licence", network.license),) if network.license else ()),
            *entries,
            *((("export", f"not as it is: {self.export.problem}"),) if self.export.problem else ()),
        )


def checkpoint_contents(path: Path, *, check: ExportCheck | None = None) -> CheckpointContents:
    """Describe the checkpoint at `path`, a file or a folder; `check`: see `contents_of`.

    Raises:
        InputError: it is unreadable, or no checkpoint.
        PickleRefused: it holds pickled objects that could execute code.
        CheckpointMismatch: entries are missing, unexpected, misshaped, NaN or Inf.
        PackageMissing: PyTorch is not installed.
    """
    # Only checkpoints need PyTorch; everything else is inspected without it.
    packages.load("torch")
    from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
    from dovit_deploy.checkpoints.weights_file import weights_from_file

    try:
        checkpoint = checkpoint_from_path(path)
    except (ConfigError, NetworkUnknown) as error:
        if not path.is_file():
            raise
        # A file whose network is unknown can be sound all the same, so its entries are described.
        weights = weights_from_file(path, allow_pickle=False)
        export = _export_after(error)
        return _described(path, weights.state, network=None, export=export, remarks=weights.remarks)
    export = _checked_export(checkpoint, check)
    return _described(
        path, checkpoint.state, network=_network_contents(checkpoint), export=export, remarks=checkpoint.remarks
    )


def export_of(path: Path, *, check: ExportCheck | None = None) -> ExportOutlook:
    """What an export of the checkpoint at `path` would do; `check`: see `contents_of`."""
    try:
        packages.load("torch")
        from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path

        return _checked_export(checkpoint_from_path(path), check)
    except DovitError as error:
        return _export_after(error)


def _checked_export(checkpoint: Checkpoint, check: ExportCheck | None) -> ExportOutlook:
    try:
        if check is not None:
            check(checkpoint)
    except UsageError as error:
        # Of all that a checkpoint brings along, its size is what flags can replace.
        return ExportOutlook(" --size HxW", ". ".join(error.lines))
    return ExportOutlook("")


def _export_after(error: DovitError) -> ExportOutlook:
    return ExportOutlook(" --config FILE" if isinstance(error, ConfigError) else None, ". ".join(error.lines))


def _network_contents(checkpoint: Checkpoint) -> NetworkContents:
    return NetworkContents(
        spec=checkpoint.spec,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        thresholds=checkpoint.thresholds,
        floor=checkpoint.floor,
        license=checkpoint.license,
        gmacs=cost_rows(checkpoint.spec, None),
    )


def _described(
    path: Path,
    state: Mapping[str, Any],
    *,
    network: NetworkContents | None,
    export: ExportOutlook,
    remarks: tuple[str, ...],
) -> CheckpointContents:
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    return CheckpointContents(
        path=str(path),
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=dict(types.most_common()),
        network=network,
        problem=export.problem if network is None else None,
        export=export,
        remarks=remarks,
    )
