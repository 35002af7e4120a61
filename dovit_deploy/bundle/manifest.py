"""The manifest: everything a bundle says about itself, and a digest that tells when it was altered."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dovit_deploy.bundle.model_spec import AnySpec, ModelSpec, Task
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.errors import ManifestInvalid, VersionUnknown

FORMAT: Literal["dovit-bundle"] = "dovit-bundle"
VERSION = 1


class FileEntry(Noun):
    """A file of the bundle: SHA-256 in hexadecimal and size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TokenCount(Noun):
    """How many tokens enter a stage, extra tokens included: fewest, usual, most."""

    minimum: int = Field(ge=1)
    typical: int = Field(ge=1)
    maximum: int = Field(ge=1)


class CentreCrop(Noun):
    """A classifier's picture: its shorter side resized to `shorter` pixels, the model's size cut from its centre."""

    shorter: int = Field(gt=0)
    """At least as large as both sides of the model's size."""
    filter: Literal["bicubic"] = "bicubic"
    """Pillow's, antialiased: what torchvision does to a Pillow image."""

    @classmethod
    def of_size(cls, size: tuple[int, int]) -> CentreCrop:
        """What DeiT, LeViT and Swin are evaluated with: 224 pixels are cut from 256, other sizes in this proportion."""
        return cls(shorter=int(256 / 224 * max(size)))


class Preprocessing(Noun):
    """How an upright RGB image of 0..255 becomes `pixels`, and how logits become an image again."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    assumed: bool
    """Mean and std are ImageNet's because the checkpoint did not say."""
    stride: tuple[int, int] | None
    """Step of the sliding window in pixels, rows then columns; None: images are resized to the model's size."""
    crop: CentreCrop | None = None
    """Of classifiers, which see the centre of a picture, its proportions kept; None: the whole picture is seen."""
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


class ClassEntry(Noun):
    """A class: its name and its colour (red, green, blue)."""

    name: str
    color: tuple[int, int, int]


class GateDefaults(Noun):
    """Where tokens stop unless the caller says otherwise."""

    thresholds: tuple[tuple[float, ...], ...]
    """Per gate, per class."""
    floor: float = 0.0
    origin: Literal["configuration", "calibration"] = "configuration"


class Provenance(Noun):
    """Where the bundle comes from."""

    tool: str
    source: str
    """File name of the checkpoint."""
    source_sha256: str
    license: str = ""


class Manifest(Noun):
    """The contents of `manifest.json`; see docs/bundle-format.md."""

    format: Literal["dovit-bundle"] = FORMAT
    version: int = VERSION
    name: str
    task: Task = "segmentation"
    spec: AnySpec
    preprocessing: Preprocessing
    classes: tuple[ClassEntry, ...]
    defaults: GateDefaults
    counts: tuple[TokenCount, ...]
    """One per stage."""
    precisions: tuple[str, ...] = ("fp32",)
    opset: int = 20
    provenance: Provenance
    files: dict[str, FileEntry]
    """Every file of the bundle but the manifest itself and what lies in `engines/`."""

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
            body = json.loads(text)
        except ValueError as error:
            raise ManifestInvalid(f"manifest.json is not JSON: {error}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ManifestInvalid(f"manifest.json does not describe a bundle: 'format' is not '{FORMAT}'")
        if body.get("version") != VERSION:
            raise VersionUnknown(
                f"bundle format version {body.get('version')!r}: this version reads {VERSION}; "
                "export the checkpoint again, or install a matching dovit-deploy"
            )
        if body.pop("digest", None) != digest_of(body):
            raise ManifestInvalid("manifest.json was altered: its digest does not match; export it again")
        try:
            manifest = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ManifestInvalid(f"manifest.json: {place}: {first['msg']}") from error
        _check_agreement(manifest)
        return manifest


def _check_agreement(manifest: Manifest) -> None:
    """Raise ManifestInvalid where what is written beside the spec does not fit the spec."""
    spec, rows = manifest.spec, manifest.defaults.thresholds
    wanted = {
        "classes": (len(manifest.classes), spec.classes),
        "counts": (len(manifest.counts), len(spec.gates) + 1),
        "defaults.thresholds": (len(rows), len(spec.gates)),
        **{f"defaults.thresholds.{gate}": (len(row), spec.classes) for gate, row in enumerate(rows)},
    }
    for place, (given, needed) in wanted.items():
        if given != needed:
            raise ManifestInvalid(f"manifest.json: {place}: {given} entries, the model of its spec has {needed}")
    if manifest.task != spec.task:
        raise ManifestInvalid(f"manifest.json: task: {manifest.task}, the model of its spec does {spec.task}")
    _check_crop(manifest)
    # Written so that NaN is refused too.
    if not all(0 <= value <= 1 for row in rows for value in row) or not 0 <= manifest.defaults.floor <= 1:
        raise ManifestInvalid("manifest.json: defaults: thresholds and floor must lie in [0, 1]")


def _check_crop(manifest: Manifest) -> None:
    crop, size = manifest.preprocessing.crop, manifest.spec.size
    if crop is None:
        return
    if manifest.task != "classification" or manifest.preprocessing.stride is not None:
        raise ManifestInvalid("manifest.json: preprocessing.crop: only a classifier crops, and it slides no window")
    if crop.shorter < max(size):
        raise ManifestInvalid(
            f"manifest.json: preprocessing.crop.shorter: {crop.shorter}, the model takes {size[0]}x{size[1]} of it"
        )


def digest_of(body: dict[str, object]) -> str:
    """SHA-256 of the manifest's JSON without its digest, keys sorted, without white space."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
