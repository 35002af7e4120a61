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
        near_free = np.maximum(np.asarray(depth, np.float32) - 6.0, 0.0)
        share: Vector = (1.0 - np.exp(-near_free / self.visibility)).astype(np.float32)
        return share


def light_from_seed(rng: np.random.Generator) -> Light:
    """Draw an English street's weather: mostly bright, sometimes covered or late in the day."""
    cloudiness = float(rng.beta(1.5, 2.6))
    warmth = float(rng.uniform(0.0, 1.0)) * (1.0 - cloudiness)
    elevation, azimuth = rng.uniform(0.55, 1.0), rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 2.3)
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
