"""Images that were built to keep every token running at a bundle's own thresholds: the worst that a sender can do.

Patterns that no street shows (flat, noise of several strengths, checkerboards) are tried first. From the one that
keeps most, patches whose tokens stopped are then exchanged for pieces of the others, as long as that keeps more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dovit_deploy.families.spec import Size
from dovit_deploy.runtime.results import TokenReport
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import predictor_for
from dovit_deploy.sources.source import RGB

STRENGTHS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Standard deviations of the noise around grey, in levels of 255."""
SIDES = (1, 2, 3, 4, 8, 16)
"""Sides of a checkerboard's fields, in pixels."""


@dataclass(frozen=True)
class BuiltImage:
    """An image and what its tokens did."""

    rgb: RGB
    """(H, W, 3) uint8 of the model's own size, so that what is run is every pixel of it."""
    report: TokenReport

    @property
    def running(self) -> int:
        """Tokens behind all gates together."""
        return sum(self.report.kept[1:])

    @property
    def keeps_all(self) -> bool:
        """Nothing stopped."""
        return set(self.report.kept) == {self.report.kept[0]}


def built_image(session: Session, *, rounds: int = 100, seed: int = 0) -> BuiltImage:
    """The image that keeps most tokens, of the patterns and of `rounds` attempts to better the best of them."""
    manifest, random = session.bundle.manifest, np.random.default_rng(seed)
    predictor, settings = predictor_for(session), RunSettings.resolve(manifest)

    def seen(rgb: RGB) -> BuiltImage:
        return BuiltImage(rgb, session.run_one(predictor.to_input(rgb), settings)[1])

    tried = [seen(rgb) for rgb in patterns(manifest.spec.size, random)]
    best, patch = max(tried, key=lambda image: image.running), manifest.spec.patch
    for _ in range(rounds):
        if best.keeps_all:
            break
        changed = seen(patched(best, [image.rgb for image in tried], patch, random))
        # As many is good enough: whatever moves may open a way.
        best = max(changed, best, key=lambda image: image.running)
    return best


def patterns(size: Size, random: np.random.Generator) -> Iterator[RGB]:
    """Images of `size` that show nothing."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    for strength in STRENGTHS:
        yield np.clip(128 + strength * random.normal(size=(*size, 3)), 0, 255).astype(np.uint8)
    for side in SIDES:
        fields = (255 * ((rows // side + columns // side) % 2)).astype(np.uint8)
        yield np.repeat(fields[:, :, None], 3, axis=2)


def patched(image: BuiltImage, others: list[RGB], patch: int, random: np.random.Generator) -> RGB:
    """`image` with a random piece of one of `others` in every patch whose token did not run to the end."""
    rgb = image.rgb.copy()
    for row, column in np.argwhere(~image.report.keep[-1]):
        cell = rgb[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        # The last row and column may be cut.
        top = int(random.integers(0, rgb.shape[0] - cell.shape[0] + 1))
        left = int(random.integers(0, rgb.shape[1] - cell.shape[1] + 1))
        piece = others[int(random.integers(len(others)))]
        cell[...] = piece[top : top + cell.shape[0], left : left + cell.shape[1]]
    return rgb
