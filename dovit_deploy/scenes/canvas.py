"""The sheet that is painted on: colour and class in one array, so that both come from the very same polygons.

The sheet is twice as large as the picture each way. The picture is its average over 2 x 2, which smooths edges;
the label map takes every second entry, which keeps them crisp. The fourth channel holds not the class but a
number per thing, from which follow the classes and a count of what really shows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.scenes.camera import NEAR, Camera, Points, clip_frame, clip_near
from dovit_deploy.scenes.classes import CLASS_NAMES, SceneClass
from dovit_deploy.scenes.light import Light
from dovit_deploy.scenes.texture import Texture

OVERSAMPLING = 2

COUNTED_RANGE = 100.0
"""Metres within which things are told apart; beyond it they are specks."""

SHIFT = 4
"""Binary digits after the point in OpenCV's polygon coordinates."""

WIDEST = 16000.0
"""Pixel coordinates beyond this are cut first: OpenCV counts them in 32 bits with 16 after the point."""

Colouring = npt.NDArray[np.float32]
"""(3,) float32 RGB, 0..255."""


class Canvas:
    """Paints polygons, limbs and textures, given in street coordinates, nearest last."""

    def __init__(self, camera: Camera, light: Light) -> None:
        """`camera` is that of the sheet: `OVERSAMPLING` times the picture."""
        self.camera = camera
        self.light = light
        self.pixels = np.zeros((camera.height, camera.width, 4), np.uint8)
        self._classes = np.full(256, int(SceneClass.SKY), np.uint8)
        self._classes[: len(CLASS_NAMES)] = np.arange(len(CLASS_NAMES))
        self._used = len(CLASS_NAMES)
        self._haze = np.asarray(light.haze, np.float32)
        self._cv2 = packages.opencv()

    def claim(self, kind: SceneClass, depth: float) -> int:
        """A number for one thing of class `kind` whose nearest point is `depth` metres away.

        Far things, and any beyond the 244th, share the number of their class and are not counted.
        """
        if depth > COUNTED_RANGE or self._used > 255:
            return int(kind)
        self._classes[self._used] = kind
        self._used += 1
        return self._used - 1

    def hazed(self, colour: npt.ArrayLike, depth: float) -> Colouring:
        """`colour` as it looks from `depth` metres."""
        own = np.asarray(colour, np.float32)
        return own + (self._haze - own) * float(self.light.fade(depth))

    def fill(self, points: npt.ArrayLike, colour: npt.ArrayLike, number: int) -> None:
        """Fill a flat polygon `points` (n, 3) in street coordinates."""
        self.fill_view(self.camera.view(points), colour, number)

    def fill_view(self, points: Points, colour: npt.ArrayLike, number: int) -> None:
        """Fill a flat polygon `points` (n, 3) in view coordinates; cut at the near plane."""
        outline = self.outline(points)
        if outline is not None:
            own = self.hazed(colour, max(float(points[:, 2].mean()), NEAR))
            self.fill_pixels([outline], own, number)

    def fill_body(self, faces: list[Points], colours: list[Colouring], number: int) -> None:
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

        Nothing is painted when any end is behind the near plane: by then all of it is beside the picture.
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
        """Pixels (n, 2) of a polygon in view coordinates; None when none of it is in the picture."""
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
            fixed = self._fixed(outline)
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
        ends = self.camera.view([[start, end]])
        self.limbs_view(ends, np.array([radii]), np.asarray(colour, np.float32)[None], number)

    def texture(
        self,
        corner: npt.ArrayLike,
        along: npt.ArrayLike,
        up: npt.ArrayLike,
        texture: Texture,
        shade: npt.ArrayLike,
        number: int,
        *,
        see_through: bool = False,
    ) -> None:
        """Paint `texture` on the parallelogram `corner` + a * `along` + b * `up`, a and b in 0..1, (3,) each.

        `up` has no part along the street. `shade` (3,) multiplies the colours. With `see_through` the class
        belongs to the whole surface, gaps included; else only to its opaque part.
        """
        base, span, rise = (np.asarray(value, np.float64) for value in (corner, along, up))
        for first, last in self._pieces(float(base[2]), float(span[2])):
            ends = np.array([base + first * span, base + last * span])
            quad = self.camera.view(np.concatenate([ends, ends[::-1] + rise]))
            outline = self.outline(quad)
            if outline is not None and self._within(quad):
                self._paste(texture, (first, last), quad, np.asarray(shade, np.float32), number, see_through)

    def _pieces(self, s: float, length: float) -> list[tuple[float, float]]:
        """Cut 0..1 where a surface from `s` on comes too near, and where its depth has grown by half."""
        near, far = s - self.camera.s, s + length - self.camera.s
        if abs(length) < 1e-6:
            return [(0.0, 1.0)] if near >= NEAR else []
        if far <= NEAR:
            return []
        begin = max(near, NEAR)
        count = max(1, math.ceil(math.log(far / begin) / math.log(1.5)))
        cuts = begin * (far / begin) ** (np.arange(count + 1) / count)
        shares = np.clip((cuts - near) / length, 0.0, 1.0)
        return [(float(a), float(b)) for a, b in zip(shares[:-1], shares[1:], strict=True)]

    def _within(self, quad: Points) -> bool:
        """Is the surface in the picture, as far as its four corners in pixels tell?"""
        pixels = self.camera.project(quad)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        size = (self.camera.width, self.camera.height)
        return bool((high >= 0).all() and (low < size).all())

    def _paste(
        self,
        texture: Texture,
        columns: tuple[float, float],
        quad: Points,
        shade: Colouring,
        number: int,
        see_through: bool,
    ) -> None:
        pixels = self.camera.project(quad)
        shown_width = float(np.abs(pixels[1, 0] - pixels[0, 0])) / max(columns[1] - columns[0], 1e-6)
        shown_height = float(np.hypot(*(pixels[3] - pixels[0])) + np.hypot(*(pixels[2] - pixels[1]))) / 2
        level = texture.at_scale(shown_height, shown_width)
        patch, source = self._patch(level, columns, quad[:2, 2], shade)
        left, top = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        right = min(self.camera.width, math.ceil(float(pixels[:, 0].max())) + 1)
        bottom = min(self.camera.height, math.ceil(float(pixels[:, 1].max())) + 1)
        if right <= left or bottom <= top:
            return
        target = (pixels - (left, top)).astype(np.float32)
        matrix = self._cv2.getPerspectiveTransform(source, target)
        size = (int(right - left), int(bottom - top))
        warped = self._cv2.warpPerspective(
            patch, matrix, size, flags=self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE
        )
        area = self.pixels[top:bottom, left:right]
        inside = np.zeros((size[1], size[0]), np.uint8)
        self._cv2.fillPoly(inside, [self._fixed(target)], 255, self._cv2.LINE_8, SHIFT)
        if texture.opaque:
            warped[..., 3] = number
            self._cv2.copyTo(warped, inside, area)
        else:
            self._blend(area, warped, inside, number, see_through)

    def _patch(
        self, level: npt.NDArray[np.float32], columns: tuple[float, float], depths: Points, shade: Colouring
    ) -> tuple[npt.NDArray[np.uint8], Points]:
        """The lit and hazed columns of a texture, uint8, and where the surface's corners lie in them."""
        height, width = level.shape[:2]
        first, last = columns[0] * width, columns[1] * width
        start, stop = max(0, int(first) - 1), min(width, math.ceil(last) + 1)
        share = (np.arange(start, stop) + 0.5 - first) / max(last - first, 1e-6)
        haze = self.light.fade(depths[0] + (depths[1] - depths[0]) * np.clip(share, 0, 1))[None, :, None]
        crop = level[:, start:stop].copy()
        opacity = crop[..., 3:] / 255.0
        crop[..., :3] *= shade * (1.0 - haze)
        crop[..., :3] += self._haze * haze * opacity
        corners = [(first - start, height), (last - start, height), (last - start, 0.0), (first - start, 0.0)]
        return np.clip(crop, 0, 255).astype(np.uint8), np.array(corners, np.float32) - 0.5

    def _blend(
        self,
        area: npt.NDArray[np.uint8],
        warped: npt.NDArray[np.uint8],
        inside: npt.NDArray[np.uint8],
        number: int,
        see_through: bool,
    ) -> None:
        """Lay a partly transparent patch over `area`: colours by opacity, the number by its outline."""
        opacity = self._cv2.bitwise_and(warped[..., 3], inside)
        colours = self._cv2.bitwise_and(warped, warped, mask=inside)
        through = self._cv2.cvtColor(255 - opacity, self._cv2.COLOR_GRAY2BGR)
        below = self._cv2.multiply(np.ascontiguousarray(area[..., :3]), through, scale=1.0 / 255.0)
        area[..., :3] = self._cv2.add(below, np.ascontiguousarray(colours[..., :3]))
        owned = inside > 0 if see_through else opacity >= 128
        area[..., 3][owned] = number

    def _fixed(self, outline: Points) -> npt.NDArray[np.int32]:
        """Pixels to OpenCV's fixed point; the centre of a pixel is at half, OpenCV's at a whole number."""
        return np.rint((outline - 0.5) * (1 << SHIFT)).astype(np.int32)

    def labels(self) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 class ids at the picture's own size."""
        return self._classes[self._numbers()]

    def picture(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB at the picture's own size."""
        size = (self.camera.width // OVERSAMPLING, self.camera.height // OVERSAMPLING)
        rgb = np.ascontiguousarray(self.pixels[..., :3])
        out: npt.NDArray[np.uint8] = self._cv2.resize(rgb, size, interpolation=self._cv2.INTER_AREA)
        return out

    def visible(self, least: int) -> tuple[int, ...]:
        """How many things of each class own at least `least` pixels of the label map: (11,) counts."""
        areas = np.bincount(self._numbers().ravel(), minlength=256)
        seen = np.flatnonzero(areas >= least)
        counted = self._classes[seen[seen >= len(CLASS_NAMES)]]
        return tuple(int(n) for n in np.bincount(counted, minlength=len(CLASS_NAMES)))

    def _numbers(self) -> npt.NDArray[np.uint8]:
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
