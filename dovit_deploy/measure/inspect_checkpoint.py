"""What is in a checkpoint: its network where it can be determined, its entries in any case, and can it be exported?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dovit_deploy import packages
from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.errors import (
    ConfigError,
    DovitError,
    HeadMissing,
    NetworkUnknown,
    UsageError,
)
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.measure.inspect_files import Facts
from dovit_deploy.measure.inspect_network import CostRow, cost_rows, gate_facts, input_facts, network_facts
from dovit_deploy.record import Record

if TYPE_CHECKING:
    from dovit_deploy.checkpoints.checkpoint import Checkpoint

ExportCheck = Callable[["Checkpoint"], None]
"""Raises UsageError for a checkpoint that an export would refuse as it is."""


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
    headless: bool = False
    """It is a backbone that lacks nothing but a head."""


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
    from dovit_deploy.checkpoints.model_folder import model_folder_of, source_from_path

    try:
        checkpoint = checkpoint_from_path(path)
    except (ConfigError, NetworkUnknown) as error:
        if not path.is_file() and model_folder_of(path) is None:
            raise
        # Weights whose network is unknown can be sound all the same, so their entries are described.
        weights = source_from_path(path, allow_pickle=False).weights
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
    flags = " --config FILE" if isinstance(error, ConfigError) else None
    return ExportOutlook(flags, ". ".join(error.lines), headless=isinstance(error, HeadMissing))


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
