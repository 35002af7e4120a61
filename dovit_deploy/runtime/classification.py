"""ClassificationResult: what a classifier answers, with the ways to look at it and to keep it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.output_folder import write_text
from dovit_deploy.runtime.class_scores import ClassScore
from dovit_deploy.runtime.label_overlay import paint_label
from dovit_deploy.runtime.picture_file import save_picture
from dovit_deploy.runtime.results import RGB, FrameTiming, FrameTokens
from dovit_deploy.runtime.selection_map import paint_selections

SUFFIXES = (".json", ".png")


@dataclass(frozen=True)
class ClassificationResult:
    """What one picture shows, what its tokens did, and how long it took."""

    rgb: RGB = field(repr=False)
    """The picture: (H, W, 3) uint8."""
    classes: tuple[ClassScore, ...]
    """The most probable classes, the most probable first; of equals the lower id."""
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    """Of all classes, (K,); their sum is 1."""
    tokens: FrameTokens = field(repr=False)
    timing: FrameTiming

    @property
    def label(self) -> ClassScore:
        """The most probable class."""
        return self.classes[0]

    def plot(self) -> RGB:
        """The picture with its most probable classes lettered on it."""
        return paint_label(self.rgb, self.classes)

    def plot_tokens(self) -> RGB:
        """The picture with how often each part of it was selected to run painted over it."""
        return paint_selections(self.rgb, self.tokens)

    def facts(self) -> dict[str, Any]:
        """What a row of `frames.jsonl` says of the answer: `top`, the classes with their probabilities."""
        return {
            "top": [{"id": entry.id, "name": entry.name, "probability": entry.probability} for entry in self.classes]
        }

    def save(self, path: str | Path) -> None:
        """Write the answer: `.json` the most probable classes, `.png` the picture that `plot` gives.

        Raises:
            UsageError: another suffix, or the folder is not there.
            EnvironmentProblem: the file cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{target.name}: an answer is written as {' or '.join(SUFFIXES)}; give such a name")
        if not target.parent.is_dir():
            raise UsageError(f"cannot write {target}: there is no folder {target.parent}")
        if target.suffix.lower() == ".png":
            save_picture(target, self.plot())
            return
        try:
            write_text(target, json.dumps(self.facts(), indent=1) + "\n")
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {target}: {error.strerror or error}") from error
