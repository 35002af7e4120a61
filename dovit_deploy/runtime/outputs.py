"""What `dovit run` leaves behind: overlay, masks and tokens as videos or images, and a row of figures per frame."""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np

from dovit_deploy.claims import name_that_fits
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.files import first_foreign, reported_writes
from dovit_deploy.runtime.audit import Audited
from dovit_deploy.runtime.cityscapes import png_of_label_ids
from dovit_deploy.runtime.coco import CocoFile, annotations_from_map
from dovit_deploy.runtime.legend import FrameRate, draw_figures, draw_legend, latency_text, rate_text
from dovit_deploy.runtime.paint import png_from_rgb, write_image
from dovit_deploy.runtime.results import FrameTiming, FrameTokens
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.sources.images import ImageSource
from dovit_deploy.sources.source import RGB, Closing, Frame, Source, VideoInfo
from dovit_deploy.sources.video_writer import VideoWriter, open_video_writer

PAINTED = ("overlay", "masks", "tokens", "cityscapes")
"""What is written of each frame as an image."""
MAPS = ("masks", "cityscapes")
"""Those that are one image a frame of a video, too."""
COCO, REPORT = "coco", "report"
KINDS = (*PAINTED, COCO, REPORT)
"""What `--save` can name."""
ROWS, SUMMARY, REPORT_PAGE, COCO_FILE = "frames.jsonl", "summary.json", "report.html", "coco.json"

FrameRow = dict[str, Any]

FRAMES_FOR_P99 = 100
"""Frames from which the 99th percentile is more than the slowest frame."""
QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
_NOT_NUMBERS = ("index", "source", "time_s", "top", "still", "filled", "capped", "compiled", "audit")
"""Fields of a row that have no distribution: what identifies the frame, the answer, and what only some rows have."""


@dataclass(frozen=True)
class PaintedFrame:
    """What is written of one frame, by kind."""

    files: dict[str, bytes]
    """Contents of image files."""
    video: dict[str, RGB]
    """Frames of the videos."""
    segmented: SegmentationResult | None = None
    """Whose class map goes into `coco.json`, with its `annotations`."""
    annotations: tuple[dict[str, Any], ...] = ()


class RunOutputs(Closing):
    """Paints the chosen kinds of images of each frame, and writes them into a folder; a context manager.

    Painting is most of the work, and several threads may do it at once; writing is for one, in the order of the frames.

    Args:
        folder: exists; images go into it.
        source: of images or of a video; gives the video's size, rate and sound.
        kinds: some of `PAINTED`, and `COCO`.
        every: the source gives every n-th frame only.
        legend: letter classes and figures on overlays, and a key below the maps of tokens.
        rated: letter frames per second; else each frame's latency, where they were computed at another time.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        *,
        kinds: tuple[str, ...],
        every: int = 1,
        legend: bool = True,
        rated: bool = True,
    ) -> None:
        self._folder, self._every, self._legend = folder, every, legend
        self._kinds = tuple(kind for kind in kinds if kind != COCO)
        self._video = source.video
        # One image has a latency and no rate.
        alone = source.video is None and source.count == 1
        self._rate = FrameRate() if rated and not alone else None
        self._rating = threading.Lock()
        self._names = names_from_paths(source.paths, source.root) if isinstance(source, ImageSource) else {}
        self._writers: dict[str, VideoWriter] = {}
        self._stack = ExitStack()
        self._begun = 0
        self._images: list[Path] = []
        self._coco: CocoFile | None = None
        if COCO in kinds:
            self._coco = self._stack.enter_context(CocoFile(folder / COCO_FILE, video=self._video is not None))
        for kind in self._kinds:
            # A video is one file; its masks are still one image a frame.
            if self._video is None or kind in MAPS:
                (folder / kind).mkdir()

    @property
    def warnings(self) -> list[str]:
        """Lines for the user, each once."""
        # Two videos of one run often warn of the same thing.
        return list(dict.fromkeys(line for writer in self._writers.values() for line in writer.warnings))

    def painted(self, result: ImageResult) -> PaintedFrame:
        """Everything that is written of one frame."""
        painted = PaintedFrame({}, {})
        if self._coco is not None:
            # Only tasks with a map of classes offer this kind, and the next.
            assert isinstance(result, SegmentationResult)
            painted = PaintedFrame({}, {}, result, tuple(annotations_from_map(result.class_map)))
        for kind in self._kinds:
            if kind == "masks":
                painted.files[kind] = result.png()
                continue
            if kind == "cityscapes":
                assert isinstance(result, SegmentationResult)
                painted.files[kind] = png_of_label_ids(result.class_map, result.palette.names)
                continue
            rgb = self._overlay(result) if kind == "overlay" else result.plot_tokens(legend=self._legend)
            if self._video is None:
                painted.files[kind] = png_from_rgb(rgb)
            else:
                painted.video[kind] = rgb
        return painted

    def write(self, frame: Frame, painted: PaintedFrame) -> None:
        """Write one frame's images."""
        name = f"{frame.index:06d}" if self._video is not None else self._names[frame.source]
        self._begun += 1
        # A video's own file is not among them.
        self._images = [self._folder / kind / f"{name}.png" for kind in self._kinds]
        for kind in self._kinds if "/" in name else ():
            # A folder below the source's has one of its own.
            (self._folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        for kind, content in painted.files.items():
            write_image(self._folder / kind / f"{name}.png", content)
        for kind, rgb in painted.video.items():
            self._into_video(kind, rgb, frame)
        if self._coco is not None and painted.segmented is not None:
            class_map, names = painted.segmented.class_map, painted.segmented.palette.names
            self._coco.add(frame, (class_map.shape[0], class_map.shape[1]), painted.annotations, names)

    def _overlay(self, result: ImageResult) -> RGB:
        painted = result.plot()
        if self._legend:
            draw_figures(painted, result.tokens, self._speed(result.timing))
            draw_legend(painted, result.shares())
        return painted

    def _speed(self, timing: FrameTiming) -> str:
        if self._rate is None:
            return latency_text(timing.total)
        with self._rating:
            return rate_text(self._rate.after(perf_counter(), latency_ms=timing.total))

    def _into_video(self, kind: str, rgb: RGB, frame: Frame) -> None:
        assert self._video is not None
        # Opened at the first frame, which has the size of what is painted.
        if kind not in self._writers:
            writer = self._open(kind, self._video, (rgb.shape[0], rgb.shape[1]))
            self._writers[kind] = self._stack.enter_context(writer)
        self._writers[kind].write(rgb, frame.time_s)

    def _open(self, kind: str, video: VideoInfo, size: tuple[int, int]) -> VideoWriter:
        return open_video_writer(
            self._folder / f"{kind}.mp4",
            size=size,
            # Every n-th frame is shown n times as long.
            rate=Fraction(video.rate) / self._every,
            time_base=video.time_base,
            audio_from=video.path if video.has_audio else None,
        )

    def keep_whole(self, frames: int) -> None:
        """Take out the images of the frame that was begun after the first `frames`, if one was."""
        if self._begun > frames:
            for image in self._images:
                image.unlink(missing_ok=True)
            if self._coco is not None:
                self._coco.write_first(frames)

    def close(self) -> None:
        """Finish the videos; they are playable also after an interrupt."""
        self._stack.close()


def names_from_paths(paths: tuple[Path, ...], root: Path | None = None) -> dict[str, str]:
    """Path as text -> name of its results: the stem, below the folder that it has below `root`.

    Where stems of one folder meet with the suffix, then with a number.
    """
    folders = {path: PurePosixPath() if root is None else _relative(path.parent, root) for path in paths}
    stems = Counter((folders[path], path.stem) for path in paths)
    # A result called as one of the folders would be in its way: "a.png" and "a.png/b.png".
    taken = {str(parent) for folder in folders.values() for parent in (folder, *folder.parents)}
    names: dict[str, str] = {}
    last: dict[tuple[PurePosixPath, str], int] = {}
    for path, folder in folders.items():
        name = path.stem if stems[folder, path.stem] == 1 else path.name
        # On from the number that the last of this name got: thousands may have one.
        number = last.get((folder, name), 1)
        free = _image_stem(name, f"-{number}" if number > 1 else "")
        while f"{folder / free}.png" in taken:
            number += 1
            free = _image_stem(name, f"-{number}")
        last[folder, name] = number
        taken.add(f"{folder / free}.png")
        names[str(path)] = str(folder / free)
    return names


def _image_stem(name: str, number: str = "") -> str:
    """`name` + `number`, shortened where it would be too long for a file's name with ".png"."""
    return name_that_fits(name, f"{number}.png").removesuffix(".png")


def _relative(folder: Path, root: Path) -> PurePosixPath:
    return PurePosixPath(folder.relative_to(root).as_posix())


_SUMMARY_TYPES = {"frames": int, "interrupted": bool, "engine": str, "precision": str, "bundle": str, "versions": dict}
"""Fields that `summary.json` has had in every version."""


def foreign_in_run(folder: Path) -> str | None:
    """Why `folder` is no result of a run that a new one may replace; None: a run wrote all of it."""
    try:
        summary = json.loads(bytes_of_document(folder / SUMMARY))
        if not all(isinstance(summary[key], kind) for key, kind in _SUMMARY_TYPES.items()):
            return f"its {SUMMARY} is not that of dovit run"
        sources = [entry["source"] for entry in summary.get("failed", [])]
        indices = set[int]()
        with (folder / ROWS).open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                sources.append(row["source"])
                indices.add(int(row["index"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"it has no {SUMMARY} and {ROWS} of dovit run"
    names = _image_names(sources, indices)
    folders = {part for parent in {Path(source).parent for source in sources} for part in _folders_within(parent)}

    def expected(path: str) -> bool:
        kind, *below = path.split("/")
        if not below:
            return kind in (SUMMARY, ROWS, REPORT_PAGE, COCO_FILE, *PAINTED, *(f"{kind}.mp4" for kind in PAINTED))
        if kind not in PAINTED or (len(below) > 1 and "/".join(below[:-1]) not in folders):
            return False
        return below[-1] in names or ("/".join(below) in folders and (folder / path).is_dir())

    return first_foreign(folder, expected)


def _image_names(sources: list[str], indices: set[int]) -> set[str]:
    """How the images of these frames may be called, in each folder, see `names_from_paths`."""
    names = Counter(name for source in sources for name in (Path(source).stem, Path(source).name))
    numbered = {_image_stem(name, f"-{number}") for name, count in names.items() for number in range(2, count + 2)}
    return {f"{name}.png" for name in (*(f"{index:06d}" for index in indices), *map(_image_stem, names), *numbered)}


def _folders_within(path: Path) -> set[str]:
    """ "a/b/c" -> "a", "a/b", "a/b/c", "b", "b/c", "c": what may lie between a folder and an image in it."""
    parts = path.parts
    return {"/".join(parts[begin:end]) for begin in range(len(parts)) for end in range(begin + 1, len(parts) + 1)}


def row_from_frame(frame: Frame, tokens: FrameTokens, timing: FrameTiming, audited: Audited | None = None) -> FrameRow:
    """One row of `frames.jsonl`: times in ms, MACs in 10^9, `flops_saved` a fraction."""
    row: FrameRow = {
        "index": frame.index,
        "source": frame.source,
        "time_s": float(frame.time_s),
        "windows": len(tokens.windows),
        "latency_ms": {
            "decode": timing.decode,
            "preprocess": timing.preprocess,
            "model": timing.model,
            "postprocess": timing.postprocess,
            "total": timing.total,
        },
        "tokens": {"total": tokens.total, "kept": list(tokens.kept)},
        "gmacs": {"dense": tokens.gmacs_dense, "actual": tokens.gmacs_actual},
        "flops_saved": tokens.flops_saved,
    }
    # Only where it is so: rows of other frames are what they always were.
    if tokens.capped:
        row["capped"] = tokens.capped
    if audited is not None:
        row["audit"] = {"differing": audited.differing, "ms": audited.ms}
    if tokens.compiled:
        row["compiled"] = tokens.compiled
    if tokens.filled is not None:
        row["filled"] = tokens.filled
    return {**row, "still": True} if tokens.still else row


class RunReport(Closing):
    """Writes rows as they come and keeps of each number only the number: 8 bytes a frame and field.

    Raises:
        OutputFailed: (also of `add` and `close`) the file `path` cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with reported_writes(path):
            self._file = path.open("w", encoding="utf-8")
        self._columns: dict[tuple[str, ...], array[float]] = {}
        self.frames = self.stills = self.filled = 0
        self.capped_frames = self.capped_tokens = 0
        """Frames of which a deadline cut tokens, and how many tokens it cut."""
        self.windows: Counter[int] = Counter()
        """How many frames had so many, of those that were not filled in."""
        self._cold, self._warm = array("d"), array("d")
        """Milliseconds of the model step: of frames in which something was compiled, and of the others that it ran."""

    def add(self, row: FrameRow) -> None:
        """Append `row` to the file and to the statistics."""
        with reported_writes(self._path):
            self._file.write(json.dumps(row) + "\n")
            # So that the rows of a run that is killed can be read.
            self._file.flush()
        self.frames += 1
        self.stills += row.get("still", False)
        self.filled += "filled" in row
        if "filled" not in row:
            self.windows[row["windows"]] += 1
        self.capped_frames += "capped" in row
        self.capped_tokens += row.get("capped", 0)
        if not row.get("still", False) and "filled" not in row:
            (self._cold if "compiled" in row else self._warm).append(row["latency_ms"]["model"])
        for name, value in row.items():
            if name not in _NOT_NUMBERS:
                self._collect((name,), value)

    def keep_whole(self) -> None:
        """Take out what was begun of a further row."""
        lines = self._path.read_bytes().splitlines(keepends=True)[: self.frames]
        os.truncate(self._path, sum(map(len, lines)))

    def close(self) -> None:
        """Close the file; may be called twice."""
        with reported_writes(self._path):
            self._file.close()

    def _collect(self, path: tuple[str, ...], value: Any) -> None:  # noqa: ANN401  JSON
        if isinstance(value, Mapping):
            for name, part in value.items():
                self._collect((*path, name), part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                self._collect((*path, str(number)), part)
        else:
            self._columns.setdefault(path, array("d")).append(float(value))

    def compiling(self) -> dict[str, Any] | None:
        """The model step of frames in which something was compiled apart from that of the others; None: of none."""
        if not self._cold:
            return None
        warm = distribution(np.frombuffer(self._warm)) if self._warm else None
        return {
            "frames": len(self._cold),
            "model_ms": {"cold": distribution(np.frombuffer(self._cold)), "warm": warm},
        }

    def model_ms(self) -> dict[str, float] | None:
        """The model step of the frames that it ran; None: it ran none."""
        ran = np.concatenate([np.frombuffer(self._cold), np.frombuffer(self._warm)])
        return distribution(ran) if len(ran) else None

    def statistics(self) -> dict[str, Any]:
        """Each numeric field with its mean and percentiles, nested as in a row; lists become lists."""
        tree: dict[str, Any] = {}
        for path, column in self._columns.items():
            branch = tree
            for name in path[:-1]:
                branch = branch.setdefault(name, {})
            branch[path[-1]] = distribution(np.frombuffer(column, dtype=np.float64))
        # The stages were numbered to be columns; in a row they are a list. A run without frames has no columns.
        if isinstance(tree.get("tokens"), dict):
            tree["tokens"]["kept"] = list(tree["tokens"]["kept"].values())
        return tree


def distribution(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Mean and percentiles of a column."""
    quantiles = np.percentile(values, list(QUANTILES.values()))
    return {
        "mean": float(values.mean()),
        **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }
