"""What does a bundle know about itself? The manifest, with a digest that shows when it was altered.

Its classes come from a checkpoint or from a file given by `--classes`; missing colours are generated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from dovit_deploy.bounds import (
    MOST_CLASSES,
    MOST_FILES,
    MOST_STAGES,
    Bytes,
    ColourPart,
    Deviation,
    Mean,
    Name,
    Note,
    PixelSide,
    Share,
    Tokens,
)
from dovit_deploy.bundle.palette import generated_palette
from dovit_deploy.documents import NotData, data_from_json, fault_of
from dovit_deploy.errors import ConfigError, InputError, ManifestInvalid, VersionUnknown, shown
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import excess_of
from dovit_deploy.families.spec import ModelSpec, Task
from dovit_deploy.printing import plural
from dovit_deploy.record import Record

FORMAT: Literal["dovit-bundle"] = "dovit-bundle"
VERSION = 1

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class FileEntry(Record):
    """A file of the bundle: SHA-256 in hexadecimal and size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: Bytes


class TokenCount(Record):
    """How many tokens enter a stage, extra tokens included: fewest, usual, most."""

    minimum: Tokens
    typical: Tokens
    maximum: Tokens


class CentreCrop(Record):
    """A classifier's image: its shorter side resized to `shorter` pixels, the model's size cut from its centre."""

    shorter: PixelSide
    """At least as large as both sides of the model's size."""
    filter: Literal["bicubic"] = "bicubic"
    """Pillow's, antialiased: what torchvision does to a Pillow image."""

    @classmethod
    def of_size(cls, size: tuple[int, int]) -> CentreCrop:
        """What DeiT, LeViT and Swin are evaluated with: 224 pixels are cut from 256, other sizes in this proportion."""
        # Rounded down, as their own evaluation does.
        return cls(shorter=int(256 / 224 * max(size)))


class Preprocessing(Record):
    """How an upright RGB image of 0..255 becomes `pixels`, and how logits become an image again."""

    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    assumed: bool
    """Mean and std are ImageNet's because the checkpoint did not say."""
    stride: tuple[PixelSide, PixelSide] | None
    """Step of the sliding window in pixels, rows then columns; None: images are resized to the model's size."""
    crop: CentreCrop | None = None
    """Of classifiers, which see the centre of an image, its proportions kept; None: the whole image is seen."""
    logits_cover: Literal["image", "padded"] = "image"
    """What the logits' grid is stretched over: the input itself (mmsegmentation) or the padded input (Segmenter)."""

    @model_serializer(mode="wrap")
    def _without_crop(self, whole: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Left out where there is none: manifests of segmentation stay what they were before there were classifiers."""
        fields: dict[str, object] = whole(self)
        return {name: value for name, value in fields.items() if name != "crop" or value is not None}

    def for_spec(self, spec: ModelSpec) -> Preprocessing:
        """The same for the model of `spec`: a classifier crops in proportion to its size."""
        crop = CentreCrop.of_size(spec.size) if spec.task == "classification" else None
        return self.model_copy(update={"crop": crop})


class ClassEntry(Record):
    """A class: its name and its colour (red, green, blue)."""

    name: Name
    color: tuple[ColourPart, ColourPart, ColourPart]


class GateDefaults(Record):
    """Where tokens stop unless the caller gives thresholds of their own."""

    thresholds: tuple[Annotated[tuple[Share, ...], Field(max_length=MOST_CLASSES)], ...] = Field(max_length=MOST_STAGES)
    """(gates, K), each in [0, 1]."""
    floor: Share = 0.0
    origin: Literal["configuration", "calibration"] = "configuration"


class Provenance(Record):
    """Where the bundle comes from."""

    tool: Name
    source: Name
    """File name of the checkpoint."""
    source_sha256: Name
    license: Note = ""


class Manifest(Record):
    """The contents of `manifest.json`; see docs/bundle-format.md."""

    format: Literal["dovit-bundle"] = FORMAT
    version: Literal[1] = 1
    name: Name
    task: Task = "segmentation"
    spec: AnySpec
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...] = Field(max_length=MOST_CLASSES)
    defaults: GateDefaults
    counts: tuple[TokenCount, ...] = Field(max_length=MOST_STAGES)
    """One per stage."""
    precisions: tuple[Name, ...] = Field(default=("fp32",), max_length=16)
    opset: int = Field(default=20, ge=1, le=100)
    provenance: Provenance
    files: dict[Name, FileEntry] = Field(max_length=MOST_FILES)
    """Every file of the bundle but the manifest itself and those in `engines/`."""

    def to_json(self) -> str:
        """The text of `manifest.json`, with its own digest."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "digest": digest_of(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the text of `manifest.json`.

        Raises:
            ManifestInvalid: not JSON, wrong fields, or altered after it was written.
            VersionUnknown: another version of the format.
        """
        try:
            body = data_from_json(text)
        except NotData as error:
            raise ManifestInvalid(f"manifest.json is not JSON that is read here: {error}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ManifestInvalid(f"manifest.json does not describe a bundle: 'format' is not '{FORMAT}'")
        # Before digest and fields, which another version may have defined otherwise.
        if body.get("version") != VERSION:
            raise VersionUnknown(
                f"bundle format version {shown(body.get('version'), quoted=True)}: this version reads {VERSION}; "
                "export the checkpoint again, or install a matching dovit-deploy"
            )
        # Popped first: the digest is of everything but itself.
        if body.pop("digest", None) != digest_of(body):
            raise ManifestInvalid("manifest.json was altered: its digest does not match; export it again")
        try:
            manifest = cls.model_validate(body)
        except ValidationError as error:
            raise ManifestInvalid(f"manifest.json: {fault_of(error, with_value=True)}") from error
        fault = manifest.disagreement()
        if fault is not None:
            raise ManifestInvalid(f"manifest.json: {fault}")
        return manifest

    def disagreement(self) -> str | None:
        """What is written beside the spec and does not fit it, or a network beyond reason; None: all of it agrees.

        An export and every later run ask this, so that nothing is exported which no run would take.
        """
        return next((fault for check in _FAULTS if (fault := check(self)) is not None), None)


def _number_fault(manifest: Manifest) -> str | None:
    """Lists that are not as long as the spec says."""
    spec, rows = manifest.spec, manifest.defaults.thresholds
    wanted = {
        "classes": (len(manifest.classes), spec.classes),
        "counts": (len(manifest.counts), len(spec.gates) + 1),
        "defaults.thresholds": (len(rows), len(spec.gates)),
        **{f"defaults.thresholds.{gate}": (len(row), spec.classes) for gate, row in enumerate(rows)},
    }
    for field, (given, needed) in wanted.items():
        if given != needed:
            return f"{field}: {given} entries, the model of its spec has {needed}"
    return None


def _task_fault(manifest: Manifest) -> str | None:
    if manifest.task != manifest.spec.task:
        return f"task: {manifest.task}, the model of its spec does {manifest.spec.task}"
    return None


def _count_fault(manifest: Manifest) -> str | None:
    for stage, count in enumerate(manifest.counts):
        if not count.minimum <= count.typical <= count.maximum <= manifest.spec.tokens:
            numbers = f"{count.minimum}, {count.typical}, {count.maximum}"
            return f"counts.{stage}: {numbers} do not rise up to the {manifest.spec.tokens} tokens that there are"
    return None


def _crop_fault(manifest: Manifest) -> str | None:
    crop, size = manifest.preprocessing.crop, manifest.spec.size
    if crop is None:
        return None
    if manifest.task != "classification" or manifest.preprocessing.stride is not None:
        return "preprocessing.crop: only a classifier crops, and it slides no window"
    if crop.shorter < max(size):
        return f"preprocessing.crop.shorter: {crop.shorter}, the model takes {size[0]}x{size[1]} of it"
    return None


def _stride_fault(manifest: Manifest) -> str | None:
    stride, size = manifest.preprocessing.stride, manifest.spec.size
    if stride is None or all(1 <= step <= side for step, side in zip(stride, size, strict=True)):
        return None
    # Larger ones would leave gaps between the windows.
    return f"stride {stride[0]}x{stride[1]}: each side must be between 1 and the window's {size[0]}x{size[1]}"


def _cover_fault(manifest: Manifest) -> str | None:
    if manifest.preprocessing.logits_cover == "padded" and any(manifest.spec.pads_before):
        return "preprocessing.logits_cover: padded, and the model of its spec is padded on all sides; image is needed"
    return None


def _excess_fault(manifest: Manifest) -> str | None:
    excess = excess_of(manifest.spec)
    return None if excess is None else f"spec: {excess}"


_FAULTS = (_excess_fault, _number_fault, _task_fault, _count_fault, _crop_fault, _stride_fault, _cover_fault)


def digest_of(body: dict[str, object]) -> str:
    """SHA-256, in hexadecimal, of the manifest's JSON without its digest."""
    # Keys sorted and without white space, so that the digest does not depend on how the file is laid out.
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def entries_from_lists(
    names: Sequence[object] | None,
    colors: Sequence[object] | None,
    count: int,
    kind: type[ConfigError] | type[InputError],
) -> tuple[ClassEntry, ...]:
    """Classes of the given names and colours, or of generated ones where None."""
    for what, values in (("class names", names), ("colours", colors)):
        if values is not None and len(values) != count:
            raise kind(f"{len(values)} {what} for a network of {count} classes; give one for each (--classes FILE)")
    painted = generated_palette(count) if colors is None else [_color(value, kind) for value in colors]
    named = [f"class_{number}" for number in range(count)] if names is None else [_name(name, kind) for name in names]
    return tuple(ClassEntry(name=name, color=color) for name, color in zip(named, painted, strict=True))


def check_number(given: Sequence[ClassEntry], count: int) -> tuple[ClassEntry, ...]:
    """The classes of `--classes`; raises InputError when they are not `count`."""
    if len(given) != count:
        raise InputError(
            f"--classes names {plural(len(given), 'class', 'classes')}; the network has {count}: give one name for each"
        )
    return tuple(given)


def renamed(manifest: Manifest, given: Sequence[ClassEntry]) -> Manifest:
    """The same manifest with the classes of `--classes`; raises InputError for a wrong number of them."""
    return manifest.model_copy(update={"classes": check_number(given, len(manifest.classes))})


def _name(value: object, kind: type[ConfigError] | type[InputError]) -> str:
    try:
        return _NAME.validate_python(str(value))
    except ValidationError as error:
        raise kind(f"{shown(value, quoted=True)} is no name of a class: {fault_of(error)}") from error


def _color(value: object, kind: type[ConfigError] | type[InputError]) -> tuple[int, int, int]:
    if isinstance(value, list | tuple) and len(value) == 3 and all(_byte(part) for part in value):
        return int(value[0]), int(value[1]), int(value[2])
    raise kind(f"{shown(value, quoted=True)} is no colour; red, green and blue of 0 to 255 are needed")


def _byte(value: object) -> bool:
    # A bool is an int in Python.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
