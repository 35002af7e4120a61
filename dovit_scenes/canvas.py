"""The sheet that is painted on: colour and class in one array, so that both come from the very same polygons.

The sheet is twice as large as the image each way. The image is its average over 2 x 2, which smooths edges;
the label map takes every second entry, which keeps them crisp. The fourth channel holds not the class but a
number per thing, from which follow the classes and a count of what really shows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import NEAR, Camera, Points, clip_frame, clip_near
from dovit_scenes.light import Light
from dovit_scenes.things import CLASS_NAMES, SceneClass

OVERSAMPLING = 2

COUNTED_RANGE = 100.0
"""Metres within which things are counted one by one; beyond it they are specks."""

SHIFT = 4
"""Binary digits after the point in OpenCV's polygon coordinates."""

WIDEST = 16000.0
"""Pixel coordinates beyond this are cut first: OpenCV counts them in 32 bits with 16 after the point."""

ColourVector = npt.NDArray[np.float32]
"""(3,) float32 RGB, 0..255."""


class Canvas:
    """Paints polygons and limbs, farthest first (surfaces.py paints textures on it)."""

    def __init__(self, camera: Camera, light: Light) -> None:
        """`camera` is that of the sheet: `OVERSAMPLING` times the image."""
        self.camera = camera
        self.light = light
        self.pixels = np.zeros((camera.height, camera.width, 4), np.uint8)
        # Numbers below the count of classes stand for the class itself: for what is not counted one by one.
        self._classes = np.full(256, int(SceneClass.SKY), np.uint8)
        self._classes[: len(CLASS_NAMES)] = np.arange(len(CLASS_NAMES))
        self._used = len(CLASS_NAMES)
        self.haze: ColourVector = np.asarray(light.haze, np.float32)
        self._cv2 = packages.opencv()

    def claim(self, kind: SceneClass, depth: float) -> int:
        """A number for one thing of class `kind` whose nearest point is `depth` metres away.

        Far things, and any beyond the 244th, share the number of their class and are not counted.
        """
        # A number is a byte of the fourth channel, so there are 256 of them.
        if depth > COUNTED_RANGE or self._used > 255:
            return int(kind)
        self._classes[self._used] = kind
        self._used += 1
        return self._used - 1

    def hazed(self, colour: npt.ArrayLike, depth: float) -> ColourVector:
        """`colour` as it looks from `depth` metres."""
        own = np.asarray(colour, np.float32)
        return own + (self.haze - own) * float(self.light.fade(depth))

    def fill(self, points: npt.ArrayLike, colour: npt.ArrayLike, number: int) -> None:
        """Fill a flat polygon `points` (n, 3) in street coordinates."""
        self.fill_view(self.camera.view(points), colour, number)

    def fill_view(self, points: Points, colour: npt.ArrayLike, number: int) -> None:
        """Fill a flat polygon `points` (n, 3) in view coordinates; cut at the near plane."""
        outline = self.outline(points)
        if outline is not None:
            own = self.hazed(colour, max(float(points[:, 2].mean()), NEAR))
            self.fill_pixels([outline], own, number)

    def fill_body(self, faces: list[Points], colours: list[ColourVector], number: int) -> None:
        """Fill polygons in view coordinates that belong together: projected at once, one depth of haze."""
        if not faces:
            return
        corners = np.concatenate(faces)
        if corners[:, 2].min() < NEAR:
            for face, colour in zip(faces, colours, strict=True):
                self.fill_view(face, colour, number)
            return
        pixels = self.camera.project(corners)
        cuts = np.cumsum([len(face) for face in faces])[:-1]
        # One depth for the whole body: haze that differed from face to face would show its edges.
        hazed = self.hazed(np.array(colours), float(corners[:, 2].mean()))
        for outline, colour in zip(np.split(pixels, cuts), hazed, strict=True):
            self.fill_pixels([outline], colour, number)

    def limbs_view(
        self,
        ends: Points,
        radii: npt.NDArray[np.float64],
        colours: npt.NDArray[np.float32],
        number: int,
    ) -> None:
        """Paint round bars `ends` (n, 2, 3) in view coordinates, `radii` (n, 2) metres, `colours` (n, 3) RGB.

        Nothing is painted when any end is behind the near plane: by then all of it is beside the image.
        """
        depths = ends[..., 2]
        if depths.min() < NEAR:
            return
        outlines = capsules(self.camera.project(ends), self.camera.focal * radii / depths)
        low, high = outlines.min(axis=(0, 1)), outlines.max(axis=(0, 1))
        if high[0] < 0 or high[1] < 0 or low[0] >= self.camera.width or low[1] >= self.camera.height:
            return
        for outline, colour in zip(outlines, self.hazed(colours, float(depths.mean())), strict=True):
            self.fill_pixels([outline], colour, number)

    def outline(self, points: Points) -> Points | None:
        """Pixels (n, 2) of a polygon in view coordinates; None when none of it is in the image."""
        # The near plane first: what is behind the camera has no projection.
        if points[:, 2].min() < NEAR:
            points = clip_near(points)
            if len(points) < 3:
                return None
        pixels = self.camera.project(points)
        if np.abs(pixels).max() > WIDEST:
            points = clip_frame(points, self.camera)
            if len(points) < 3:
                return None
            pixels = self.camera.project(points)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        inside = high[0] >= 0 and high[1] >= 0 and low[0] < self.camera.width and low[1] < self.camera.height
        return pixels if inside else None

    def fill_pixels(self, outlines: list[Points], colour: npt.ArrayLike, number: int) -> None:
        """Fill polygons given in pixels (n, 2), each on its own, with one colour as it is."""
        red, green, blue = (min(max(value, 0.0), 255.0) for value in np.asarray(colour).tolist())
        for outline in outlines:
            fixed = self.fixed(outline)
            # LINE_8, not anti-aliased: a blended fourth channel would be the number of another thing.
            self._cv2.fillPoly(self.pixels, [fixed], (red, green, blue, number), self._cv2.LINE_8, SHIFT)

    def limb(
        self,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        radii: tuple[float, float],
        colour: npt.ArrayLike,
        number: int,
    ) -> None:
        """Paint a round bar from `start` to `end` (street coordinates), `radii` metres thick at its ends."""
        ends = self.camera.view(np.array([[start, end]], np.float64))
        self.limbs_view(ends, np.array([radii]), np.asarray(colour, np.float32)[None], number)

    def fixed(self, outline: Points) -> npt.NDArray[np.int32]:
        """Pixels to OpenCV's fixed point; the centre of a pixel is at half, OpenCV's at a whole number."""
        # Rounding once, here, so that colour and class come from the very same corners.
        fixed: npt.NDArray[np.int32] = np.rint((outline - 0.5) * (1 << SHIFT)).astype(np.int32)
        return fixed

    def labels(self) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 class ids at the image's own size."""
        return self._classes[self._numbers()]

    def image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB at the image's own size."""
        size = (self.camera.width // OVERSAMPLING, self.camera.height // OVERSAMPLING)
        rgb = np.ascontiguousarray(self.pixels[..., :3])
        # INTER_AREA at a factor of exactly 2 is the mean of 2 x 2.
        out: npt.NDArray[np.uint8] = self._cv2.resize(rgb, size, interpolation=self._cv2.INTER_AREA)
        return out

    def visible(self, least: int) -> tuple[int, ...]:
        """How many things of each class own at least `least` pixels of the label map: (11,) counts."""
        areas = np.bincount(self._numbers().ravel(), minlength=256)
        seen = np.flatnonzero(areas >= least)
        counted = self._classes[seen[seen >= len(CLASS_NAMES)]]
        return tuple(int(n) for n in np.bincount(counted, minlength=len(CLASS_NAMES)))

    def _numbers(self) -> npt.NDArray[np.uint8]:
        # Every second entry, not a mean: a label between two classes does not exist.
        return self.pixels[::OVERSAMPLING, ::OVERSAMPLING, 3]


def capsules(ends: Points, radii: npt.NDArray[np.float64], *, corners: int = 5) -> Points:
    """Outlines (n, 2 * corners, 2) of bars with round ends: `ends` (n, 2, 2) and `radii` (n, 2) in pixels."""
    direction = ends[:, 1] - ends[:, 0]
    angle = np.arctan2(direction[:, 1], direction[:, 0])[:, None]
    turn = np.linspace(math.pi / 2, 3 * math.pi / 2, corners) + angle
    round_ = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    back = ends[:, :1] + radii[:, :1, None] * round_
    front = ends[:, 1:] - radii[:, 1:, None] * round_
    out: Points = np.concatenate([back, front], axis=1).astype(np.float32)
    return out
