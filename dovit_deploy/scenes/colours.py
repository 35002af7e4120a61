"""Colours that English streets are painted in, RGB 0..255, and how one is drawn."""

from __future__ import annotations

import numpy as np

from dovit_deploy.scenes.light import Colour

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
