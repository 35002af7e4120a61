"""What is in a checkpoint: the network where it can be told, and in any case the entries of the file.

Reading a checkpoint takes PyTorch, so this is imported for checkpoints only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.checkpoints.weights_file import weights_from_file
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.measure.inspect import CostRow, Rows, cost_rows, gate_rows, network_rows, picture_rows
from dovit_deploy.record import Record


class NetworkContents(Record):
    """The network of a checkpoint that is understood."""

    spec: AnySpec
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...]
    thresholds: tuple[float, ...]
    floor: float
    license: str
    gmacs: tuple[CostRow, ...]


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
    """Why the network cannot be told without --config."""

    @property
    def rows(self) -> Rows:
        """What a user reads: label and text."""
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        entries = (("tensors", f"{self.tensors} ({types}), {self.parameters:,} parameters"),)
        if self.network is None:
            return (*entries, ("network", f"not determined: {self.problem}"))
        network = self.network
        limits = [(value,) for value in network.thresholds]
        return (
            *network_rows(network.spec),
            *gate_rows(network.spec, limits, network.floor),
            *picture_rows(network.preprocessing, network.classes),
            *((("licence", network.license),) if network.license else ()),
            *entries,
        )


def checkpoint_contents(path: Path) -> CheckpointContents:
    """Describe the checkpoint at `path`, a file or a folder.

    Raises:
        InputError: it is unreadable, or no checkpoint.
        PickleRefused: it holds pickled objects that could execute code.
        CheckpointMismatch: entries are missing, unexpected, misshaped, NaN or Inf.
    """
    try:
        checkpoint = checkpoint_from_path(path)
    except ConfigError as error:
        if not path.is_file():
            raise
        # A file that lacks its configuration is whole all the same: say what it holds.
        return _described(path, weights_from_file(path, allow_pickle=False).state, network=None, problem=str(error))
    return _described(path, checkpoint.state, network=_network(checkpoint), problem=None)


def _network(checkpoint: Checkpoint) -> NetworkContents:
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
    path: Path, state: Mapping[str, Any], *, network: NetworkContents | None, problem: str | None
) -> CheckpointContents:
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    return CheckpointContents(
        path=str(path),
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=dict(types.most_common()),
        network=network,
        problem=problem,
    )
