"""Our own checkpoint: a folder with `model.safetensors` and `config.json`, complete in itself.

`config.json` holds the format's name and version, the spec, preprocessing, classes, thresholds, floor and licence.
The weights carry our own names, in training form (batch norms apart) or in deployment form (folded).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor

from dovit_deploy.bounds import MOST_CLASSES, MOST_STAGES, Note, Share
from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.keys import COUNTER, not_finite, refuse_faults, shapes_of
from dovit_deploy.checkpoints.weights_file import tensors_from_safetensors
from dovit_deploy.documents import NotData, bytes_of_document, data_from_json, fault_of
from dovit_deploy.errors import CheckpointMismatch, ConfigError, InputError, shown
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import excess_of
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.spec import ModelSpec, Size
from dovit_deploy.files import first_foreign, written_aside
from dovit_deploy.printing import plural
from dovit_deploy.record import Record

FORMAT = "dovit-checkpoint"
VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class OwnConfig(Record):
    """The contents of `config.json`."""

    format: Literal["dovit-checkpoint"] = "dovit-checkpoint"
    version: Literal[1] = 1
    spec: AnySpec
    """At the training size."""
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...] = Field(max_length=MOST_CLASSES)
    thresholds: tuple[Share, ...] = Field(default=(), max_length=MOST_STAGES)
    """One per gate, each in [0, 1]."""
    floor: Share = 0.0
    slide_size: Size | None = None
    """Window of sliding inference, in pixels."""
    license: Note = ""

    @model_validator(mode="after")
    def _consistent(self) -> OwnConfig:
        if len(self.classes) != self.spec.classes:
            raise ValueError(
                f"{plural(len(self.classes), 'class', 'classes')} named, the network has {self.spec.classes}"
            )
        if len(self.thresholds) != len(self.spec.gates):
            raise ValueError(f"{plural(len(self.thresholds), 'threshold')} for {plural(len(self.spec.gates), 'gate')}")
        excess = excess_of(self.spec)
        if excess is not None:
            raise ValueError(f"spec: {excess}")
        return self


def is_own_format(folder: Path) -> bool:
    """`folder` is, or is meant to be, a checkpoint of ours: its `config.json` says so."""
    try:
        contents = data_from_json(bytes_of_document(folder / CONFIG))
    except (OSError, NotData):
        return False
    # Many tools write a file of that name.
    return isinstance(contents, dict) and contents.get("format") == FORMAT


def foreign_in_checkpoint(folder: Path, *, documents: tuple[str, ...]) -> str | None:
    """Why `folder` is no checkpoint of ours that a new one with these documents may replace; None: it is one."""
    if not is_own_format(folder):
        return f"it has no {CONFIG} of a checkpoint of ours"
    return first_foreign(folder, lambda path: path in (CONFIG, WEIGHTS, *documents))


def save_checkpoint(
    folder: Path,
    config: OwnConfig,
    state: Mapping[str, Tensor],
    *,
    documents: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint aside and rename it into place, so that `folder` is always whole.

    Args:
        folder: where it goes.
        config: what is written beside the weights.
        state: of the network of `config.spec`, in training or deployment form.
        documents: further files, name -> text; nothing here reads them.
        overwrite: replace a checkpoint of ours at `folder`; anything else there is never touched.

    Raises:
        UsageError: `folder` exists, and `overwrite` is False or it is no checkpoint of ours alone.
        CheckpointMismatch: `state` does not fit the spec.
    """
    # Before anything is written: a checkpoint that cannot be read again is none.
    _deployed(state, config.spec, folder.name)
    foreign = partial(foreign_in_checkpoint, documents=tuple(documents or ()))
    with written_aside(folder, overwrite=overwrite, mark=foreign) as fresh:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        # Not `save_file`: it makes the file unreadable for everybody else.
        (fresh / WEIGHTS).write_bytes(save(tensors))
        (fresh / CONFIG).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name, text in (documents or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")


def load_own_format(folder: Path) -> tuple[OwnConfig, dict[str, Tensor]]:
    """Configuration and weights in deployment form, fp32.

    Raises:
        InputError: a file is absent or unreadable.
        ConfigError: `config.json` is not what it must be.
        CheckpointMismatch: the weights do not fit it.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}")
    try:
        text = bytes_of_document(folder / CONFIG)
    except NotData as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error}") from error
    config = config_from_text(text, folder.name)
    return config, _deployed(tensors_from_safetensors(folder / WEIGHTS), config.spec, folder.name)


def config_from_text(text: str | bytes, source: str) -> OwnConfig:
    """Parse `config.json`.

    Raises:
        ConfigError: not JSON, another version, or wrong fields.
    """
    try:
        contents = data_from_json(text)
        # Before the fields, so that a newer file is called newer and not wrong.
        if isinstance(contents, dict) and contents.get("version") != VERSION:
            given = shown(contents.get("version"), quoted=True)
            raise ConfigError(f"{source}: checkpoint format version {given}; this one reads {VERSION}")
        return OwnConfig.model_validate(contents)
    except ValidationError as error:
        raise ConfigError(f"{source}/{CONFIG}: {fault_of(error, with_value=True)}") from error
    except NotData as error:
        raise ConfigError(f"{source}/{CONFIG} is not JSON: {error}") from error


def _deployed(state: Mapping[str, Tensor], spec: ModelSpec, source: str) -> dict[str, Tensor]:
    """`state` in deployment form, checked against the network that `spec` describes."""
    final, training = shapes_of(spec, trainable=False), shapes_of(spec, trainable=True)
    # One entry that only training has, such as a batch norm's, shows in which form the weights are.
    wanted = training if any(name in training and name not in final for name in state) else final
    # Counters of batches are neither required nor read, so a checkpoint may have them or not.
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    faults = {
        "missing": [name for name in wanted if name not in kept and not name.endswith(COUNTER)],
        "unexpected": [name for name in kept if name not in wanted],
        "wrong shape": [n for n, t in kept.items() if n in wanted and tuple(t.shape) != wanted[n]],
        "not floating point": [name for name, tensor in kept.items() if not tensor.is_floating_point()],
    }
    refuse_faults(faults, source)
    ours = deployed({name: tensor.detach().float() for name, tensor in kept.items()})
    refuse_faults({"NaN or Inf": not_finite(ours)}, source)
    if ours.keys() != final.keys():
        raise CheckpointMismatch(f"{source}: its batch norms are not those of the network")
    return ours
