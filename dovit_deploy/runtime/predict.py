"""How does `predict` take images in every form that a Python caller has? The same for every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar, overload

from dovit_deploy.runtime.given import SEVERAL, Image, image_from
from dovit_deploy.runtime.settings import RunSettings, RunsOne, Thresholds
from dovit_deploy.sources.source import RGB

Result = TypeVar("Result")


class Predicts(ABC, Generic[Result]):
    """`predict` of a predictor whose `run` gives a `Result` for one image."""

    session: RunsOne

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
