"""What do `--precision`, `--calibration` and `--max-drop` of `export` ask for, and with which images is it done?

SRC is a labelled data set, a folder of images, an image pattern or a video. Ranges are taken of one part of the images,
and what a precision loses is measured on the other; of a data set with both, ranges come from `train` and losses from
`val`. DATASET:SPLIT takes another split, or a part of one, than the whole of `train`: a drive that a claim is about is
left out. Few images are used for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.bundle.parity import MAX_DROP, PrecisionParity
from dovit_deploy.calibrate.images import (
    CalibrationImage,
    FolderImages,
    PickedImages,
    SplitImages,
    image_files,
    spread,
)
from dovit_deploy.datasets.open import dataset_from_path, has_split, is_rendered, named_split
from dovit_deploy.datasets.split import split_from_text
from dovit_deploy.errors import DatasetError, SourceError, UsageError, shown
from dovit_deploy.export.quantise import TRIED, Loss, QuantisePlan
from dovit_deploy.measure.evaluate import check_classes
from dovit_deploy.measure.precisions import measured_precisions, points_of_miou, refuse_losses
from dovit_deploy.printing import plural
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.tasks import takes_images
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame, ImageSet

FEWEST = 8
"""Ranges of fewer images are those of these images."""
RANGED, COMPARED = 32, 64
"""Images at most that ranges are taken of, and that losses are measured on."""

FORMS = ("fp32", "int8")
"""Precisions that have graphs of their own."""


@dataclass(frozen=True)
class PrecisionRequest:
    """Which precisions a bundle gets, checked as far as the flags alone can be."""

    precisions: tuple[str, ...]
    calibration: str | None
    max_drop: float

    @classmethod
    def from_flags(cls, precision: str, calibration: str | None, max_drop: float | None) -> PrecisionRequest:
        """Raises UsageError for what `export` cannot do."""
        wanted = tuple(part.strip() for part in precision.split(","))
        wrong = [name for name in wanted if name not in FORMS]
        if wrong:
            own = "; bf16 needs no form of its own: --engine openvino --precision bf16" if "bf16" in wrong else ""
            raise UsageError(f"--precision: {shown(wrong[0], quoted=True)} given; forms: {', '.join(FORMS)}{own}")
        if "int8" in wanted and calibration is None:
            raise UsageError(
                f"--precision {precision}: int8 needs images to take ranges of; give --calibration SRC, {FEWEST} or "
                "more images of the kind that the model will see, or a labelled data set"
            )
        if max_drop is not None and calibration is None:
            raise UsageError("--max-drop is measured on the images of --calibration SRC; give both")
        if max_drop is not None and not 0 <= max_drop <= 100:
            raise UsageError(f"--max-drop: {max_drop:g} given; points from 0 to 100 are allowed")
        return cls(tuple(dict.fromkeys(("fp32", *wanted))), calibration, MAX_DROP if max_drop is None else max_drop)

    def images(self, manifest: Manifest) -> GivenImages | None:
        """Of `--calibration`, for a bundle of `manifest`; None without.

        Raises:
            UsageError: the model gives no classes, which precisions are judged by.
            DatasetError, SourceError: as `calibration_images`.
        """
        if self.calibration is None:
            return None
        if not takes_images(manifest):
            raise UsageError(f"--calibration: {manifest.name} is a backbone without a head: fp32 alone is exported")
        return calibration_images(self.calibration, manifest)

    def plan(self, images: GivenImages | None) -> QuantisePlan | None:
        """What int8 is made with; None where it is not asked for."""
        if images is None or "int8" not in self.precisions:
            return None
        # Half of what may be lost is left for the gates, whose decisions differ in the end.
        return QuantisePlan(images.ranged, self.max_drop / 2, images.lost)

    def losses(
        self, bundle: Bundle, images: GivenImages | None, *, progress: StepProgress, remark: Callable[[str], None]
    ) -> tuple[PrecisionParity, ...]:
        """What each precision of this bundle and machine loses.

        Raises:
            CheckError: more than is allowed, of one that is asked for.
        """
        if images is None:
            return ()
        found = measured_precisions(bundle, images.compared, progress=progress, remark=remark)
        refuse_losses(found, asked=self.precisions, max_drop=self.max_drop)
        return found


def loss_lines(found: Sequence[PrecisionParity]) -> list[str]:
    """A line for each precision that was measured."""
    return [
        f"{one.engine} {one.precision}: {one.agreement:.2%} of the pixels as in fp32"
        + ("" if one.drop is None else f", mIoU drop {one.drop:.2f}")
        + (f", confidences within {max(one.confidence_error):.1g}" if one.confidence_error else "")
        + f" ({plural(one.images, 'image')})"
        for one in found
    ]


@dataclass(frozen=True)
class GivenImages:
    """The images of both parts; each is decoded when it is asked for."""

    ranged: ImageSet[RGB]
    compared: ImageSet[CalibrationImage]
    lost: Loss
    """By what answers to the first of `ranged` are judged."""


def calibration_images(given: str, manifest: Manifest) -> GivenImages:
    """The images that `given` names.

    Args:
        given: of `--calibration`.
        manifest: of the bundle that is exported.

    Raises:
        DatasetError: fewer than `FEWEST` images in a part, or labels of other classes than the model's.
        SourceError: nothing to read there.
    """
    dataset, named = named_split(given)
    splits = _splits(dataset, named)
    if manifest.task == "segmentation" and splits:
        parts = [_split(dataset, split, manifest) for split in splits]
    else:
        parts = [_folder(Path(given)) if Path(given).is_dir() else _frames(given)]
    count = min(len(part.numbers) for part in parts)
    if count < FEWEST:
        of_split = " in one of its splits" if len(parts) == 2 else ""
        raise DatasetError(
            f"--calibration {given}: {plural(count, 'image')}{of_split}; to take ranges for int8, and to measure what "
            f"it loses, needs at least {FEWEST}, better {RANGED} or more, of the kind that the model will see"
        )
    first, second = parts if len(parts) == 2 else _halves(parts[0])
    ranged = spread(first.numbers, RANGED)
    return GivenImages(
        PickedImages(ranged, lambda number: first.image(number).rgb),
        PickedImages(spread(second.numbers, COMPARED), second.image),
        points_of_miou(manifest, PickedImages(ranged[:TRIED], first.image)),
    )


@dataclass(frozen=True)
class _Part:
    """Some images of a set."""

    image: Callable[[int], CalibrationImage]
    numbers: Sequence[int]


def _halves(whole: _Part) -> tuple[_Part, _Part]:
    """Every other image, so that both see the whole recording; where they are few, all of them twice."""
    if len(whole.numbers) < 2 * FEWEST:
        return whole, whole
    return _Part(whole.image, whole.numbers[::2]), _Part(whole.image, whole.numbers[1::2])


def _splits(dataset: str, named: str) -> list[str]:
    """That of the ranges, and that of the losses where it is another one; none of what is no data set of label maps."""
    found = [split for split in ("train", "val") if is_rendered(dataset) or has_split(dataset, split)]
    if not named or not found:
        return found
    # Part of `val`, too, is `val`: nothing is judged on the images that the ranges come from.
    judged_elsewhere = "val" in found and split_from_text(named).name != "val"
    return [named, "val"] if judged_elsewhere else [named]


def _split(given: str, split: str, manifest: Manifest) -> _Part:
    data = dataset_from_path(given, split)
    check_classes(data, manifest)
    images = SplitImages(data, name=given, split=split)
    return _Part(images.image, range(len(data)))


def _folder(path: Path) -> _Part:
    # A classifier's images lie in folders of their own.
    images = FolderImages(path, recursive=not image_files(path).taken)
    return _Part(images.image, range(len(images.paths)))


def _frames(given: str) -> _Part:
    """The first images of a pattern or a video, kept in memory."""
    frames = []
    with open_source(given, max_frames=RANGED + COMPARED) as source:
        for frame in source:
            if isinstance(frame, FailedFrame):
                raise SourceError(f"--calibration: {frame.message}")
            frames.append(frame.rgb)
    return _Part(lambda number: CalibrationImage(frames[number], None), range(len(frames)))
