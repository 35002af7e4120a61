"""Images without labels as training sees a data set: every pixel is void.

Of a network whose windows slide over larger images each window is an image of its own, at the scale at which the
network sees it; all others see whole images resized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.adapt.images import UnlabelledImages
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.datasets.dataset import IGNORE, ClassList, Dataset, Sample
from dovit_deploy.families.spec import Size
from dovit_deploy.printing import plural
from dovit_deploy.runtime.transforms import sliding_size, windows
from dovit_deploy.sources.source import RGB
from dovit_deploy.train.batches import resized


@dataclass(frozen=True)
class Piece:
    """What one step sees of an image."""

    image: int
    corner: tuple[int, int] | None
    """Top and left of the window; None: the whole image."""


class UnlabelledSet(Dataset):
    """The images numbered `indices`, in pieces.

    Args:
        images: all of them.
        indices: of those that are learnt from.
        manifest: of the network that sees them.
    """

    def __init__(self, images: UnlabelledImages, indices: Sequence[int], manifest: Manifest) -> None:
        self.images, self.name = images, images.name
        self.size, self.stride = manifest.spec.size, manifest.preprocessing.stride
        names, colours = zip(*((entry.name, entry.color) for entry in manifest.classes), strict=True)
        self.classes = ClassList(names, colours, None)
        digest, pieces = hashlib.sha256(), list[Piece]()
        for index in indices:
            rgb = images.image(index).rgb
            digest.update(f"{rgb.shape}".encode())
            digest.update(np.ascontiguousarray(rgb).data)
            pieces += [Piece(index, corner) for corner in self._corners((rgb.shape[0], rgb.shape[1]))]
        self.pieces, self.digest = tuple(pieces), digest.hexdigest()
        """`digest`: SHA-256 of the images' pixels, in their order."""

    def _corners(self, image: Size) -> Sequence[tuple[int, int] | None]:
        if self.stride is None:
            return (None,)
        return windows(*sliding_size(image, self.size), self.size, self.stride)

    @property
    def stems(self) -> tuple[str, ...]:
        return tuple(self.images.stems[piece.image] for piece in self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def named(self) -> str:
        """What they are: "12 images", or "120 windows"."""
        return plural(len(self), "image" if self.stride is None else "window")

    def sample(self, index: int) -> Sample:
        piece = self.pieces[index]
        rgb = self._cut(self.images.image(piece.image).rgb, piece.corner)
        return Sample(self.images.stems[piece.image], rgb, np.full(rgb.shape[:2], IGNORE, np.uint8))

    def _cut(self, rgb: RGB, corner: tuple[int, int] | None) -> RGB:
        if corner is None:
            return rgb
        (top, left), (height, width) = corner, self.size
        large = resized(rgb, sliding_size((rgb.shape[0], rgb.shape[1]), self.size))
        return np.ascontiguousarray(large[top : top + height, left : left + width])

    def label(self, index: int) -> NDArray[np.uint8]:
        return self.sample(index).label
