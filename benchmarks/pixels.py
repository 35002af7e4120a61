"""How long do pre- and post-processing of a 1280x720 frame take? Milliseconds per step, as JSON.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/pixels.py -o benchmarks/results/pixels.json

Times are medians of the process' CPU time (all threads) and of wall time; the variants of a case take turns.
The frame is a rendered street; logits are the logarithm of each class' share in a cell of its labels, with some
noise ("sure"), much noise ("unsure"), or noise alone ("noise": the worst case, which no street is).
"post_plain" is the recipe that "post" replaces: each class resized by OpenCV, to the input and then to the frame,
with a running maximum.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import at_least, errors_in_a_line, output_file, publish

from dovit_deploy import packages
from dovit_deploy.bundle.manifest import Preprocessing
from dovit_deploy.families.spec import Size
from dovit_deploy.runtime.legend import class_shares, draw_figures, draw_legend
from dovit_deploy.runtime.paint import paint_overlay, save_mask
from dovit_deploy.runtime.results import FrameTokens, Logits, Palette, RunTiming, TokenReport, Window
from dovit_deploy.runtime.token_maps import paint_tokens
from dovit_deploy.runtime.transforms import to_class_map, to_input
from dovit_scenes import CLASS_NAMES, PALETTE, SceneFrame
from dovit_scenes.dataset import scene_sample

FRAME = (720, 1280)
PREPROCESSING = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), assumed=True, stride=None)
CASES: tuple[tuple[Size, Size], ...] = (
    ((360, 480), (23, 30)),
    ((360, 480), (92, 120)),
    ((512, 1024), (32, 64)),
    ((720, 1280), (45, 80)),
)
"""Size of the model's input and of its logits' grid: mask and SETR heads at CamVid's size, larger inputs."""
NOISE = {"sure": 0.5, "unsure": 1.2}
"""Standard deviation of the logits' noise; within a region its class leads by about 6."""


def milliseconds(variants: dict[str, Callable[[], object]], *, repeat: int) -> dict[str, dict[str, float]]:
    """Median CPU and wall time of each variant; they take turns, after one round that is not counted."""
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeat + 1):
        for name, variant in variants.items():
            start, start_wall = time.process_time(), time.perf_counter()
            variant()
            # The first round fills caches and is not counted.
            if number:
                cpu[name].append(1e3 * (time.process_time() - start))
                wall[name].append(1e3 * (time.perf_counter() - start_wall))
    return {
        name: {"cpu": round(statistics.median(cpu[name]), 3), "wall": round(statistics.median(wall[name]), 3)}
        for name in variants
    }


def drawn_logits(labels: np.ndarray, kind: str, classes: int, grid: Size) -> Logits:
    """(K, *grid): the share of each class in each cell as a logit, with the noise that `kind` names."""
    cv2 = packages.opencv()
    noise = np.random.default_rng(0).normal(size=(classes, *grid))
    if kind not in NOISE:
        return noise.astype(np.float32)
    regions = [(labels == number).astype(np.float64) for number in range(classes)]
    # Areas, so that a cell at an edge is as unsure as a model is there.
    share = np.stack([cv2.resize(region, grid[::-1], interpolation=cv2.INTER_AREA) for region in regions])
    return (1.5 * np.log(share + 0.02) + NOISE[kind] * noise).astype(np.float32)


def plain_class_map(logits: Logits, input_size: Size) -> np.ndarray:
    """(H, W) class map by the recipe that "post" replaces."""
    cv2 = packages.opencv()
    best, winner = None, np.zeros(FRAME, dtype=np.uint8)
    for number, plane in enumerate(logits):
        at_input = cv2.resize(plane, input_size[::-1], interpolation=cv2.INTER_LINEAR)
        value = cv2.resize(at_input, FRAME[::-1], interpolation=cv2.INTER_LINEAR)
        if best is None:
            best = value
            continue
        ahead = cv2.compare(value, best, cv2.CMP_GT)
        cv2.copyTo(value, ahead, best)
        cv2.copyTo(np.full(FRAME, number, dtype=np.uint8), ahead, winner)
    return winner


def measure_case(
    scene: SceneFrame, input_size: Size, grid: Size, classes: int, *, repeat: int
) -> list[dict[str, object]]:
    """One entry per kind of logits."""
    rows = []
    for kind in (*NOISE, "noise"):
        logits = drawn_logits(scene.labels, kind, classes, grid)

        # Bound now: both closures run after the loop has moved on to other logits.
        def ours(logits: Logits = logits) -> np.ndarray:
            return to_class_map(logits, input_size, FRAME, cover="image", patch=16)

        def plain(logits: Logits = logits) -> np.ndarray:
            return plain_class_map(logits, input_size)

        times = milliseconds(
            {
                "pre": lambda: to_input(scene.rgb, PREPROCESSING, input_size),
                "post": ours,
                "post_plain": plain,
            },
            repeat=repeat,
        )
        rows.append(
            {
                "input": input_size,
                "grid": grid,
                "classes": classes,
                "logits": kind,
                "ms": times,
                "pre_and_post_cpu_ms": round(times["pre"]["cpu"] + times["post"]["cpu"], 3),
                "pixels_that_differ_from_plain": int((ours() != plain()).sum()),
            }
        )
    return rows


def measure_painting(scene: SceneFrame, *, repeat: int) -> dict[str, dict[str, float]]:
    """Overlay, figures, legend, exit map and mask of one frame."""
    random = np.random.default_rng(0)
    frame, class_map = scene.rgb, scene.labels
    palette = Palette(CLASS_NAMES, np.array(PALETTE, dtype=np.uint8))
    level = random.random((23, 30))
    keep = tuple(level > share for share in (0.3, 0.5, 0.7))
    kept = (691, *(int(grid.sum()) + 1 for grid in keep))
    report = TokenReport(kept, 10.0, 6.0, keep, (), RunTiming(1.0, (1.0,)))
    tokens = FrameTokens((Window(0, 0, 360, 480, report),), (360, 480), 16)
    lettered = frame.copy()
    with tempfile.TemporaryDirectory() as folder:
        mask = Path(folder) / "mask.png"
        return milliseconds(
            {
                "overlay": lambda: paint_overlay(frame, class_map, palette, alpha=0.5),
                "figures": lambda: draw_figures(lettered, tokens, "25.0 fps"),
                "legend": lambda: draw_legend(lettered, class_shares(class_map, palette)),
                "tokens": lambda: paint_tokens(frame, tokens, (2, 5, 8)),
                "mask_png": lambda: save_mask(mask, class_map, palette),
            },
            repeat=repeat,
        )


@errors_in_a_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=at_least(1), default=40)
    parser.add_argument("-o", "--output", type=output_file)
    options = parser.parse_args()
    cv2 = packages.opencv()
    # OpenCV would use all cores, and CPU time would hide it.
    cv2.setNumThreads(1)
    scene = scene_sample(0, 0, size=FRAME)
    cases = [
        row
        for classes in (11, 19)
        for input_size, grid in CASES
        for row in measure_case(scene, input_size, grid, classes, repeat=options.repeat)
    ]
    publish(
        {"frame": FRAME, "cases": cases, "painting_ms": measure_painting(scene, repeat=options.repeat)},
        command="OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/pixels.py",
        output=options.output,
    )


if __name__ == "__main__":
    main()
