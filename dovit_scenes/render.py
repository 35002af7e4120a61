"""One moment of a world as an image, its label map and a count of what shows.

Things are painted farthest first (the painter's algorithm, for boxes on the ground). Of two boxes, A can hide B
unless some line between them has the camera on B's side; whoever can only be hidden is painted first. Sorting by
distance alone is wrong beside the camera: somebody on the pavement is nearer than the far end of the parked car that
hides them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import Camera
from dovit_scenes.canvas import OVERSAMPLING, Canvas
from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.paint_buildings import paint_building
from dovit_scenes.paint_cars import paint_car
from dovit_scenes.paint_ground import ground_rows, paint_ground
from dovit_scenes.paint_people import paint_bicyclist, paint_pedestrian
from dovit_scenes.paint_plants import paint_fence, paint_hedge, paint_tree
from dovit_scenes.paint_poles import paint_pole
from dovit_scenes.paint_shadows import paint_shadows
from dovit_scenes.paint_sky import paint_sky
from dovit_scenes.texture import TILE, noise_tile
from dovit_scenes.things import Bicyclist, Building, Car, Crossing, Fence, Hedge, Pedestrian, Pole, Thing, Tree
from dovit_scenes.world import World, camera_at, things_in_sight, world_from_seed

FRAME_RATE = 15.0
"""Frames per second of the world's clock, by default."""

SMALLEST, LARGEST = 32, 4096
"""Sides of a image, pixels."""

FASTEST_CAMERA = 10.0
"""How many times as fast as usual a camera may drive."""

GRAIN = 1.6
"""Deviation of the sensor's noise, grey levels of 255."""

Boxes = npt.NDArray[np.float32]
"""(n, 4) float32: x from, x to, z from, z to in view coordinates (the camera stands at 0, 0), metres."""


@dataclass(frozen=True)
class SceneFrame:
    """A rendered image with its exact labels."""

    rgb: npt.NDArray[np.uint8] = field(repr=False)
    """(H, W, 3) uint8."""
    labels: npt.NDArray[np.uint8] = field(repr=False)
    """(H, W) uint8, ids of `SceneClass`, in the image's own pixels."""
    visible: tuple[int, ...]
    """How many things of each class show with at least one pixel in 10,000: 11 counts; sky, road and pavement
    are not counted."""

    @property
    def objects(self) -> int:
        """How many things show."""
        return sum(self.visible)


def street_frames(
    count: int,
    *,
    seed: int,
    size: tuple[int, int] = (360, 640),
    density: float = 0.5,
    fps: float = FRAME_RATE,
    speed: float = 1.0,
) -> Iterator[SceneFrame]:
    """The first `count` frames of a drive along street number `seed`; `size` is (height, width) in pixels.

    `speed` is the camera's, of the usual: at 0 it is parked, and others drive on.

    Raises:
        SceneArgumentError: an argument is out of range.
        SceneEnvironmentError: OpenCV is not installed.
    """
    if count < 0:
        raise SceneArgumentError(f"{count} frames cannot be rendered; take 0 or more")
    world = world_from_seed(seed, density=density)
    _check_size(size)
    _check_speed(speed)
    return (render(world, index, size=size, fps=fps, speed=speed) for index in range(count))


def render(
    world: World,
    time_index: int,
    *,
    size: tuple[int, int] = (360, 640),
    fps: float = FRAME_RATE,
    speed: float = 1.0,
) -> SceneFrame:
    """Frame `time_index` of a drive along `world` at `speed` of the usual; depends on nothing but its arguments.

    Raises:
        SceneArgumentError: a size, speed or frame rate that is not possible, or a negative frame number.
        SceneEnvironmentError: OpenCV is not installed.
    """
    _check_size(size)
    _check_speed(speed)
    if time_index < 0 or not fps > 0:
        raise SceneArgumentError(
            f"frame {time_index} at {fps} frames per second: take a number from 0 and a positive rate"
        )
    time_s = time_index / fps
    height, width = size
    driven_s = speed * time_s
    camera = camera_at(world, driven_s, size=(height * OVERSAMPLING, width * OVERSAMPLING))
    canvas = Canvas(camera, world.light)
    things = things_in_sight(world, time_s, driven_s=driven_s)
    _paint(canvas, world, things, time_s)
    # One pixel in 10,000, and at small sizes never fewer than four.
    least = max(4, height * width // 10_000)
    rgb = _develop(canvas.image(), world.seed, time_index)
    return SceneFrame(rgb, canvas.labels(), canvas.visible(least))


def _check_speed(speed: float) -> None:
    if not 0 <= speed <= FASTEST_CAMERA:
        raise SceneArgumentError(
            f"a camera at {speed} times its usual speed: take a number from 0, parked, to {FASTEST_CAMERA:g}"
        )


def _check_size(size: tuple[int, int]) -> None:
    if not all(SMALLEST <= side <= LARGEST for side in size):
        raise SceneArgumentError(
            f"a image of {size[1]}x{size[0]} pixels cannot be rendered; "
            f"both sides must lie between {SMALLEST} and {LARGEST}"
        )


def _paint(canvas: Canvas, world: World, things: Sequence[Thing], time_s: float) -> None:
    """Sky, ground and shadows, then everything that stands, farthest first."""
    paint_sky(canvas, world.seed, time_s)
    paint_ground(canvas, world.street, [thing for thing in things if isinstance(thing, Crossing)])
    standing = [thing for thing in things if not isinstance(thing, Crossing)]
    paint_shadows(canvas, standing, ground_rows(canvas).top)
    for index in paint_order(_boxes(canvas.camera, standing)):
        _paint_thing(canvas, standing[index], time_s)


def _paint_thing(canvas: Canvas, thing: Thing, time_s: float) -> None:
    match thing:
        case Building():
            paint_building(canvas, thing)
        case Tree():
            paint_tree(canvas, thing)
        case Hedge():
            paint_hedge(canvas, thing)
        case Fence():
            paint_fence(canvas, thing)
        case Pole():
            paint_pole(canvas, thing)
        case Car():
            paint_car(canvas, thing)
        case Pedestrian():
            paint_pedestrian(canvas, thing, time_s)
        case Bicyclist():
            paint_bicyclist(canvas, thing, time_s)
        case Crossing():
            pass


def _boxes(camera: Camera, things: Sequence[Thing]) -> npt.NDArray[np.float32]:
    """Footprints (n, 4) as the camera sees them: x from, x to, depth from, depth to."""
    boxes = np.array([thing.footprint for thing in things], np.float32).reshape(-1, 4)
    boxes[:, 2:] -= np.float32(camera.s)
    # The street's bend moves a thing sideways by what it is at its nearer end, where most of it shows.
    boxes[:, :2] += camera.shift(np.maximum(boxes[:, 2:3], 0.0)) - np.float32(camera.x)
    return boxes


def paint_order(boxes: Boxes) -> list[int]:
    """Indices of `boxes`, first to paint first; ties and cycles are broken by distance, then by index."""
    hides = _can_hide(boxes)
    # before[a, b]: a must be painted before b, because b can hide a and not the other way round.
    before = hides.T & ~hides
    distance = boxes[:, 2] + boxes[:, 3]
    farthest_first = np.argsort(-distance, kind="stable")
    # How many boxes must still be painted before each.
    waiting = before.sum(axis=0)
    painted = np.zeros(len(boxes), bool)
    order: list[int] = []
    for _ in range(len(boxes)):
        index = _next(farthest_first, painted, waiting)
        painted[index] = True
        waiting -= before[index]
        order.append(index)
    return order


def _next(farthest_first: npt.NDArray[np.intp], painted: npt.NDArray[np.bool_], waiting: npt.NDArray[np.int64]) -> int:
    free = ~painted[farthest_first]
    ready = free & (waiting[farthest_first] <= 0)
    # Three boxes can hide one another in a ring; then the farthest goes first.
    chosen = ready if ready.any() else free
    return int(farthest_first[int(np.argmax(chosen))])


def _can_hide(boxes: Boxes) -> npt.NDArray[np.bool_]:
    """(n, n): entry a, b says whether box a can stand between the camera and box b."""
    left, right, near, far = (boxes[:, k] for k in range(4))
    # Metres; boxes that touch do not hide each other.
    slack = 1e-3
    beyond = near[:, None] >= far[None, :] - slack
    outside_right = (left[:, None] >= right[None, :] - slack) & (left[:, None] >= 0)
    outside_left = (right[:, None] <= left[None, :] + slack) & (right[:, None] <= 0)
    return ~(beyond | outside_right | outside_left)


def _develop(rgb: npt.NDArray[np.uint8], seed: int, time_index: int) -> npt.NDArray[np.uint8]:
    """What a camera adds: contrast, darker corners and a little grain that is new in every frame."""
    height, width = rgb.shape[:2]
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    corners = 1.0 - 0.13 * (0.5 * rows * rows + 0.5 * columns * columns) ** 1.5
    top, left = np.random.default_rng([seed, 8, time_index]).integers(TILE, size=2)
    tile = noise_tile(1, roughness=0.25)
    grain = tile[(top + np.arange(height)) % TILE][:, (left + np.arange(width)) % TILE] * GRAIN
    cv2 = packages.opencv()
    shown = cv2.merge([corners] * 3) * cv2.LUT(rgb, _TONES) + grain[..., None]
    out: npt.NDArray[np.uint8] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
    return out


def _tone_curve() -> npt.NDArray[np.uint8]:
    """(256,) a gentle S: film and sensors give shadows and lights more contrast than a linear scale."""
    level = np.arange(256) / 255.0
    return np.rint(255.0 * (level + 0.042 * np.sin(2.0 * np.pi * (level - 0.5)))).astype(np.uint8)


_TONES = _tone_curve()
