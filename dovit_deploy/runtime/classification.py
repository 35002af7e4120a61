"""How an image gets its most probable classes, with the bundle's own preprocessing and names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import UsageError
from dovit_deploy.families.spec import Size
from dovit_deploy.files import write_text
from dovit_deploy.runtime.given import check_pixels_array, described, path_from
from dovit_deploy.runtime.legend import ClassShare
from dovit_deploy.runtime.lettering import Color
from dovit_deploy.runtime.paint import paint_label, png_from_rgb, write_image
from dovit_deploy.runtime.predict import ImageAnswer, Predicts
from dovit_deploy.runtime.results import (
    TOP,
    ClassScore,
    FrameTiming,
    FrameTokens,
    Logits,
    Pixels,
    Region,
    ShownPicture,
    TokenReport,
    Window,
    probabilities_from_logits,
    scores_from_probabilities,
)
from dovit_deploy.runtime.settings import RunSettings, RunsOne, Thresholds
from dovit_deploy.runtime.token_maps import paint_selections, selection_key
from dovit_deploy.runtime.transforms import crop_region
from dovit_deploy.sources.source import RGB

SUFFIXES = (".json", ".png")


@dataclass(frozen=True)
class ClassificationResult(ImageAnswer):
    """What one image shows, what its tokens did, and how long it took."""

    classes: tuple[ClassScore, ...]
    """The most probable classes, the most probable first; of equals the lower id."""
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    """Of all classes, (K,); their sum is 1."""

    @property
    def label(self) -> ClassScore:
        """The most probable class."""
        return self.classes[0]

    def plot(self) -> RGB:
        """The image with its most probable classes lettered on it."""
        return paint_label(self.rgb, self.classes)

    def shares(self) -> tuple[ClassShare, ...]:
        """None: a label belongs to the whole image, which has no map of classes."""
        return ()

    def plot_tokens(self, *, legend: bool = True) -> RGB:
        """The image with how often each part of it was selected to run; `legend` adds a key below the image."""
        return paint_selections(self.rgb, self.tokens, legend=legend)

    def pictures(self) -> tuple[ShownPicture, ...]:
        """The image, the image with its answer, and what its tokens did, without a key."""
        return (
            ShownPicture("input", self.rgb),
            ShownPicture("answer", self.plot()),
            ShownPicture("selected tokens", self.plot_tokens(legend=False)),
        )

    def token_key(self) -> tuple[tuple[str, Color], ...]:
        """What the colours of `plot_tokens` stand for."""
        return selection_key(self.tokens)

    def facts(self) -> dict[str, Any]:
        """The fields of the answer in a row of `frames.jsonl`: `top`, the classes with their probabilities."""
        return {
            "top": [{"id": entry.id, "name": entry.name, "probability": entry.probability} for entry in self.classes]
        }

    def differing(self, other: Self) -> float:
        """0 where the most probable class is the same, else 1."""
        return float(self.classes[0].id != other.classes[0].id)

    def png(self) -> bytes:
        """What `save` writes into a file called .png: a label has no map, so it is the painted image."""
        return png_from_rgb(self.plot())

    def save(self, path: str | Path) -> None:
        """Write the answer: `.json` the most probable classes, `.png` the image that `plot` gives.

        Raises:
            UsageError: another suffix, or the folder is not there.
            OutputFailed: the file cannot be written.
        """
        target = path_from(path)
        if target.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{target.name}: an answer is written as {' or '.join(SUFFIXES)}; give such a name")
        if not target.parent.is_dir():
            raise UsageError(f"cannot write {target}: there is no folder {target.parent}")
        if target.suffix.lower() == ".png":
            write_image(target, self.png())
            return
        write_text(target, json.dumps(self.facts(), indent=1) + "\n")


class Classifier(Predicts[ClassificationResult]):
    """A session of a classifier and what comes before and after the model; `Predictor` does this for segmentation.

    Args:
        session: of a bundle whose task is classification.
        top: how many classes an answer names.

    Raises:
        UsageError: a bundle with another task, or `top` below 1.
    """

    task = "classification"

    def __init__(self, session: RunsOne, *, top: int = TOP) -> None:
        super().__init__(session)
        if isinstance(top, bool) or not isinstance(top, int):
            raise UsageError(f"top: {described(top)} given, a whole number is needed")
        if top < 1:
            raise UsageError(f"top {top}: at least 1 class is needed in an answer")
        self.top = top
        self.names = tuple(entry.name for entry in session.bundle.manifest.classes)

    def run(self, rgb: RGB, settings: RunSettings, *, decode_ms: float = 0.0) -> ClassificationResult:
        """`predict` with settings that are resolved already."""
        start = perf_counter()
        pixels = self.to_input(rgb)
        ready = perf_counter()
        logits, report = self.session.run_one(pixels, settings)
        answered = perf_counter()
        probabilities = probabilities_from_logits(logits[0])
        classes = scores_from_probabilities(probabilities, self.names, top=self.top)
        tokens = self._tokens(report, (rgb.shape[0], rgb.shape[1]))
        timing = FrameTiming(
            decode_ms, 1e3 * (ready - start), 1e3 * (answered - ready), 1e3 * (perf_counter() - answered)
        )
        return ClassificationResult(rgb, tokens, timing, classes, probabilities)

    def logits(
        self,
        pixels: Pixels,
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> Logits:
        """Logits (1, K) of `pixels` (1, 3, *size).

        Raises:
            InputError: not float32 of that shape.
            UsageError: thresholds or floor of a model without gates, or given together with `dense`.
        """
        check_pixels_array(pixels, f"(1, 3, {self.spec.size[0]}, {self.spec.size[1]})")
        settings = RunSettings.resolve(self.session.bundle.manifest, thresholds=thresholds, floor=floor, dense=dense)
        return np.asarray(self.session.run_one(pixels, settings)[0])

    def _tokens(self, report: TokenReport, image: Size) -> FrameTokens:
        height, width = self.spec.size
        window = Window(0, 0, height, width, report)
        return FrameTokens((window,), self.spec.size, self.spec.patch, region=self._region(image))

    def _region(self, image: Size) -> Region | None:
        # Without a crop the whole image is resized, and the model sees all of it.
        crop = self.preprocessing.crop
        return None if crop is None else crop_region(image, shorter=crop.shorter, size=self.spec.size)
