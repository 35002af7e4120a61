"""What do frames cost that do not run? Held and moved answers on a labelled clip, beside running every frame.

    python benchmarks/between.py road-tiny camvid --split val -o benchmarks/results/between.json

Every frame runs once; then, for each N, all but every N-th take the answer of the last of these: as it is (`hold`),
moved along as `dovit run --warp` does it (`warp`), or moved by the motion vectors of H.264 (`vectors`: the clip is
encoded without frames that look ahead and with one reference, the best case for them). Accuracy is that of all frames;
agreement and milliseconds (CPU time, one thread) are those of the frames that do not run. One clip has no interval.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import command_text, errors_in_a_line, output_file, publish

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.between import Motion, fetched
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.sources.source import RGB

STEPS = (2, 4, 8)
Fill = Callable[[int, ClassMap], ClassMap]
"""The number of a frame and the map of the one before it -> its map."""


def vectors_of(frames: Sequence[RGB]) -> list[NDArray[np.float32]]:
    """For each frame where each of its pixels was in the one before, (H, W, 2), as H.264 encodes them."""
    av, content = packages.pyav(), io.BytesIO()
    if av is None:
        raise SystemExit("PyAV is needed: pip install av")
    options = {"crf": "20", "bf": "0", "refs": "1", "g": "9999"}
    with av.open(content, "w", format="mp4") as clip:
        stream = clip.add_stream("libx264", rate=Fraction(15), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for rgb in frames:
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        clip.mux(stream.encode(None))
    content.seek(0)
    with av.open(content) as clip:
        clip.streams.video[0].codec_context.options = {"flags2": "+export_mvs"}
        return [_flow(frame, (frames[0].shape[0], frames[0].shape[1])) for frame in clip.decode(video=0)]


def _flow(frame: Any, size: tuple[int, int]) -> NDArray[np.float32]:  # noqa: ANN401
    flow, found = np.zeros((*size, 2), np.float32), frame.side_data.get("MOTION_VECTORS")
    for one in () if found is None else found.to_ndarray():
        height, width = int(one["h"]), int(one["w"])
        top, left = int(one["dst_y"]) - height // 2, int(one["dst_x"]) - width // 2
        moved = one["motion_x"] / one["motion_scale"], one["motion_y"] / one["motion_scale"]
        flow[max(top, 0) : top + height, max(left, 0) : left + width] = moved
    return flow


def filled(own: Sequence[ClassMap], every: int, fill: Fill) -> tuple[list[ClassMap], float]:
    """The map of each frame where one of `every` runs, and the milliseconds that each of the others took."""
    maps, start = list[ClassMap](), time.process_time()
    for number, answer in enumerate(own):
        maps.append(answer if number % every == 0 else fill(number, maps[-1]))
    others = sum(number % every > 0 for number in range(len(own)))
    return maps, 1e3 * (time.process_time() - start) / max(1, others)


def ways(
    frames: Sequence[RGB], vectors: Sequence[NDArray[np.float32]], every: int, own: Sequence[ClassMap]
) -> Iterator[tuple[str, Fill]]:
    """Each way of filling in, by name."""
    motions = dict[int, Motion]()

    def warp(number: int, before: ClassMap) -> ClassMap:
        del before
        first = number - number % every
        if first not in motions:
            motions[first] = Motion(frames[first], own[first])
        return motions[first].follow(frames[number])

    yield "hold", lambda number, before: before
    yield "warp", warp
    yield "vectors", lambda number, before: fetched(before, vectors[number])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="between.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path, help="consecutive frames of one clip, with labels")
    parser.add_argument("--split", default="val")
    parser.add_argument("-o", "--output", type=output_file, required=True)
    given = parser.parse_args()
    packages.opencv().setNumThreads(1)
    bundle = Bundle.open(chosen_bundle(given.bundle).path)
    dataset = dataset_from_path(given.dataset, given.split)
    samples = [dataset.sample(index) for index in range(len(dataset))]
    frames, classes = [sample.rgb for sample in samples], bundle.manifest.spec.classes
    vectors = vectors_of(frames)
    with Session(bundle, threads=1) as session:
        own = [Predictor(session).predict(rgb).class_map for rgb in frames]

    def miou(maps: Sequence[ClassMap]) -> float:
        counts = (ClassCounts.of(sample.label, one, classes=classes) for one, sample in zip(maps, samples, strict=True))
        return ClassCounts.stacked(list(counts)).miou

    rows: list[dict[str, object]] = [{"form": "every frame runs", "every": 1, "miou": miou(own)}]
    for every in STEPS:
        between = [number for number in range(len(own)) if number % every]
        for name, fill in ways(frames, vectors, every, own):
            maps, ms = filled(own, every, fill)
            same = float(np.mean([np.mean(maps[number] == own[number]) for number in between]))
            rows.append({"form": name, "every": every, "miou": miou(maps), "agreement": same, "ms": ms})
            print(rows[-1], flush=True)
    figures = {"bundle": bundle.path.name, "frames": len(frames), "split": given.split, "rows": rows}
    publish(figures, command=command_text("between.py", sys.argv[1:]), output=given.output)


if __name__ == "__main__":
    with errors_in_a_line():
        main()
