"""Checkpoint: a weights file understood, whichever of the supported projects wrote it.

Three kinds of path are read: a folder of our own format, a bundle, and what the official projects publish. Only for the
last must anything be recognised and mapped; the other two carry their whole configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from dovit_deploy.bundle.bundle import MANIFEST, WEIGHTS, Bundle, file_entry
from dovit_deploy.bundle.class_files import classes_from_file
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, Preprocessing
from dovit_deploy.checkpoints import own_format
from dovit_deploy.checkpoints.backbone import both_licenses, joined_weights
from dovit_deploy.checkpoints.configuration import Configuration, configuration_from_file, settings_over_meta
from dovit_deploy.checkpoints.folders import foreign_model, other_checkpoint
from dovit_deploy.checkpoints.images import class_entries, mean_and_std
from dovit_deploy.checkpoints.keys import facts_from_state, listed
from dovit_deploy.checkpoints.model_folder import ModelSource, model_folder_of, source_from_path
from dovit_deploy.checkpoints.official_state import ours_from_official, unneeded
from dovit_deploy.checkpoints.own_format import OwnConfig
from dovit_deploy.checkpoints.reader import Architecture, OfficialState
from dovit_deploy.checkpoints.readers import backbone_reader_of, reader_of, readers
from dovit_deploy.checkpoints.settings import Sources, invalid_as_config_error, thresholds_per_gate
from dovit_deploy.checkpoints.weights_file import WeightsFile, weights_from_file
from dovit_deploy.errors import HeadMissing, InputError, UsageError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.parts import PositionMode
from dovit_deploy.families.registry import state_from_bundle
from dovit_deploy.families.vit.backbones import joined_architecture
from dovit_deploy.families.vit.decode_heads import HEAD_SETTINGS
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.printing import quote

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
    assumed: str = ""
    """What nothing stated and a flag may correct, in a line."""
    remarks: tuple[str, ...] = ()
    """How its entries were found in the file; for the curious."""


@dataclass(frozen=True)
class _Flags:
    """What the caller gives; it takes precedence over everything else."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    classes: Sequence[ClassEntry] | None
    thresholds: Sequence[float] | None
    positions: PositionMode | None


def checkpoint_from_path(
    path: str | Path,
    *,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[ClassEntry] | str | Path | None = None,
    thresholds: Sequence[float] | None = None,
    head: str | Path | None = None,
    positions: PositionMode | None = None,
) -> Checkpoint:
    """Understand the checkpoint at `path`: a folder of ours, a bundle, .safetensors with official keys, .pth, or a
    folder of transformers or timm.

    Args:
        path: the checkpoint, or with `head` the backbone.
        config: file with settings that the checkpoint does not carry (docs: `--config`).
        allow_pickle: read pickles that may run code.
        mean: of red, green and blue in 0..255, instead of the configuration's; with `std`.
        std: of red, green and blue in 0..255.
        classes: names and colours, or a file of them, instead of the checkpoint's own.
        thresholds: one for all gates or one each, instead of the configuration's.
        head: file of the decode head; what else is beside the backbone is left out.
        positions: how position embeddings are resized, instead of the format's own way.

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
    flags = _Flags(mean, std, classes, thresholds, positions)
    if not path.exists():
        raise InputError(f"no checkpoint at {path}")
    # The weights of a folder of ours stand for the folder: what they are is in the file beside them.
    if path.name == own_format.WEIGHTS and own_format.is_own_format(path.parent):
        path = path.parent
    if path.is_dir():
        _refuse_foreign_model(path)
    of_library = model_folder_of(path) is not None
    if not of_library and ((path / own_format.CONFIG).is_file() or (path / MANIFEST).is_file()):
        if config is not None:
            raise UsageError(f"{path.name} carries its whole configuration; leave --config out")
        if head is not None:
            raise UsageError(f"{path.name} has a head; leave --head out, or give the backbone that it was made of")
        return _from_our_folder(path, flags)
    # Any other folder can only be one of Segmenter's runs.
    if path.is_dir() and not of_library:
        _refuse_other_folder(path)
        path = path / SEGMENTER_FILES[0]
    source = source_from_path(path, allow_pickle=allow_pickle)
    given = _configuration_for(path, config, source)
    if head is None:
        try:
            return _from_official(source, given, flags)
        except HeadMissing as error:
            remedy = f"Give its head, --head FILE, or train one: dovit train DATASET --init {quote(str(path))}"
            raise HeadMissing(error.lines[0], remedy) from error
    if Path(head).is_dir():
        raise InputError(f"--head {head} is a folder; give the file that holds the head's entries")
    return _from_two(source, weights_from_file(Path(head), allow_pickle=allow_pickle), given, flags)


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


def _configuration_for(path: Path, config: str | Path | None, source: ModelSource) -> Configuration | None:
    # Segmenter's weights do not carry their configuration; it is written beside them.
    beside = path.with_name(SEGMENTER_FILES[1])
    if config is None and path.name == SEGMENTER_FILES[0] and beside.is_file():
        return configuration_from_file(beside)
    return source.configured(config)


# Our own folders and bundles: nothing is to be recognised, flags replace what they carry.


def _from_our_folder(folder: Path, flags: _Flags) -> Checkpoint:
    if (folder / MANIFEST).is_file():
        own, state, weights = *load_bundled(folder), folder / WEIGHTS
    else:
        own, state, weights = *own_format.load_own_format(folder), folder / own_format.WEIGHTS
    spec = _resized_by(flags.positions, own.spec)
    preprocessing, classes, thresholds = own.preprocessing, own.classes, own.thresholds
    if flags.mean is not None or flags.std is not None:
        mean, std, _ = mean_and_std({}, mean=flags.mean, std=flags.std)
        preprocessing = preprocessing.model_copy(update={"mean": mean, "std": std, "assumed": False})
    if flags.classes is not None:
        classes = class_entries({}, {}, spec.classes, given=flags.classes)
    if flags.thresholds is not None:
        thresholds = thresholds_per_gate(flags.thresholds, len(spec.gates), UsageError)
    return Checkpoint(
        spec=spec,
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


def _resized_by(positions: PositionMode | None, spec: AnySpec) -> AnySpec:
    """`spec` with `--positions`, if given; raises UsageError where no position embedding is resized."""
    if positions is None:
        return spec
    if not isinstance(spec, VisionTransformerSpec) or spec.rotary:
        raise UsageError(f"--positions: a {spec.family} network has no position embeddings that are resized")
    return spec.model_copy(update={"position_mode": positions})


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
    return config, state_from_bundle(bundle)


def _one_per_gate(manifest: Manifest, source: str) -> tuple[float, ...]:
    rows = manifest.defaults.thresholds
    if any(len(set(row)) > 1 for row in rows):
        raise UsageError(f"{source} has thresholds per class, a checkpoint has one per gate; calibrate with one each")
    return tuple(row[0] for row in rows)


# Official files: recognised by their keys, then settings and keys make the architecture, then keys are mapped.


def _from_official(source: ModelSource, given: Configuration | None, flags: _Flags) -> Checkpoint:
    weights = source.weights
    reader = reader_of(facts_from_state(weights.state), weights.name)
    # Before anything else is read: settings are checked against the names that remain.
    state = reader.prepared(weights.state, weights.name)
    settings = settings_over_meta(weights.meta, given, reader.settings)
    sources = Sources("", settings, facts_from_state(state), weights.name, flags.thresholds)
    try:
        architecture = reader.architecture(sources)
    except ValidationError as error:
        raise invalid_as_config_error(error, weights.name) from error
    return _assembled(source, architecture, state, settings, flags)


def _from_two(source: ModelSource, head: WeightsFile, given: Configuration | None, flags: _Flags) -> Checkpoint:
    """A backbone, and a head from another file."""
    reader = backbone_reader_of(facts_from_state(source.weights.state), source.weights.name)
    both = joined_weights(source.weights, reader, head)
    settings = settings_over_meta(both.meta, given, reader.settings | HEAD_SETTINGS)
    sources = Sources("", settings, facts_from_state(both.state), both.name, flags.thresholds)
    try:
        architecture = joined_architecture(reader, sources, separate=True)
    except ValidationError as error:
        raise invalid_as_config_error(error, both.name) from error
    # A folder may name the classes of a classifier that is left out, as ImageNet's.
    names = source.class_names if len(source.class_names) == architecture.spec.classes else ()
    return _assembled(replace(source, weights=both, class_names=names), architecture, both.state, settings, flags)


def _assembled(
    source: ModelSource,
    architecture: Architecture,
    state: OfficialState,
    settings: Mapping[str, object],
    flags: _Flags,
) -> Checkpoint:
    spec, weights = _resized_by(flags.positions, architecture.spec), source.weights
    if flags.thresholds is not None:
        thresholds_per_gate(flags.thresholds, len(spec.gates), UsageError)
    mean, std, assumed = mean_and_std(settings, mean=flags.mean, std=flags.std)
    named = {"classes": source.class_names, **settings}
    entries = class_entries(named, weights.meta, spec.classes, given=flags.classes)
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
        license=both_licenses(architecture.license, source.license),
        assumed="" if flags.positions else architecture.assumed,
        remarks=(*weights.remarks, remark),
    )
