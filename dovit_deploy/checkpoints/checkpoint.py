"""Checkpoint: a weights file understood, whichever of the supported projects wrote it.

Three kinds of path are read: a folder of our own format, a bundle, and what the official projects publish. Only for the
last must anything be recognised and mapped; the other two carry their whole configuration.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from dovit_deploy.bundle.bundle import MANIFEST, WEIGHTS, Bundle, file_entry
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, Preprocessing, classes_from_file
from dovit_deploy.checkpoints import own_format
from dovit_deploy.checkpoints.configuration import (
    Configuration,
    configuration_from_file,
    configuration_from_meta,
    merged,
)
from dovit_deploy.checkpoints.folders import foreign_model, other_checkpoint
from dovit_deploy.checkpoints.images import class_entries, mean_and_std
from dovit_deploy.checkpoints.keys import facts_from_state, listed, ours_from_official, unneeded
from dovit_deploy.checkpoints.nearest import no_family
from dovit_deploy.checkpoints.own_format import OwnConfig
from dovit_deploy.checkpoints.reader import Architecture, OfficialState, Reader
from dovit_deploy.checkpoints.settings import Sources, invalid_as_config_error, thresholds_per_gate
from dovit_deploy.checkpoints.weights_file import WeightsFile, weights_from_file
from dovit_deploy.errors import ConfigError, InputError, NetworkUnknown, UsageError
from dovit_deploy.families.any_spec import AnySpec

READERS = (
    "dovit_deploy.families.vit.segmenter:READER",
    "dovit_deploy.families.stvit.reader:READER",
    "dovit_deploy.families.stvit.reader:STVIT_DEIT",
    "dovit_deploy.families.vit.mmseg:READER",
    "dovit_deploy.families.evovit.deit_reader:READER",
    "dovit_deploy.families.evovit.evo_levit_reader:READER",
    "dovit_deploy.families.evovit.deit_reader:PLAIN_DEIT",
    "dovit_deploy.families.evovit.levit_reader:READER",
)
"""Whose checkpoints are read; the first that recognises the keys reads the file, so particular names come first."""
SEGMENTER_FILES = ("checkpoint.pth", "variant.yml")
"""What Segmenter writes into a folder: weights, and their configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that an export, a fit of gates or a training run needs to know of trained weights."""

    spec: AnySpec
    """At the training size."""
    state: dict[str, Tensor]
    """Of the network of `spec` in deployment form, fp32, on the CPU."""
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...]
    thresholds: tuple[float, ...]
    """One per gate."""
    floor: float
    """Confidence below which a token also stops; 0 is off."""
    slide_size: tuple[int, int] | None
    """Window of the configuration's sliding inference, in pixels."""
    source: str
    """File name of the weights."""
    source_sha256: str
    license: str = ""
    remarks: tuple[str, ...] = ()
    """How its entries were found in the file; for the curious."""


@dataclass(frozen=True)
class _Flags:
    """What the caller gives; it takes precedence over everything else."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    classes: Sequence[ClassEntry] | None
    thresholds: Sequence[float] | None


def checkpoint_from_path(
    path: str | Path,
    *,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[ClassEntry] | str | Path | None = None,
    thresholds: Sequence[float] | None = None,
) -> Checkpoint:
    """Understand the checkpoint at `path`: a folder of ours, a bundle, .safetensors with official keys, or .pth.

    Args:
        path: the checkpoint.
        config: file with settings that the checkpoint does not carry (docs: `--config`).
        allow_pickle: read pickles that may run code.
        mean: of red, green and blue in 0..255, instead of the configuration's; with `std`.
        std: of red, green and blue in 0..255.
        classes: names and colours, or a file of them, instead of the checkpoint's own.
        thresholds: one for all gates or one each, instead of the configuration's.

    Raises:
        InputError: a file is absent or unreadable.
        ConfigError: configuration values are unknown (named), unsupported, or contradict the keys.
        PickleRefused: a pickle that may run code.
        CheckpointMismatch: entries missing, unexpected, misshaped, NaN or Inf.
        UsageError: a flag's value does not fit the network.
    """
    path = Path(path)
    if isinstance(classes, str | Path):
        classes = classes_from_file(Path(classes))
    flags = _Flags(mean, std, classes, thresholds)
    if not path.exists():
        raise InputError(f"no checkpoint at {path}")
    # The weights of a folder of ours stand for the folder: what they are is in the file beside them.
    if path.name == own_format.WEIGHTS and own_format.is_own_format(path.parent):
        path = path.parent
    if path.is_dir():
        _refuse_foreign_model(path)
    if (path / own_format.CONFIG).is_file() or (path / MANIFEST).is_file():
        if config is not None:
            raise UsageError(f"{path.name} carries its whole configuration; leave --config out")
        return _from_our_folder(path, flags)
    # Any other folder can only be one of Segmenter's runs.
    if path.is_dir():
        _refuse_other_folder(path)
        path = path / SEGMENTER_FILES[0]
    weights = weights_from_file(path, allow_pickle=allow_pickle)
    return _from_official(weights, _configuration_for(path, config), flags)


def _refuse_foreign_model(folder: Path) -> None:
    model = foreign_model(folder)
    if model is not None:
        supported = ", ".join(reader.title for reader in readers())
        raise InputError(f"{folder} holds {model}, which is not read", f"Supported: {supported}")


def _refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that is not Segmenter's either, and say what it is."""
    if (folder / SEGMENTER_FILES[0]).is_file():
        return
    try:
        found = other_checkpoint(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    if found is not None:
        raise InputError(f"{folder} is {found[0]}", found[1])
    raise InputError(f"{folder} holds neither {own_format.CONFIG} with {own_format.WEIGHTS} nor {SEGMENTER_FILES[0]}")


def _configuration_for(path: Path, config: str | Path | None) -> Configuration | None:
    if config is not None:
        return configuration_from_file(Path(config))
    # Segmenter's weights do not carry their configuration; it is written beside them.
    beside = path.with_name(SEGMENTER_FILES[1])
    if path.name == SEGMENTER_FILES[0] and beside.is_file():
        return configuration_from_file(beside)
    return None


# Our own folders and bundles: nothing is to be recognised, flags replace what they carry.


def _from_our_folder(folder: Path, flags: _Flags) -> Checkpoint:
    if (folder / MANIFEST).is_file():
        own, state, weights = *load_bundled(folder), folder / WEIGHTS
    else:
        own, state, weights = *own_format.load_own_format(folder), folder / own_format.WEIGHTS
    preprocessing, classes, thresholds = own.preprocessing, own.classes, own.thresholds
    if flags.mean is not None or flags.std is not None:
        mean, std, _ = mean_and_std({}, mean=flags.mean, std=flags.std)
        preprocessing = preprocessing.model_copy(update={"mean": mean, "std": std, "assumed": False})
    if flags.classes is not None:
        classes = class_entries({}, {}, own.spec.classes, given=flags.classes)
    if flags.thresholds is not None:
        thresholds = thresholds_per_gate(flags.thresholds, len(own.spec.gates), UsageError)
    return Checkpoint(
        spec=own.spec,
        state=state,
        preprocessing=preprocessing,
        classes=classes,
        thresholds=thresholds,
        floor=own.floor,
        slide_size=own.slide_size,
        source=folder.name,
        source_sha256=file_entry(weights).sha256,
        license=own.license,
    )


def load_bundled(folder: Path) -> tuple[OwnConfig, dict[str, Tensor]]:
    """What `own_format.load_own_format` gives, of a bundle: configuration, and weights in deployment form, fp32.

    A bundle's weights and manifest are all that an export at another size or a fine-tuning needs.

    Raises:
        BundleError: the folder is no bundle, or something in it was altered.
        UsageError: its thresholds differ from class to class, which a checkpoint cannot say.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    config = OwnConfig(
        spec=manifest.spec,
        preprocessing=manifest.preprocessing,
        classes=manifest.classes,
        thresholds=_one_per_gate(manifest, folder.name),
        floor=manifest.defaults.floor,
        # A bundle's window is the size that its graphs take.
        slide_size=manifest.spec.size if manifest.preprocessing.stride else None,
        license=manifest.provenance.license,
    )
    return config, safetensors.torch.load(bundle.content(WEIGHTS))


def _one_per_gate(manifest: Manifest, source: str) -> tuple[float, ...]:
    rows = manifest.defaults.thresholds
    if any(len(set(row)) > 1 for row in rows):
        raise UsageError(f"{source} has thresholds per class, a checkpoint has one per gate; calibrate with one each")
    return tuple(row[0] for row in rows)


# Official files: recognised by their keys, then settings and keys make the architecture, then keys are mapped.


def readers() -> Iterator[Reader]:
    """Every reader, in order."""
    for name in READERS:
        reader: Reader = pkgutil.resolve_name(name)
        yield reader


def _from_official(weights: WeightsFile, given: Configuration | None, flags: _Flags) -> Checkpoint:
    facts = facts_from_state(weights.state)
    reader = next((reader for reader in readers() if reader.recognises(facts)), None)
    if reader is None:
        raise NetworkUnknown(*no_family(facts, readers(), weights.name))
    # Before anything else is read: settings are checked against the names that remain.
    state = reader.prepared(weights.state, weights.name)
    settings = _settings(weights, given, reader.settings)
    sources = Sources("", settings, facts_from_state(state), weights.name, flags.thresholds)
    try:
        architecture = reader.architecture(sources)
    except ValidationError as error:
        raise invalid_as_config_error(error, weights.name) from error
    return _assembled(weights, architecture, state, settings, flags)


def _settings(weights: WeightsFile, given: Configuration | None, known: frozenset[str]) -> dict[str, object]:
    """Settings of the given file over those of the checkpoint's meta."""
    try:
        own = configuration_from_meta(weights.meta)
        below = {} if own is None else own.settings(known)
    except ConfigError:
        # A file given with --config is the remedy for a meta that cannot be read.
        if given is None:
            raise
        below = {}
    return merged(below, {} if given is None else given.settings(known))


def _assembled(
    weights: WeightsFile,
    architecture: Architecture,
    state: OfficialState,
    settings: Mapping[str, object],
    flags: _Flags,
) -> Checkpoint:
    spec = architecture.spec
    mean, std, assumed = mean_and_std(settings, mean=flags.mean, std=flags.std)
    entries = class_entries(settings, weights.meta, spec.classes, given=flags.classes)
    ignored = unneeded(state, architecture.key_map, spec)
    taken = f"{len(state) - len(ignored)} entries are taken"
    remark = f"{taken}; ignored: {listed(ignored)}" if ignored else taken
    return Checkpoint(
        spec=spec,
        state=ours_from_official(state, architecture.key_map, spec, source=weights.name),
        preprocessing=Preprocessing(
            mean=mean,
            std=std,
            assumed=assumed,
            stride=architecture.stride,
            logits_cover=architecture.logits_cover,
        ),
        classes=entries,
        thresholds=architecture.thresholds,
        floor=architecture.floor,
        slide_size=architecture.slide_size,
        source=weights.name,
        source_sha256=weights.sha256,
        remarks=(*weights.remarks, remark),
    )
