"""Light of one world: sun, sky and haze, drawn once from the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]
"""RGB, 0..255 (or a factor per channel where the docstring says so)."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Light:
    """What falls on a surface and what lies between it and the camera."""

    sun: tuple[float, float, float]
    """Unit vector towards the sun: right, up, along the street."""
    ambient: Colour
    """Factor per channel that every surface receives."""
    direct: Colour
    """Factor per channel that a surface facing the sun receives on top."""
    zenith: Colour
    haze: Colour
    """Colour of the horizon; far things fade into it."""
    visibility: float
    """Metres after which about 63 % of a thing's own colour is gone."""
    cloudiness: float
    """0 (clear) to 1 (covered)."""

    @property
    def shadow(self) -> float:
        """How much darker a cast shadow is than its surroundings, 0..1."""
        return 0.12 + 0.36 * (1.0 - self.cloudiness)

    def on(self, normal: npt.ArrayLike) -> Vector:
        """Factor per channel on surfaces with unit normals `normal`: (..., 3) -> (..., 3) float32."""
        facing = np.maximum(np.asarray(normal, np.float32) @ np.asarray(self.sun, np.float32), 0.0)
        ambient, direct = np.asarray(self.ambient, np.float32), np.asarray(self.direct, np.float32)
        return np.asarray(ambient + facing[..., None] * direct, np.float32)

    def fade(self, depth: npt.ArrayLike) -> Vector:
        """Share of haze at `depth` metres: 0 at the camera, towards 1 far away."""
        # Six metres without haze: the nearest things keep their full contrast.
        near_free = np.maximum(np.asarray(depth, np.float32) - 6.0, 0.0)
        share: Vector = (1.0 - np.exp(-near_free / self.visibility)).astype(np.float32)
        return share


def light_from_seed(rng: np.random.Generator) -> Light:
    """Draw an English street's weather: mostly bright, sometimes covered or late in the day."""
    # A beta of these shapes leans to the clear side and has few extremes.
    cloudiness = float(rng.beta(1.5, 2.6))
    warmth = float(rng.uniform(0.0, 1.0)) * (1.0 - cloudiness)
    elevation, azimuth = rng.uniform(0.55, 1.0), rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 2.3)
    # Azimuth 0 is along the street; between 0.5 and 2.3 the sun comes from a side, so walls differ in light.
    sun = (
        float(np.cos(elevation) * np.sin(azimuth)),
        float(np.sin(elevation)),
        float(np.cos(elevation) * np.cos(azimuth)),
    )
    grey = np.array([188.0, 197.0, 209.0])
    blue = np.array([86.0, 146.0, 222.0])
    zenith = blue + (grey - blue) * cloudiness
    haze = np.array([216.0, 227.0, 238.0]) + np.array([22.0, 4.0, -24.0]) * warmth
    strength = 0.84 * (1.0 - 0.75 * cloudiness)
    direct = strength * np.array([1.0 + 0.10 * warmth, 1.0, 1.0 - 0.22 * warmth])
    ambient = (0.6 + 0.3 * cloudiness) * np.array([0.97, 1.0, 1.05])
    return Light(
        sun=sun,
        ambient=_triple(ambient),
        direct=_triple(direct),
        zenith=_triple(zenith),
        haze=_triple(haze),
        visibility=float(rng.uniform(130.0, 260.0)) * (1.0 - 0.3 * cloudiness),
        cloudiness=cloudiness,
    )


def _triple(values: npt.NDArray[np.float64]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# Colours that English streets are painted in, RGB 0..255, and how one is drawn.

BRICK: tuple[Colour, ...] = (
    (158, 112, 84),
    (176, 140, 102),
    (192, 164, 122),
    (140, 92, 76),
    (168, 128, 108),
)
PLASTER: tuple[Colour, ...] = ((214, 204, 184), (226, 220, 208), (198, 188, 172), (204, 196, 160), (182, 186, 186))
ROOF_TILES: tuple[Colour, ...] = ((92, 78, 76), (112, 78, 66), (84, 86, 94), (126, 90, 72))
LEAVES: tuple[Colour, ...] = ((74, 98, 44), (92, 112, 52), (62, 88, 50), (112, 116, 54), (84, 96, 60))
FENCE_PAINT: tuple[Colour, ...] = ((116, 90, 66), (92, 80, 70), (138, 118, 94), (76, 88, 76))
CAR_PAINT: tuple[Colour, ...] = (
    (186, 190, 194),
    (42, 44, 50),
    (226, 228, 230),
    (96, 100, 108),
    (158, 28, 32),
    (34, 62, 124),
    (60, 96, 150),
    (28, 74, 56),
    (182, 158, 108),
)
CLOTHES: tuple[Colour, ...] = (
    (44, 46, 58),
    (90, 34, 38),
    (34, 58, 96),
    (120, 112, 98),
    (66, 82, 62),
    (176, 168, 156),
    (150, 72, 50),
    (60, 54, 52),
)
TROUSERS: tuple[Colour, ...] = ((46, 54, 78), (36, 36, 40), (98, 92, 82), (70, 66, 62), (58, 70, 104))
SKIN: tuple[Colour, ...] = ((214, 170, 144), (196, 148, 118), (150, 104, 78), (104, 70, 54))
HAIR: tuple[Colour, ...] = ((48, 36, 28), (92, 66, 40), (30, 26, 26), (150, 120, 76), (120, 116, 112))
HELMETS: tuple[Colour, ...] = ((220, 222, 224), (40, 42, 48), (196, 44, 36), (226, 196, 60))


def draw(rng: np.random.Generator, choices: tuple[Colour, ...], *, spread: float = 0.08) -> Colour:
    """One of `choices`, lighter or darker by up to `spread` (a fraction)."""
    chosen = choices[int(rng.integers(len(choices)))]
    factor = float(rng.uniform(1.0 - spread, 1.0 + spread))
    red, green, blue = (min(255.0, channel * factor) for channel in chosen)
    return red, green, blue
