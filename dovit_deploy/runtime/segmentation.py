"""How an image becomes a segmentation, with the bundle's own preprocessing, windows and palette."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.families.spec import Size
from dovit_deploy.runtime import transforms
from dovit_deploy.runtime.class_map import class_map
from dovit_deploy.runtime.given import check_pixels_array, described, number_within, path_from
from dovit_deploy.runtime.legend import ClassShare, class_shares
from dovit_deploy.runtime.lettering import Color
from dovit_deploy.runtime.paint import colored, paint_overlay, png_from_mask, save_mask
from dovit_deploy.runtime.predict import ImageAnswer, Predicts
from dovit_deploy.runtime.results import (
    Answer,
    ClassMap,
    FrameTiming,
    FrameTokens,
    Logits,
    Palette,
    Pixels,
    ShownPicture,
    TokenReport,
    Window,
)
from dovit_deploy.runtime.settings import RunSettings, RunsOne, Thresholds
from dovit_deploy.runtime.token_maps import exit_key, paint_selections, paint_tokens, selection_key
from dovit_deploy.runtime.workers import MOST_WORKERS, in_order, rounds_of
from dovit_deploy.sources.source import RGB

MOST_CLASSES = 256
"""A class map is uint8, and so is an indexed PNG."""


@dataclass(frozen=True)
class SegmentationResult(ImageAnswer):
    """The class of every pixel of one image, what its tokens did, and how long it took."""

    class_map: npt.NDArray[np.uint8] = field(repr=False)
    """(H, W) uint8 in the image's own pixels; value = class id."""
    palette: Palette
    gates: tuple[int, ...] = ()
    """The layer before which each gate stands."""

    def plot(self, *, alpha: float = 0.5) -> RGB:
        """The image with the classes painted over it; 0 is the image alone, 1 the classes alone."""
        alpha = number_within(alpha, "alpha", 0, 1)
        return paint_overlay(self.rgb, self.class_map, self.palette, alpha=alpha)

    def shares(self) -> tuple[ClassShare, ...]:
        """The classes that are present, by id, each with its share of the pixels."""
        return self._counted_shares

    @cached_property
    def _counted_shares(self) -> tuple[ClassShare, ...]:
        # Legend and report both ask for them, of every frame.
        return class_shares(self.class_map, self.palette)

    def plot_tokens(self, *, legend: bool = True) -> RGB:
        """The image with the layer at which each token stopped painted over it; `legend` adds a key below the image.

        Of a model that selects a fixed number of tokens: with how often each was selected.
        """
        if self._selects:
            return paint_selections(self.rgb, self.tokens, legend=legend)
        return paint_tokens(self.rgb, self.tokens, self.gates, legend=legend)

    @property
    def _selects(self) -> bool:
        """Whether the model selects a fixed number of tokens, again and again."""
        return not self.gates and any(window.report.keep for window in self.tokens.windows)

    def pictures(self) -> tuple[ShownPicture, ...]:
        """The image, its classes, and what its tokens did, without keys."""
        return (
            ShownPicture("input", self.rgb),
            ShownPicture("mask", colored(self.class_map, self.palette.colors), flat=True),
            ShownPicture("selected tokens" if self._selects else "exit depth", self.plot_tokens(legend=False)),
        )

    def token_key(self) -> tuple[tuple[str, Color], ...]:
        """What the colours of `plot_tokens` stand for."""
        return selection_key(self.tokens) if self._selects else exit_key(self.tokens, self.gates)

    def facts(self) -> dict[str, Any]:
        """The fields of the answer in a row of `frames.jsonl`: none, the class map is in the mask."""
        return {}

    def differing(self, other: Self) -> float:
        """Share of the pixels whose class is another one; both of the same image."""
        return float(np.mean(self.class_map != other.class_map))

    def png(self) -> bytes:
        """What `save` writes."""
        return png_from_mask(self.class_map, self.palette)

    def save(self, path: str | Path) -> None:
        """Write the class map as an indexed PNG (pixel value = class id) with the palette.

        Raises:
            UsageError: the name does not end in .png, or the folder is not there.
            EnvironmentProblem: the file cannot be written.
        """
        save_mask(path_from(path), self.class_map, self.palette)

    def to_supervision(self) -> Any:  # noqa: ANN401
        """The same as `supervision.Detections`: one detection per class that occurs, with its mask, box and name.

        Raises:
            PackageMissing: supervision is not installed.
        """
        supervision = packages.supervision()
        present = np.unique(self.class_map)
        # One detection for each class: a class map does not separate objects.
        masks = self.class_map[None] == present[:, None, None]
        boxes = np.array([bounding_box(mask) for mask in masks], dtype=np.float32)
        names = np.array([self.palette.names[number] for number in present])
        return supervision.Detections(xyxy=boxes, mask=masks, class_id=present.astype(int), data={"class_name": names})


def bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of what is true."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


class Predictor(Predicts[SegmentationResult]):
    """A session of a segmentation bundle and what comes before and after the model; `Classifier` does this for classes.

    Args:
        session: what computes.
        windows_at_once: how many windows of a larger image are run at the same time; the session is made for as many
            `callers`. The answer is the same, bit for bit.

    Raises:
        UsageError: the bundle's task is another one, or fewer than one window at once.
        InputError: the bundle has more classes than a class map can hold.
    """

    task = "segmentation"

    def __init__(self, session: RunsOne, *, windows_at_once: int = 1) -> None:
        super().__init__(session)
        if isinstance(windows_at_once, bool) or not isinstance(windows_at_once, int) or windows_at_once < 1:
            raise UsageError(f"windows_at_once: {described(windows_at_once)} given, a whole number from 1 on is needed")
        self.windows_at_once = windows_at_once
        # As many threads come to be as are needed: several images may be in work at once, each with so many windows.
        pool = ThreadPoolExecutor(MOST_WORKERS * windows_at_once, thread_name_prefix="dovit-window")
        self.pool = pool if windows_at_once > 1 else None
        manifest = session.bundle.manifest
        if self.spec.classes > MOST_CLASSES:
            raise InputError(f"{manifest.name} has {self.spec.classes} classes; class maps hold {MOST_CLASSES}")
        colors = np.array([entry.color for entry in manifest.classes], dtype=np.uint8).reshape(-1, 3)
        self.palette = Palette(tuple(entry.name for entry in manifest.classes), colors)
        self.gates = tuple(gate.layer for gate in self.spec.gates)

    def run(self, rgb: RGB, settings: RunSettings, *, decode_ms: float = 0.0) -> SegmentationResult:
        """`predict` with settings that are resolved already."""
        start = perf_counter()
        pixels = self.to_input(rgb)
        ready = perf_counter()
        run = _WindowRun(self, pixels, settings)
        answer = self._class_map(run, (rgb.shape[0], rgb.shape[1]))
        # Windows alternate with their share of the postprocessing, so the model's time is taken out of the whole.
        preprocess, rest = 1e3 * (ready - start), 1e3 * (perf_counter() - ready)
        timing = FrameTiming(decode_ms, preprocess, run.model_ms, rest - run.model_ms)
        return SegmentationResult(rgb, run.tokens, timing, answer, self.palette, self.gates)

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
        settings = RunSettings.resolve(self.session.bundle.manifest, thresholds=thresholds, floor=floor, dense=dense)
        run = _WindowRun(self, pixels, settings)
        return self._averaged(run)[None]

    def _check_pixels(self, pixels: Pixels) -> None:
        height, width = self.spec.size
        check_pixels_array(pixels, "(1, 3, h, w)")
        # Windows slide over any input that holds one.
        fits, larger = pixels.shape[2:] == self.spec.size, ""
        if self.preprocessing.stride is not None:
            fits, larger = pixels.shape[2] >= height and pixels.shape[3] >= width, " or larger"
        if pixels.shape[:2] != (1, 3) or not fits:
            raise InputError(f"pixels of shape {pixels.shape} given, (1, 3, {height}, {width}){larger} needed")

    def _class_map(self, run: _WindowRun, image_size: Size) -> ClassMap:
        patch, cover = self.spec.patch, self.preprocessing.logits_cover
        if len(run.corners) == 1:
            return transforms.to_class_map(next(run.answers()), run.input_size, image_size, cover=cover, patch=patch)
        # An enlarged image: the mean belongs to the pixels of the input, so it is stretched as a whole.
        if run.input_size != image_size:
            merged = self._averaged(run)
            return transforms.to_class_map(merged, run.input_size, image_size, cover="image", patch=patch)
        # At the image's own size each band is decided as soon as it is complete: the logits of a large image are never
        # all in memory.
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

    def __init__(self, predictor: Predictor, pixels: Pixels, settings: RunSettings) -> None:
        self.session, self.pixels, self.settings = predictor.session, pixels, settings
        self.spec, self.preprocessing = predictor.spec, predictor.preprocessing
        self.input_size: Size = (pixels.shape[2], pixels.shape[3])
        stride = self.preprocessing.stride or self.spec.size
        self.corners = transforms.windows(*self.input_size, self.spec.size, stride)
        self.pool, self.at_once = predictor.pool, predictor.windows_at_once
        if settings.deadline is not None:
            # All windows of the frame together: those that run at the same time have the time together.
            rounds = rounds_of(len(self.corners), at_once=self.at_once)
            self.settings = replace(settings, deadline=settings.deadline.over(rounds))
        self.model_ms = 0.0
        """Of the model's own time what nothing else was done in."""
        self.done: list[Window] = []

    @property
    def tokens(self) -> FrameTokens:
        """What the windows' tokens did."""
        return FrameTokens(tuple(self.done), self.input_size, self.spec.patch, self.spec.pads_before)

    def answers(self) -> Iterator[Logits]:
        """Logits (K, h, w) of window after window as the head gives them; several are computed at once."""
        height, width = self.spec.size
        results: Iterator[tuple[Answer, TokenReport]] = map(self._answer, self.corners)
        if self.pool is not None and len(self.corners) > 1:
            results = in_order(self.pool, self._answer, self.corners, at_once=self.at_once)
        for top, left in self.corners:
            start = perf_counter()
            logits, report = next(results)
            self.model_ms += 1e3 * (perf_counter() - start)
            self.done.append(Window(top, left, height, width, report))
            yield np.asarray(logits[0], dtype=np.float32)

    def _answer(self, corner: tuple[int, int]) -> tuple[Answer, TokenReport]:
        """Logits (1, K, h, w) of one window, and its report."""
        (top, left), (height, width) = corner, self.spec.size
        # Engines read plain memory, and a window is a view with gaps.
        pixels = np.ascontiguousarray(self.pixels[:, :, top : top + height, left : left + width])
        return self.session.run_one(pixels, self.settings)

    def placed(self) -> Iterator[tuple[int, int, Logits]]:
        """Top, left and logits (K, *size) of each window, at the window's own size."""
        cover, patch = self.preprocessing.logits_cover, self.spec.patch
        for (top, left), logits in zip(self.corners, self.answers(), strict=True):
            yield top, left, transforms.logits_at_input(logits, self.spec.size, cover=cover, patch=patch)


def averaged_bands(placed: Iterable[tuple[int, int, Logits]], width: int) -> Iterator[tuple[int, Logits]]:
    """Average windows into bands of whole rows, so that a large image needs one row of windows in memory.

    Source: mmsegmentation's `slide_inference` and Segmenter's `sliding_window`/`merge_windows`: *logits* are summed in
    raster order and divided by how many windows saw the pixel.

    Args:
        placed: top, left and logits (K, h, w) of each window, in raster order and without gaps.
        width: of the whole input, in pixels.

    Yields:
        Top and mean logits (K, rows, width) of each band, from top to bottom; together they are the whole input.
    """
    start = 0
    total: Logits | None = None
    count = np.zeros((0, width), dtype=np.float32)
    for top, left, logits in placed:
        classes, height, across = logits.shape
        if total is None:
            total = np.zeros((classes, height, width), dtype=np.float32)
            count = np.zeros((height, width), dtype=np.float32)
        if top > start:
            # No later window reaches above this one.
            yield start, total[:, : top - start] / count[: top - start]
            total, count = _shifted(total, top - start), _shifted(count[None], top - start)[0]
            start = top
        total[:, :, left : left + across] += logits
        count[:, left : left + across] += 1
    if total is not None:
        yield start, total / count


def _shifted(planes: Logits, rows: int) -> Logits:
    """`planes` (K, h, w) moved up by `rows`, zeros below."""
    moved = np.zeros_like(planes)
    moved[:, : planes.shape[1] - rows] = planes[:, rows:]
    return moved
