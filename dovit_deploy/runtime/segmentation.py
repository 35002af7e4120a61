"""SegmentationResult: what a predictor answers, with the ways to look at it and to keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.exit_map import paint_tokens
from dovit_deploy.runtime.overlay import paint_overlay, save_mask
from dovit_deploy.runtime.results import RGB, FrameTiming, FrameTokens, Palette
from dovit_deploy.runtime.selection_map import paint_selections


@dataclass(frozen=True)
class SegmentationResult:
    """The class of every pixel of one picture, what its tokens did, and how long it took."""

    rgb: RGB = field(repr=False)
    """The picture: (H, W, 3) uint8."""
    class_map: npt.NDArray[np.uint8] = field(repr=False)
    """(H, W) uint8 in the picture's own pixels; value = class id."""
    tokens: FrameTokens = field(repr=False)
    timing: FrameTiming
    palette: Palette
    gates: tuple[int, ...] = ()
    """The layer before which each gate stands."""

    def plot(self, *, alpha: float = 0.5) -> RGB:
        """The picture with the classes painted over it; 0 is the picture alone, 1 the classes alone."""
        return paint_overlay(self.rgb, self.class_map, self.palette, alpha=alpha)

    def plot_tokens(self) -> RGB:
        """The picture with the place where each token stopped painted over it.

        Of a model that selects a fixed number of tokens: with how often each was selected.
        """
        if not self.gates and any(window.report.keep for window in self.tokens.windows):
            return paint_selections(self.rgb, self.tokens)
        return paint_tokens(self.rgb, self.tokens, self.gates)

    def facts(self) -> dict[str, Any]:
        """What a row of `frames.jsonl` says of the answer: nothing, the class map is in the mask."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write the class map as an indexed PNG (pixel value = class id) with the palette.

        Raises:
            UsageError: the name does not end in .png, or the folder is not there.
            EnvironmentProblem: the file cannot be written.
        """
        save_mask(path, self.class_map, self.palette)

    def to_supervision(self) -> Any:  # noqa: ANN401
        """The same as `supervision.Detections`: one detection per class that occurs, with its mask, box and name.

        Raises:
            PackageMissing: supervision is not installed.
        """
        supervision = packages.supervision()
        present = np.unique(self.class_map)
        masks = self.class_map[None] == present[:, None, None]
        boxes = np.array([_box(mask) for mask in masks], dtype=np.float32)
        names = np.array([self.palette.names[number] for number in present])
        return supervision.Detections(xyxy=boxes, mask=masks, class_id=present.astype(int), data={"class_name": names})


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of what is true."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
