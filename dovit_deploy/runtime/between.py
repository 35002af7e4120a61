"""What is the answer to a frame of a video between those that run? That of the last one that ran, as it is or moved.

--every 3 --hold    runs, takes its answer, takes its answer, runs, ...
--every 3 --warp    runs, takes its answer moved along with the image, the same again, runs, ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.results import ClassMap, Filled, FrameTiming
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.sources.source import RGB, Frame, Source

LONGER_SIDE = 480
"""Pixels of the images in which motion is looked for."""
SHORTEST_SIDE = 32
"""Pixels; in less the flow finds nothing, and the answer stays where it is."""


@dataclass(frozen=True)
class Between:
    """Which frames of a video run, and what the others take."""

    every: int
    """One of so many runs, the first one and each that is so many behind."""
    by: Filled

    def facts(self, frames: int, model_ms: dict[str, float] | None) -> dict[str, Any]:
        """What a summary says: how many `frames` did not run, and the model step of the others."""
        return {"every": self.every, "by": self.by, "frames": frames, "model_ms": model_ms}


def refuse_unfit(between: Between, source: Source, manifest: Manifest) -> None:
    """Raise UsageError where images do not follow each other, or answers cannot be moved."""
    flag = f"--{between.by}"
    if source.kind == "images":
        raise UsageError(
            f"{source.name}: {flag} goes on from one frame of a video to the next, and these are images; leave it out"
        )
    if between.by == "warp" and manifest.task != "segmentation":
        raise UsageError(f"{manifest.name} names whole frames, so --warp has no map to move; give --hold")


class Filling:
    """Which of a video's frames run, and the answers of the others; asked about each frame in turn.

    Args:
        between: the plan.
    """

    def __init__(self, between: Between) -> None:
        self._between = between
        self._number = 0
        self._ran: ImageResult | None = None
        self._motion: Motion | None = None

    def runs(self, frame: Frame) -> bool:
        """Whether the next frame runs: it is its turn, or there is no answer to an image of its size."""
        turn = self._number % self._between.every == 0
        self._number += 1
        return turn or self._ran is None or self._ran.rgb.shape != frame.rgb.shape

    def note(self, result: ImageResult) -> None:
        """Keep the answer to a frame that ran, for those behind it."""
        self._ran, self._motion = result, None

    def filled(self, frame: Frame) -> ImageResult:
        """The answer to a frame that does not run."""
        assert self._ran is not None
        held = self._ran.held(frame.rgb, frame.decode_ms, by=self._between.by)
        if self._between.by == "hold":
            return held
        # Of other tasks it was refused.
        assert isinstance(self._ran, SegmentationResult)
        assert isinstance(held, SegmentationResult)
        start = perf_counter()
        if self._motion is None:
            self._motion = Motion(self._ran.rgb, self._ran.class_map)
        moved = self._motion.follow(frame.rgb)
        timing = FrameTiming(frame.decode_ms, 0.0, 0.0, 1e3 * (perf_counter() - start))
        return replace(held, class_map=moved, timing=timing)


class Motion:
    """Moves a map of classes along with images that follow each other, by OpenCV's DIS flow.

    Kroeger, Timofte, Dai, Van Gool, "Fast Optical Flow using Dense Inverse Search" (ECCV 2016). From each image to the
    next and not from the first to each: the flow finds small steps better than a large one, and that is worth more
    than what rounding adds up to. A codec's motion vectors are not as good, and not every codec has them (docs/run.md).

    Args:
        rgb: (H, W, 3) uint8, the image whose answer is known.
        class_map: (H, W) uint8, that answer.
    """

    def __init__(self, rgb: RGB, class_map: ClassMap) -> None:
        cv2 = packages.opencv()
        self._grey, self._class_map = small_grey(rgb), class_map
        # The finer presets take longer and are no better here.
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def follow(self, rgb: RGB) -> ClassMap:
        """The map as it looks in the next image, `rgb` (H, W, 3); what came into it takes what is nearest."""
        before, self._grey = self._grey, small_grey(rgb)
        if min(before.shape) >= SHORTEST_SIDE:
            # From the later image to the one before, so that every pixel of the later one finds exactly one source.
            flow: npt.NDArray[np.float32] = self._flow.calc(self._grey, before, None)
            self._class_map = fetched(self._class_map, flow)
        return self._class_map


def small_grey(rgb: RGB) -> npt.NDArray[np.uint8]:
    """(h, w) uint8, the longer side at most `LONGER_SIDE`."""
    cv2 = packages.opencv()
    scale = LONGER_SIDE / max(rgb.shape[:2])
    grey: Any = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    if scale >= 1:
        return np.asarray(grey)
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    return np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))


def fetched(class_map: ClassMap, flow: npt.NDArray[np.float32]) -> ClassMap:
    """Each pixel's class from where `flow` (h, w, 2), in its own pixels across and down, says that it was.

    Classes are not mixed: the nearest pixel, of `class_map` (H, W), and outside of it the nearest on its border.
    """
    cv2 = packages.opencv()
    height, width = class_map.shape
    scale = width / flow.shape[1], height / flow.shape[0]
    if scale != (1.0, 1.0):
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
    across = np.arange(width, dtype=np.float32) + flow[..., 0] * np.float32(scale[0])
    down = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1] * np.float32(scale[1])
    moved = cv2.remap(class_map, across, down, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)
