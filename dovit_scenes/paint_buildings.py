"""Houses: a street wall with windows, doors or a shop, an end wall, a roof and a chimney."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.canvas import Canvas
from dovit_scenes.light import Colour
from dovit_scenes.surfaces import Surface, paint_surface
from dovit_scenes.texture import Sheet, Texture, noise_patch
from dovit_scenes.things import Building, SceneClass

OVERHANG = 0.3
"""Metres that a roof reaches over its wall."""

SCALE = 32
"""Pixels per metre."""

BRICKWORKS = 4
"""Patterns of bricks that walls share."""


def paint_building(canvas: Canvas, thing: Building) -> None:
    """Paint a house: the roof first, then the walls in front of it."""
    number = canvas.claim(SceneClass.BUILDING, thing.s - canvas.camera.s)
    facade, end_wall = _textures(thing)
    light = canvas.light
    if thing.roof > 0:
        _chimney(canvas, thing, number)
        _roof(canvas, thing, number)
    # Its end wall shows only while it is ahead.
    if thing.s - canvas.camera.s > 0:
        shade = light.on((0.0, 0.0, -1.0))
        base, out = (thing.x, 0.0, thing.s), (float(thing.side) * thing.depth, 0.0, 0.0)
        paint_surface(canvas, Surface(base, out, (0.0, thing.height, 0.0)), end_wall, shade, number)
    shade = light.on((-float(thing.side), 0.0, 0.0))
    # After the end wall: where they meet, the street wall is nearer.
    base, along = (thing.x, 0.0, thing.s), (0.0, 0.0, thing.length)
    paint_surface(canvas, Surface(base, along, (0.0, thing.height, 0.0)), facade, shade, number)
    _cornice(canvas, thing, number)


def _roof(canvas: Canvas, thing: Building, number: int) -> None:
    """The slope towards the street and the gable at the near end."""
    ridge = (thing.x + thing.side * thing.depth / 2, thing.height + thing.roof)
    eaves = (thing.x - thing.side * OVERHANG, thing.height - 0.05)
    ends = (thing.s, thing.s + thing.length)
    slope = [(*eaves, ends[0]), (*eaves, ends[1]), (*ridge, ends[1]), (*ridge, ends[0])]
    normal = np.array([-thing.side * thing.roof, thing.depth / 2, 0.0])
    shade = canvas.light.on(normal / np.linalg.norm(normal))
    canvas.fill(slope, np.asarray(thing.tiles) * shade, number)
    _courses(canvas, thing, number, eaves, ridge, np.asarray(thing.tiles) * shade * 0.86)
    if thing.s > canvas.camera.s:
        back = (thing.x + thing.side * thing.depth, thing.height)
        gable = [(thing.x, thing.height, thing.s), (*back, thing.s), (*ridge, thing.s)]
        canvas.fill(gable, np.asarray(thing.wall) * canvas.light.on((0.0, 0.0, -1.0)) * 0.97, number)


def _courses(
    canvas: Canvas,
    thing: Building,
    number: int,
    eaves: tuple[float, float],
    ridge: tuple[float, float],
    colour: npt.ArrayLike,
) -> None:
    """Darker bands across the slope, as rows of tiles."""
    ends = (thing.s, thing.s + thing.length)
    low, high = np.array(eaves), np.array(ridge)
    for share in (0.18, 0.4, 0.62, 0.84):
        under, over = low + (high - low) * share, low + (high - low) * (share + 0.05)
        band = [(*under, ends[0]), (*under, ends[1]), (*over, ends[1]), (*over, ends[0])]
        canvas.fill(band, colour, number)


def _cornice(canvas: Canvas, thing: Building, number: int) -> None:
    """A gutter, or the edge of a flat roof: a light band along the top of the street wall."""
    high = 0.14 if thing.roof > 0 else 0.34
    x = thing.x - thing.side * (OVERHANG if thing.roof > 0 else 0.08)
    top = thing.height + (0.03 if thing.roof > 0 else 0.22)
    ends = (thing.s, thing.s + thing.length)
    band = [(x, top - high, ends[0]), (x, top - high, ends[1]), (x, top, ends[1]), (x, top, ends[0])]
    tone = (92.0, 90.0, 90.0) if thing.roof > 0 else np.asarray(thing.wall) * 0.5 + 96.0
    canvas.fill(band, np.asarray(tone) * canvas.light.on((-float(thing.side), 0.0, 0.0)), number)
    if thing.s > canvas.camera.s:
        back = thing.x + thing.side * thing.depth
        end = [(x, top - high, ends[0]), (back, top - high, ends[0]), (back, top, ends[0]), (x, top, ends[0])]
        if thing.roof == 0:
            canvas.fill(end, np.asarray(tone) * canvas.light.on((0.0, 0.0, -1.0)), number)


def _chimney(canvas: Canvas, thing: Building, number: int) -> None:
    """A stack on the ridge at the far end."""
    x = thing.x + thing.side * thing.depth / 2
    s = thing.s + 0.8 * thing.length
    low, high = thing.height + thing.roof - 0.9, thing.height + thing.roof + 1.1
    wall = np.asarray(thing.wall) * 0.8
    front = [(x - 0.5, low, s), (x + 0.5, low, s), (x + 0.5, high, s), (x - 0.5, high, s)]
    inner = x - thing.side * 0.5
    flank = [(inner, low, s), (inner, low, s + 0.8), (inner, high, s + 0.8), (inner, high, s)]
    canvas.fill(front, wall * canvas.light.on((0.0, 0.0, -1.0)), number)
    canvas.fill(flank, wall * canvas.light.on((-float(thing.side), 0.0, 0.0)), number)


# More than are in sight at once; a clip meets the same houses frame after frame.
@lru_cache(maxsize=96)
def _textures(thing: Building) -> tuple[Texture, Texture]:
    return facade_texture(thing), end_wall_texture(thing)


def facade_texture(house: Building) -> Texture:
    """The wall on the street, seen from the street; its near end is on the left of the image."""
    # A sequence for each wall: windows of the one do not move those of the other.
    rng = np.random.default_rng([house.seed, 1])
    sheet = _wall(rng, house, house.length)
    storeys = max(1, round(house.height / 3.1))
    bays = max(1, round(house.length / float(rng.uniform(2.5, 3.4))))
    style = _WindowStyle(rng)
    for storey in range(storeys):
        for bay in range(bays):
            if storey or not house.shop:
                _opening(rng, sheet, house, (storey, storeys), (bay, bays), style)
    if house.shop:
        _shop_front(rng, sheet, house, storeys)
    return _finish(sheet)


def end_wall_texture(house: Building) -> Texture:
    """The wall towards the camera: hardly any windows."""
    rng = np.random.default_rng([house.seed, 2])
    sheet = _wall(rng, house, house.depth)
    style = _WindowStyle(rng)
    storeys = max(1, round(house.height / 3.1))
    for storey in range(storeys):
        if rng.random() < 0.4:
            _opening(rng, sheet, house, (storey, storeys), (1, 3), style, door=False)
    return _finish(sheet)


class _WindowStyle:
    """Size and colours that all windows of a wall share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.width = float(rng.uniform(0.95, 1.4))
        self.height = float(rng.uniform(1.3, 1.75))
        self.frame: Colour = (232.0, 232.0, 226.0) if rng.random() < 0.75 else (70.0, 66.0, 62.0)
        self.lintel: Colour = (206.0, 200.0, 186.0) if rng.random() < 0.6 else (150.0, 110.0, 90.0)
        self.panes = int(rng.integers(1, 4))
        self.door: Colour = [(40.0, 60.0, 92.0), (120.0, 30.0, 30.0), (36.0, 70.0, 52.0), (60.0, 50.0, 46.0)][
            int(rng.integers(4))
        ]


def _wall(rng: np.random.Generator, house: Building, length: float) -> Sheet:
    """Bare masonry `length` metres long."""
    height, width = round(house.height * SCALE), max(8, round(length * SCALE))
    stains = noise_patch(rng, height, width, roughness=1.2)
    grain = noise_patch(rng, height, width, roughness=0.3)
    tone = 1.0 + 0.05 * stains + (0.03 if house.brick else 0.012) * grain
    if house.brick:
        # Few patterns, shared and repeated: a wall of its own bricks would cost more than its windows.
        work = _bricks(house.seed % BRICKWORKS)
        tone *= work[np.arange(height) % work.shape[0]][:, np.arange(width) % work.shape[1]]
    # Rain and roof: a wall is darker under its eaves and at its foot.
    up = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None] * house.height
    tone *= 1.0 - 0.22 * np.exp(-up / 0.5) - 0.18 * np.exp(-(house.height - up) / 0.35)
    return (tone[..., None] * np.asarray(house.wall, np.float32)).astype(np.float32)


@lru_cache(maxsize=BRICKWORKS)
def _bricks(variant: int) -> npt.NDArray[np.float32]:
    """(512, 768) tone of courses three pixels high and bricks nine long, every brick with its own."""
    height, width = 512, 768
    rng = np.random.default_rng([variant, 10])
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    course = rows // 3
    brick = (columns + 4 * (course % 2)) // 9
    own = rng.normal(1.0, 0.07, (height // 3 + 1, width // 9 + 2)).astype(np.float32)
    joint = (rows % 3 == 2) | ((columns + 4 * (course % 2)) % 9 == 8)
    out: npt.NDArray[np.float32] = own[course, brick] * np.where(joint, 1.12, 1.0).astype(np.float32)
    return out


def _opening(
    rng: np.random.Generator,
    sheet: Sheet,
    house: Building,
    level: tuple[int, int],
    bay: tuple[int, int],
    style: _WindowStyle,
    *,
    door: bool = True,
) -> None:
    """A window, or the door of the ground floor; `level` and `bay` are (number, of how many)."""
    floor = house.height / level[1] * level[0]
    pitch = sheet.shape[1] / SCALE / bay[1]
    middle = (bay[0] + 0.5) * pitch
    # Narrow bays get narrower windows, never overlapping ones.
    half = min(style.width / 2, 0.4 * pitch)
    if door and level[0] == 0 and bay[0] == bay[1] // 2:
        _door(sheet, middle, style)
        return
    sill = floor + 0.9
    top = min(sill + style.height, floor + house.height / level[1] - 0.35)
    _box(sheet, middle - half - 0.1, middle + half + 0.1, sill - 0.12, sill, style.lintel)
    _box(sheet, middle - half - 0.08, middle + half + 0.08, top, top + 0.2, style.lintel)
    _box(sheet, middle - half - 0.02, middle + half + 0.02, sill - 0.4, sill - 0.12, None, tone=0.93)
    _box(sheet, middle - half, middle + half, sill, top, style.frame)
    _glass(rng, sheet, (middle - half + 0.08, middle + half - 0.08), (sill + 0.08, top - 0.08))
    for pane in range(1, style.panes):
        at = middle - half + 2 * half * pane / style.panes
        _box(sheet, at - 0.03, at + 0.03, sill, top, style.frame)
    _box(sheet, middle - half, middle + half, (sill + top) / 2 - 0.03, (sill + top) / 2 + 0.03, style.frame)


def _door(sheet: Sheet, middle: float, style: _WindowStyle) -> None:
    _box(sheet, middle - 0.62, middle + 0.62, 0.0, 2.5, style.lintel)
    _box(sheet, middle - 0.5, middle + 0.5, 0.08, 2.1, style.door)
    _box(sheet, middle - 0.5, middle + 0.5, 2.15, 2.42, (60.0, 70.0, 80.0))
    for low in (0.3, 1.2):
        for side in (-0.24, 0.24):
            _box(sheet, middle + side - 0.16, middle + side + 0.16, low, low + 0.65, None, tone=0.82)
    _box(sheet, middle + 0.36, middle + 0.42, 1.0, 1.08, (210.0, 190.0, 120.0))


def _shop_front(rng: np.random.Generator, sheet: Sheet, house: Building, storeys: int) -> None:
    """Panes from end to end under a painted board."""
    length = sheet.shape[1] / SCALE
    top = min(3.0, house.height / storeys - 0.1)
    paints: tuple[Colour, ...] = ((46, 52, 70), (110, 34, 38), (40, 76, 62), (196, 186, 160), (52, 50, 48))
    paint = paints[int(rng.integers(len(paints)))]
    _box(sheet, 0.15, length - 0.15, 0.0, top, paint)
    _box(sheet, 0.3, length - 0.3, top - 0.58, top - 0.08, tuple(min(255.0, 1.2 * c + 14) for c in paint))
    _lettering(rng, sheet, (0.3, length - 0.3), (top - 0.45, top - 0.2))
    panes = max(2, round(length / 2.0))
    edges = np.linspace(0.3, length - 0.3, panes + 1)
    entrance = int(rng.integers(panes))
    for number, (left, right) in enumerate(pairwise(edges)):
        low = 0.1 if number == entrance else 0.55
        _glass(rng, sheet, (left + 0.07, right - 0.07), (low, top - 0.68), lit=0.5)


def _lettering(
    rng: np.random.Generator, sheet: Sheet, across: tuple[float, float], upright: tuple[float, float]
) -> None:
    """Bars that read as writing from afar."""
    at = across[0] + 0.3 * (across[1] - across[0])
    ink: Colour = (236.0, 230.0, 214.0)
    # The middle two fifths of the board.
    while at < across[1] - 0.3 * (across[1] - across[0]):
        width = float(rng.uniform(0.06, 0.2))
        _box(sheet, at, at + width, upright[0], upright[1] - float(rng.uniform(0.0, 0.1)), ink)
        at += width + float(rng.choice([0.06, 0.06, 0.06, 0.22]))


def _glass(
    rng: np.random.Generator,
    sheet: Sheet,
    across: tuple[float, float],
    upright: tuple[float, float],
    *,
    lit: float = 0.0,
) -> None:
    """A dark pane that mirrors the sky towards its top, with a curtain or goods behind it."""
    rows, columns = _span(sheet, *across, *upright)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return
    up = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None, None]
    slant = np.linspace(-0.12, 0.12, width, dtype=np.float32)[None, :, None]
    sky = np.clip(up**1.5 * float(rng.uniform(0.35, 0.8)) + slant, 0.0, 1.0)
    dark = np.array([44.0, 50.0, 58.0], np.float32) * float(rng.uniform(0.8, 1.3))
    pane = dark + (np.array([150.0, 168.0, 188.0], np.float32) - dark) * sky
    if lit:
        goods = noise_patch(rng, height, width, roughness=1.0)[..., None]
        pane += lit * np.array([70.0, 58.0, 40.0], np.float32) * np.clip(goods, -0.4, 1.5) * (1.0 - up)
    elif rng.random() < 0.5:
        pane[:, : max(1, width // 4)] += 46.0
        pane[:, -max(1, width // 4) :] += 46.0
    sheet[rows, columns] = np.clip(pane, 0, 255)


def _box(
    sheet: Sheet,
    left: float,
    right: float,
    low: float,
    high: float,
    colour: tuple[float, ...] | None,
    *,
    tone: float = 1.0,
) -> None:
    """Fill a rectangle in metres from the wall's lower near corner, or darken what is there by `tone`."""
    rows, columns = _span(sheet, left, right, low, high)
    if colour is None:
        sheet[rows, columns] *= tone
    else:
        sheet[rows, columns] = np.asarray(colour, np.float32)


def _span(sheet: Sheet, left: float, right: float, low: float, high: float) -> tuple[slice, slice]:
    height, width = sheet.shape[:2]
    rows = slice(max(0, height - round(high * SCALE)), max(0, height - round(low * SCALE)))
    return rows, slice(max(0, round(left * SCALE)), min(width, round(right * SCALE)))


def _finish(sheet: Sheet) -> Texture:
    """Soften the edges that were drawn on whole pixels."""
    cv2 = packages.opencv()
    soft = cv2.GaussianBlur(cv2.convertScaleAbs(np.maximum(sheet, 0.0)), (0, 0), 0.6)
    opaque = np.full(soft.shape[:2], 255, np.uint8)
    return Texture(cv2.merge([*cv2.split(soft), opaque]), opaque=True)
