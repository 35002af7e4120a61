"""What a bundle is for, and what follows from that: only here does a run distinguish tasks.

segmentation     Predictor    overlay, masks, tokens, cityscapes, coco, report
classification   Classifier   overlay, tokens, report
features         none: a backbone without a head gives arrays, through `Session` alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.runtime.classification import Classifier
from dovit_deploy.runtime.legend import ClassShare
from dovit_deploy.runtime.lettering import Color
from dovit_deploy.runtime.results import Filled, FrameTiming, FrameTokens, ShownPicture
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.settings import RunSettings, RunsOne, session_from
from dovit_deploy.sources.source import RGB


class ImageResult(Protocol):
    """What every task's result can do."""

    @property
    def rgb(self) -> RGB:
        """The image: (H, W, 3) uint8."""

    @property
    def tokens(self) -> FrameTokens:
        """What the tokens did."""

    @property
    def timing(self) -> FrameTiming:
        """How long it took."""

    def plot(self) -> RGB:
        """The image with the answer on it."""

    def shares(self) -> tuple[ClassShare, ...]:
        """The classes of the pixels and their shares, for a legend; none where the answer is no map."""

    def plot_tokens(self, *, legend: bool = True) -> RGB:
        """The image with what its tokens did on it, and a key below."""

    def pictures(self) -> tuple[ShownPicture, ...]:
        """How a page shows the frame: the image first, then what can be laid over it."""

    def token_key(self) -> tuple[tuple[str, Color], ...]:
        """What the colours of `plot_tokens` stand for."""

    def facts(self) -> dict[str, Any]:
        """The fields of the answer in a row of `frames.jsonl`."""

    def png(self) -> bytes:
        """The answer as the content of a PNG."""

    def differing(self, other: Self) -> float:
        """Share of the pixels, or of a label all, in which the answer is another one; both of the same image."""

    def repeated(self, decode_ms: float) -> Self:
        """The same answer for an equal image that was decoded in `decode_ms`, and nothing computed for it."""

    def held(self, rgb: RGB, decode_ms: float, *, by: Filled) -> Self:
        """The same answer for a later image `rgb` of this size that was decoded in `decode_ms`, and did not run."""


class ImagePredictor(Protocol):
    """What turns an image into an answer."""

    def run(self, rgb: RGB, settings: RunSettings, *, decode_ms: float = 0.0) -> ImageResult:
        """The answer to `rgb` (H, W, 3) uint8."""


@dataclass(frozen=True)
class ImageTask:
    """A task that takes images."""

    verb: str
    """What its models do, for messages."""
    predictor: Callable[[RunsOne, int], ImagePredictor]
    """Of a session and how many windows of an image it may run at once."""
    kinds: tuple[str, ...]
    """What `--save` can name."""
    images_default: tuple[str, ...]
    video_default: tuple[str, ...] = ("overlay", "report")

    def checked(self, kinds: tuple[str, ...], *, name: str) -> tuple[str, ...]:
        """The kinds of `--save`; raises UsageError for one that the bundle called `name` cannot give."""
        wrong = [kind for kind in kinds if kind not in self.kinds]
        if wrong:
            raise UsageError(f"--save: '{wrong[0]}' given, and {name} {self.verb}; allowed: {', '.join(self.kinds)}")
        return kinds


TASKS: dict[str, ImageTask] = {
    "segmentation": ImageTask(
        "labels every pixel",
        lambda session, at_once: Predictor(session, windows_at_once=at_once),
        kinds=("overlay", "masks", "tokens", "cityscapes", "coco", "report"),
        images_default=("overlay", "masks", "report"),
    ),
    # A label has no map, so there are no masks.
    "classification": ImageTask(
        "names whole images",
        # An image is one window.
        lambda session, _: Classifier(session),
        kinds=("overlay", "tokens", "report"),
        images_default=("overlay", "report"),
    ),
}


def task_from_manifest(manifest: Manifest) -> ImageTask:
    """The task of a bundle.

    Raises:
        InputError: it has none that takes images.
    """
    if not takes_images(manifest):
        raise InputError(
            f"{manifest.name} is a backbone without a head (task {manifest.task}): it gives no answer about an image; "
            "use Session.run from Python"
        )
    return TASKS[manifest.task]


def takes_images(manifest: Manifest) -> bool:
    """Whether a bundle gives an answer about an image."""
    return manifest.task in TASKS


def predictor_for(session: RunsOne, *, windows_at_once: int = 1) -> ImagePredictor:
    """A `Predictor` or a `Classifier`, whichever fits the session's bundle.

    Args:
        session: made for as many `callers`.
        windows_at_once: of an image, see `Predictor`.

    Raises:
        UsageError: fewer than one window at once.
        InputError: the bundle is a backbone without a head, or has more classes than a class map can hold.
    """
    task = task_from_manifest(session_from(session, "predictor_for").bundle.manifest)
    return task.predictor(session, windows_at_once)
