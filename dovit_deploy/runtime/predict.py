"""What is the same for every task? Images go in in every form that a Python caller has; answers have much in common.

`Predicts` is the base of `Predictor` and `Classifier`, `ImageAnswer` that of what they give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, Self, TypeVar, overload

from dovit_deploy.errors import UsageError
from dovit_deploy.families.spec import Task
from dovit_deploy.runtime import transforms
from dovit_deploy.runtime.given import SEVERAL, Image, image_from
from dovit_deploy.runtime.paint import png_from_rgb
from dovit_deploy.runtime.results import Filled, FrameTiming, FrameTokens, Pixels
from dovit_deploy.runtime.settings import RunSettings, RunsOne, Thresholds, session_from
from dovit_deploy.sources.source import RGB

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageAnswer(ABC):
    """The answer to one image, what its tokens did, and how long it took."""

    rgb: RGB = field(repr=False)
    """The image: (H, W, 3) uint8."""
    tokens: FrameTokens = field(repr=False)
    timing: FrameTiming

    @abstractmethod
    def plot(self) -> RGB:
        """The image with the answer on it."""

    def repeated(self, decode_ms: float) -> Self:
        """The same answer for an equal image that was decoded in `decode_ms`, and nothing computed for it."""
        tokens, timing = replace(self.tokens, still=True), FrameTiming(decode_ms, 0.0, 0.0, 0.0)
        return replace(self, tokens=tokens, timing=timing)

    def held(self, rgb: RGB, decode_ms: float, *, by: Filled) -> Self:
        """The same answer for a later image `rgb` of this size that was decoded in `decode_ms`, and did not run."""
        tokens, timing = replace(self.tokens, filled=by), FrameTiming(decode_ms, 0.0, 0.0, 0.0)
        return replace(self, rgb=rgb, tokens=tokens, timing=timing)

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the image that `plot` gives, as PNG."""
        return png_from_rgb(self.plot())


class Predicts(ABC, Generic[Result]):
    """A predictor whose `run` gives a `Result` for one image.

    Args:
        session: what computes.

    Raises:
        UsageError: it is none, or its bundle's task is another one.
    """

    task: ClassVar[Task]
    """Of the bundles that it takes."""

    def __init__(self, session: RunsOne) -> None:
        taker = type(self).__name__
        manifest = session_from(session, taker).bundle.manifest
        if manifest.task != self.task:
            raise UsageError(
                f"{manifest.name}: its task is {manifest.task}, {taker} is for {self.task}; "
                "predictor_for(session) gives what fits a bundle"
            )
        self.session, self.spec, self.preprocessing = session, manifest.spec, manifest.preprocessing

    def to_input(self, rgb: RGB) -> Pixels:
        """`rgb` (H, W, 3) uint8 as `pixels` (1, 3, h, w) float32, normalised.

        (h, w) is the model's size, or with a sliding window at least that; of a classifier it is the image's centre.

        Raises:
            InputError: not an (H, W, 3) uint8 array.
        """
        return transforms.to_input(rgb, self.preprocessing, self.spec.size)

    @overload
    def predict(
        self,
        rgb: list[Image] | tuple[Image, ...],
        *,
        decode_ms: float = 0.0,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> list[Result]: ...
    @overload
    def predict(
        self,
        rgb: Image,
        *,
        decode_ms: float = 0.0,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> Result: ...
    def predict(
        self,
        rgb: Image | list[Image] | tuple[Image, ...],
        *,
        decode_ms: float = 0.0,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> Result | list[Result]:
        """The answer to `rgb`, and what its tokens did.

        Args:
            rgb: (H, W, 3) uint8, upright; a path; a Pillow image; or a list of these, which gives a list.
            decode_ms: what decoding it took, to be reported with the rest.
            thresholds, floor, dense: as `Session.run` takes them.

        Raises:
            InputError: something else; or a file that cannot be read (SourceError).
            UsageError: thresholds or floor out of range, of a model without gates, or given together with `dense`.
            CheckError: a classifier's logits are not finite.
        """
        settings = RunSettings.resolve(self.session.bundle.manifest, thresholds=thresholds, floor=floor, dense=dense)
        if isinstance(rgb, SEVERAL):
            return [self._predicted(image, settings, decode_ms) for image in rgb]
        return self._predicted(rgb, settings, decode_ms)

    @abstractmethod
    def run(self, rgb: RGB, settings: RunSettings, *, decode_ms: float = 0.0) -> Result:
        """The answer to `rgb` (H, W, 3) uint8, with settings that are resolved already."""

    def _predicted(self, given: Image, settings: RunSettings, decode_ms: float) -> Result:
        rgb, decoded_ms = image_from(given)
        return self.run(rgb, settings, decode_ms=decode_ms + decoded_ms)
