"""Predictor: a picture in, a segmentation out, with the bundle's own preprocessing, windows and palette."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.runtime import transforms
from dovit_deploy.runtime.class_map import class_map
from dovit_deploy.runtime.gate_inputs import Thresholds
from dovit_deploy.runtime.results import RGB, FrameTiming, FrameTokens, Palette, Window
from dovit_deploy.runtime.runs_one import RunsOne
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.sliding import averaged_bands
from dovit_deploy.runtime.transforms import ClassMap, Logits, Pixels, Size, described

MOST_CLASSES = 256
"""A class map is uint8, and so is an indexed PNG."""


class Predictor:
    """A session of a segmentation bundle with what lies around the model; `Classifier` is its like for classifiers.

    Raises:
        UsageError: the bundle's task is another one.
        InputError: the bundle has more classes than a class map can hold.
    """

    def __init__(self, session: RunsOne) -> None:
        manifest = session.bundle.manifest
        if manifest.task != "segmentation":
            raise UsageError(
                f"{manifest.name}: its task is {manifest.task}, Predictor makes class maps; "
                "predictor_for(session) gives what fits a bundle"
            )
        self.session = session
        self.spec = manifest.spec
        self.preprocessing = manifest.preprocessing
        if self.spec.classes > MOST_CLASSES:
            raise InputError(f"{manifest.name} has {self.spec.classes} classes; class maps hold {MOST_CLASSES}")
        colors = np.array([entry.color for entry in manifest.classes], dtype=np.uint8).reshape(-1, 3)
        self.palette = Palette(tuple(entry.name for entry in manifest.classes), colors)
        self.gates = tuple(gate.layer for gate in self.spec.gates)

    def predict(
        self,
        rgb: RGB,
        *,
        decode_ms: float = 0.0,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> SegmentationResult:
        """The class of every pixel of `rgb`, and what its tokens did.

        Args:
            rgb: (H, W, 3) uint8, upright.
            decode_ms: what decoding it took, to be reported with the rest.
            thresholds, floor, dense: as `Session.run` takes them.

        Raises:
            InputError: not an (H, W, 3) uint8 array.
            UsageError: thresholds or floor out of range, or given together with `dense`.
        """
        start = perf_counter()
        pixels = self.to_input(rgb)
        ready = perf_counter()
        run = _WindowRun(self, pixels, thresholds=thresholds, floor=floor, dense=dense)
        answer = self._class_map(run, (rgb.shape[0], rgb.shape[1]))
        preprocess, rest = 1e3 * (ready - start), 1e3 * (perf_counter() - ready)
        timing = FrameTiming(decode_ms, preprocess, run.model_ms, rest - run.model_ms)
        return SegmentationResult(rgb, answer, run.tokens, timing, self.palette, self.gates)

    def to_input(self, rgb: RGB) -> Pixels:
        """`rgb` (H, W, 3) uint8 as `pixels` (1, 3, h, w) float32, normalised.

        (h, w) is the model's size, or with a sliding window at least that.

        Raises:
            InputError: not an (H, W, 3) uint8 array.
        """
        return transforms.to_input(rgb, self.preprocessing, self.spec.size)

    def logits(
        self,
        pixels: Pixels,
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        dense: bool = False,
    ) -> Logits:
        """Logits (1, K, h, w) at the size of `pixels` (1, 3, h, w), averaged where windows overlap.

        Raises:
            InputError: not float32 of that shape, a side smaller than the model's, or larger without a stride.
            UsageError: thresholds or floor out of range, or given together with `dense`.
        """
        self._check_pixels(pixels)
        run = _WindowRun(self, pixels, thresholds=thresholds, floor=floor, dense=dense)
        return self._averaged(run)[None]

    def _check_pixels(self, pixels: Pixels) -> None:
        height, width = self.spec.size
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.float32 or pixels.ndim != 4:
            raise InputError(f"pixels: {described(pixels)} given, float32 of shape (1, 3, h, w) needed")
        larger = "" if self.preprocessing.stride is None else " or larger"
        fits = pixels.shape[2:] == self.spec.size
        if self.preprocessing.stride is not None:
            fits = pixels.shape[2] >= height and pixels.shape[3] >= width
        if pixels.shape[:2] != (1, 3) or not fits:
            raise InputError(f"pixels of shape {pixels.shape} given, (1, 3, {height}, {width}){larger} needed")

    def _class_map(self, run: _WindowRun, image_size: Size) -> ClassMap:
        patch, cover = self.spec.patch, self.preprocessing.logits_cover
        if len(run.corners) == 1:
            return transforms.to_class_map(
                run.window_logits(0, 0), run.input_size, image_size, cover=cover, patch=patch
            )
        if run.input_size != image_size:
            merged = self._averaged(run)
            return transforms.to_class_map(merged, run.input_size, image_size, cover="image", patch=patch)
        answer = np.empty(image_size, dtype=np.uint8)
        for top, band in averaged_bands(run.placed(), run.input_size[1]):
            answer[top : top + band.shape[1]] = class_map(band)
        return answer

    def _averaged(self, run: _WindowRun) -> Logits:
        merged = np.empty((self.spec.classes, *run.input_size), dtype=np.float32)
        for top, band in averaged_bands(run.placed(), run.input_size[1]):
            merged[:, top : top + band.shape[1]] = band
        return merged


class _WindowRun:
    """One input going through the session window by window; collects reports and the time of the model."""

    def __init__(
        self, predictor: Predictor, pixels: Pixels, *, thresholds: Thresholds | None, floor: float | None, dense: bool
    ) -> None:
        self.session, self.pixels = predictor.session, pixels
        self.spec, self.preprocessing = predictor.spec, predictor.preprocessing
        self.thresholds, self.floor, self.dense = thresholds, floor, dense
        self.input_size: Size = (pixels.shape[2], pixels.shape[3])
        stride = self.preprocessing.stride or self.spec.size
        self.corners = transforms.windows(*self.input_size, self.spec.size, stride)
        self.model_ms = 0.0
        self.done: list[Window] = []

    @property
    def tokens(self) -> FrameTokens:
        """What the windows' tokens did."""
        return FrameTokens(tuple(self.done), self.input_size, self.spec.patch)

    def window_logits(self, top: int, left: int) -> Logits:
        """Logits (K, h, w) of one window as the head gives them."""
        height, width = self.spec.size
        pixels = np.ascontiguousarray(self.pixels[:, :, top : top + height, left : left + width])
        start = perf_counter()
        logits, report = self.session.run_one(pixels, thresholds=self.thresholds, floor=self.floor, dense=self.dense)
        self.model_ms += 1e3 * (perf_counter() - start)
        self.done.append(Window(top, left, height, width, report))
        return np.asarray(logits[0], dtype=np.float32)

    def placed(self) -> Iterator[tuple[int, int, Logits]]:
        """Top, left and logits (K, *size) of each window, at the window's own size."""
        cover, patch = self.preprocessing.logits_cover, self.spec.patch
        for top, left in self.corners:
            logits = self.window_logits(top, left)
            yield top, left, transforms.logits_at_input(logits, self.spec.size, cover=cover, patch=patch)
