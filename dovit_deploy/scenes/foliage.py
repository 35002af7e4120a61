"""Pictures of plants: tree crowns and hedges, drawn once each from blobs of leaves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.scenes.light import Colour
from dovit_deploy.scenes.noise import noise_patch
from dovit_deploy.scenes.texture import Texture
from dovit_deploy.scenes.things import Hedge

TREE_ROWS, TREE_COLUMNS = 416, 264
"""Size of a tree's picture, pixels."""

BLOBS = 150

Sheet = npt.NDArray[np.float32]


def tree_texture(shape: int, leaves: Colour, *, sun_right: float) -> Texture:
    """Tree number `shape`, crown and trunk; `sun_right` -1..1 says how much the right flank is lit."""
    cv2 = packages.opencv()
    rng = np.random.default_rng([shape, 3])
    rows, columns = TREE_ROWS, TREE_COLUMNS
    sheet = np.zeros((rows, columns, 4), np.float32)
    _trunk(rng, sheet)
    crown = np.zeros((rows, columns, 4), np.float32)
    _crown(rng, crown, np.asarray(leaves), sun_right)
    wobble = 5.0
    across = noise_patch(rng, rows, columns, roughness=0.8) * wobble + np.arange(columns, dtype=np.float32)
    down = noise_patch(rng, rows, columns, roughness=0.8) * wobble + np.arange(rows, dtype=np.float32)[:, None]
    crown = cv2.remap(crown, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    grain = noise_patch(rng, rows, columns, roughness=0.35)
    crown[..., :3] *= (1.0 + 0.15 * grain)[..., None]
    # Holes where leaves are thin let sky and branches through.
    crown[..., 3] *= noise_patch(rng, rows, columns, roughness=1.2) > -1.75
    cover = crown[..., 3:] / 255.0
    sheet = crown * cover + sheet * (1.0 - cover)
    sheet[..., 3:] = np.maximum(sheet[..., 3:], crown[..., 3:])
    return Texture(np.clip(sheet, 0, 255).astype(np.uint8))


def _trunk(rng: np.random.Generator, sheet: Sheet) -> None:
    """A tapering stem with a few branches; brown-grey, lighter on one flank."""
    cv2 = packages.opencv()
    rows, columns = sheet.shape[:2]
    middle, fork = columns / 2, rows * 0.52
    bark = np.array([86.0, 76.0, 66.0]) * float(rng.uniform(0.8, 1.2))
    half = max(3.0, 0.022 * rows)
    stem = np.array(
        [(middle - half, rows), (middle + half, rows), (middle + half * 0.6, fork), (middle - half * 0.6, fork)]
    )
    cv2.fillPoly(sheet, [np.rint(stem).astype(np.int32)], (*bark, 255.0))
    lit = stem.copy()
    lit[[0, 3], 0] = middle + half * 0.2
    cv2.fillPoly(sheet, [np.rint(lit).astype(np.int32)], (*(bark * 1.25), 255.0))
    for _ in range(7):
        start = (round(middle), round(fork + rows * float(rng.uniform(-0.02, 0.1))))
        angle = float(rng.uniform(-1.0, 1.0))
        reach = rows * float(rng.uniform(0.2, 0.34))
        end = (round(middle + reach * np.sin(angle)), round(start[1] - reach * np.cos(angle)))
        cv2.line(sheet, start, end, (*(bark * 0.85), 255.0), max(2, round(half * 0.5)))


def _crown(rng: np.random.Generator, sheet: Sheet, leaves: npt.NDArray[np.float64], sun_right: float) -> None:
    """Blobs of leaves, dark and low ones first, bright ones towards the sun last."""
    cv2 = packages.opencv()
    rows, columns = sheet.shape[:2]
    centre = np.array([columns / 2, rows * 0.37])
    radii = np.array([columns * 0.4, rows * 0.31])
    angle = rng.uniform(0, 2 * np.pi, BLOBS)
    distance = np.sqrt(rng.uniform(0, 1, BLOBS))
    unit = np.stack([np.cos(angle) * distance, np.sin(angle) * distance], axis=-1)
    # Brightness of a ball lit from above and from the sun's side, seen from the front.
    facing = 0.55 * -unit[:, 1] + 0.45 * sun_right * unit[:, 0] + rng.normal(0, 0.22, BLOBS)
    for index in np.argsort(facing):
        place = centre + unit[index] * radii
        radius = columns * float(rng.uniform(0.055, 0.11))
        tint = leaves * (0.86 + 0.46 * float(facing[index])) + np.array([8.0, 6.0, 0.0]) * float(facing[index])
        at = (round(float(place[0])), round(float(place[1])))
        cv2.circle(sheet, at, round(radius), (*np.clip(tint, 8, 235), 255.0), -1)


def hedge_texture(hedge: Hedge) -> Texture:
    """The face of a clipped hedge: leaves, darker at the foot, ragged along the top."""
    rng = np.random.default_rng([hedge.seed, 4])
    scale = 30
    rows, columns = max(12, round(hedge.height * scale)), round(hedge.length * scale)
    grain = noise_patch(rng, rows, columns, roughness=0.45)
    clumps = noise_patch(rng, rows, columns, roughness=1.1)
    up = np.linspace(1.0, 0.0, rows, dtype=np.float32)[:, None]
    tone = (0.62 + 0.46 * up) * (1.0 + 0.2 * grain + 0.12 * clumps)
    colour = tone[..., None] * np.asarray(hedge.leaves, np.float32)
    edge = noise_patch(rng, 1, columns, roughness=0.9)[0] * 2.2 + 4.0
    inside = np.arange(rows)[:, None] >= edge[None, :]
    sheet = np.concatenate([colour, 255.0 * inside[..., None]], axis=-1)
    return Texture(np.clip(sheet, 0, 255).astype(np.uint8))
