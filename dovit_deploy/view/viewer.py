"""What does the page show of a frame at these thresholds? The model runs anew each time, so that all of it is exact.

A frame that was seen at the same thresholds lately is not run again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.pages.charts import css_color
from dovit_deploy.pages.page import Picture
from dovit_deploy.printing import printable
from dovit_deploy.runtime.album import encoded
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings, short_thresholds
from dovit_deploy.runtime.tasks import ImageResult, predictor_for
from dovit_deploy.sources.source import RGB
from dovit_deploy.view.frames import Frames, Uploads

LONGER_SIDE = 720
"""Of a picture on the page, in pixels."""
REMEMBERED = 24
"""Answers that are kept, about 200 KB each."""


@dataclass(frozen=True)
class Question:
    """What the page asks for."""

    frame: int | None
    """Number of a frame of the source; None: an image that was dropped on the page."""
    image: str
    """The key of that image."""
    thresholds: tuple[float, ...]
    """One for each gate; none: the bundle's own."""
    dense: bool


def question_from_json(content: object) -> Question:
    """A question as the page sends it; raises InputError for anything else."""
    if not isinstance(content, Mapping):
        raise InputError("a JSON object is needed")
    frame, image = content.get("frame"), content.get("image", "")
    thresholds, dense = content.get("thresholds", []), content.get("dense", False)
    if not (frame is None or type(frame) is int) or not isinstance(image, str) or not isinstance(dense, bool):
        raise InputError("frame: a number, image: a key, dense: true or false are needed")
    if not isinstance(thresholds, list) or not all(type(value) in (int, float) for value in thresholds):
        raise InputError("thresholds: a list of numbers is needed")
    # Not left to the session: an integer may be too large for a float.
    if outside := [value for value in thresholds if not 0 <= value <= 1]:
        raise UsageError(f"threshold {outside[0]} is outside [0, 1]")
    return Question(frame, image, tuple(map(float, thresholds)), dense)


class Viewer:
    """A session, what can be shown with it, and the answers that were given lately; several threads may ask.

    Args:
        session: of a bundle that takes images.
        frames: of the source; None: there is none.
        max_pixels: of an image that is dropped on the page.
    """

    def __init__(self, session: Session, frames: Frames | None, *, max_pixels: int) -> None:
        self._session, self._frames = session, frames
        self._predictor = predictor_for(session)
        self._answers: OrderedDict[Question, dict[str, Any]] = OrderedDict()
        # One image at a time: a second one would take the first one's cores, and its time.
        self._lock = threading.Lock()
        self._ended = False
        self.uploads = Uploads(max_pixels=max_pixels)

    def facts(self) -> dict[str, Any]:
        """What the page must know before the first question."""
        manifest = self._session.bundle.manifest
        settings = RunSettings.resolve(manifest)
        own = short_thresholds(settings.thresholds)
        return {
            "model": printable(manifest.name),
            "engine": f"{self._session.backend.name} {self._session.backend.precision}",
            "gates": [f"before layer {gate.layer}" for gate in manifest.spec.gates],
            # One for each class cannot be moved by one slider: the page then begins with their mean.
            "thresholds": [value if isinstance(value, float) else sum(value) / len(value) for value in own],
            "per_class": any(not isinstance(value, float) for value in own),
            "dense": manifest.spec.has_dense,
            "frames": [] if self._frames is None else [0, self._frames.count - 1],
        }

    def answer(self, question: Question) -> dict[str, Any]:
        """What the page shows.

        Raises:
            SourceError: the frame or image cannot be read, or is gone.
            UsageError: there is no such frame; thresholds outside 0 to 1, or of the wrong number.
            InputError: the model cannot take the image.
        """
        with self._lock:
            if self._ended:
                raise UsageError("dovit view has ended")
            if question not in self._answers:
                self._answers[question] = self._computed(question)
                while len(self._answers) > REMEMBERED:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(question)
            return self._answers[question]

    def finish(self) -> None:
        """Wait for the answer in work and begin no other: the session is about to be closed."""
        with self._lock:
            self._ended = True

    def _computed(self, question: Question) -> dict[str, Any]:
        name, rgb = self._image(question)
        thresholds = None if question.dense or not question.thresholds else question.thresholds
        settings = RunSettings.resolve(self._session.bundle.manifest, thresholds=thresholds, dense=question.dense)
        return answer_from_result(name, self._predictor.run(rgb, settings))

    def _image(self, question: Question) -> tuple[str, RGB]:
        if question.frame is None:
            return "dropped image", self.uploads.read(question.image)
        if self._frames is None or not 0 <= question.frame < self._frames.count:
            raise UsageError(f"there is no frame {question.frame}")
        return self._frames.name(question.frame), self._frames.read(question.frame)


def answer_from_result(name: str, result: ImageResult) -> dict[str, Any]:
    """A result as the page draws it: pictures as addresses, colours as styles."""
    tokens, shares = result.tokens, sorted(result.shares(), key=lambda share: -share.share)
    pictures = [Picture(shown.name, encoded(shown, longer=LONGER_SIDE)) for shown in result.pictures()]
    return {
        "name": printable(name),
        "pictures": [{"name": picture.name, "address": picture.address} for picture in pictures],
        "kept": list(tokens.kept),
        "gmacs": {"dense": tokens.gmacs_dense, "actual": tokens.gmacs_actual},
        "flops_saved": tokens.flops_saved,
        "model_ms": result.timing.model,
        "key": [{"name": entry, "color": css_color(color)} for entry, color in result.token_key()],
        "classes": [
            {"name": printable(share.name), "color": css_color(share.color), "share": share.share} for share in shares
        ],
        **result.facts(),
    }
