"""The arrays, reports and timings that runs and predictors give, and the most probable classes of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import CheckError

Pixels = npt.NDArray[np.float32]
"""What a model takes: (B, 3, H, W), normalised."""
Logits = npt.NDArray[np.float32]
"""(K, h, w) on the grid of the head, or of a batch (B, K, h, w)."""
ClassMap = npt.NDArray[np.uint8]
"""(H, W): the class id of each pixel of an image."""
Answer = Any
"""What a model answers: logits (B, K, h, w) float32, of a classifier (B, K); of a backbone without a head a dict of its
feature maps `out0`, `out1`, ..."""

Filled = Literal["hold", "warp"]
"""How a frame gets its answer that does not run: that of the last one that ran, as it is, or moved along."""

TOP = 5
"""Classes of an answer, where the model has as many."""


@dataclass(frozen=True)
class RunTiming:
    """Milliseconds of one session run: the model and each of its stages."""

    model: float
    stages: tuple[float, ...]


@dataclass(frozen=True)
class TokenReport:
    """What one run of a session did with the tokens of one image, and what it cost.

    MACs as `families/cost.py` counts them; `gmacs_*` in 10^9.
    """

    kept: tuple[int, ...]
    """Tokens that entered each stage, extra tokens included."""
    gmacs_dense: float
    gmacs_actual: float
    keep: tuple[npt.NDArray[np.bool_], ...]
    """Per gate, (h, w): still running after it; monotone from gate to gate. Of models with fixed counts: per choice of
    tokens inside the graph, on the choice's own grid, which were taken."""
    confidence: tuple[npt.NDArray[np.float32], ...]
    """Per gate, (h, w), NaN where the head was not evaluated."""
    timing: RunTiming
    capped: int = 0
    """Tokens that the gates let on and a deadline stopped."""
    compiled: int = 0
    """Graphs that the engine loaded, and sizes that it compiled, for this run or another one meanwhile; all later runs
    are faster."""

    @property
    def flops_saved(self) -> float:
        """1 - actual / dense; negative when auxiliary heads cost more than was saved."""
        return 1.0 - self.gmacs_actual / self.gmacs_dense


@dataclass(frozen=True)
class ShownPicture:
    """One of the pictures in which a page shows a frame: "input", "mask", "exit depth"."""

    name: str
    rgb: npt.NDArray[np.uint8]
    """(H, W, 3), as large as the frame."""
    flat: bool = False
    """Areas of one colour, which are not mixed when it is made smaller."""


@dataclass(frozen=True)
class Window:
    """One window of an image: its rectangle in the model's input, in pixels, and its report."""

    top: int
    left: int
    height: int
    width: int
    report: TokenReport


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, in its pixels; borders may be between pixels."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class FrameTokens:
    """Tokens and MACs of a whole image: sums over its windows."""

    windows: tuple[Window, ...]
    input_size: tuple[int, int]
    """Height and width of the image as the windows saw it, in pixels."""
    patch: int = 16
    """Side of a patch in those pixels."""
    pads: tuple[int, int] = (0, 0)
    """Rows and columns by which the first patch of each window begins before it."""
    region: Region | None = None
    """The part of the image that the windows saw; None: all of it."""
    still: bool = False
    """Nothing was computed: the image equals the one before, and the windows are those of the former."""
    filled: Filled | None = None
    """How the answer came from the last frame that ran, whose windows these are; None: it did not."""

    @property
    def computed(self) -> bool:
        """Whether the model ran for this image."""
        return not self.still and self.filled is None

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens that entered each stage."""
        return tuple(sum(counts) for counts in zip(*(w.report.kept for w in self.windows), strict=True))

    @property
    def total(self) -> int:
        """All tokens; equals `kept[0]`."""
        return self.kept[0]

    @property
    def capped(self) -> int:
        """Tokens that the gates let on and a deadline stopped."""
        return sum(w.report.capped for w in self.windows) if self.computed else 0

    @property
    def compiled(self) -> int:
        """Graphs that the engine loaded, and sizes that it compiled, while the image ran."""
        return sum(w.report.compiled for w in self.windows) if self.computed else 0

    @property
    def gmacs_dense(self) -> float:
        """10^9 MACs with nothing stopped and no gates."""
        return sum(w.report.gmacs_dense for w in self.windows)

    @property
    def gmacs_actual(self) -> float:
        """10^9 MACs that were computed."""
        return sum(w.report.gmacs_actual for w in self.windows) if self.computed else 0.0

    @property
    def flops_saved(self) -> float:
        """1 - actual / dense."""
        return 1.0 - self.gmacs_actual / self.gmacs_dense


@dataclass(frozen=True)
class FrameTiming:
    """Milliseconds of one frame from file to class map."""

    decode: float
    preprocess: float
    model: float
    postprocess: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.decode + self.preprocess + self.model + self.postprocess


@dataclass(frozen=True)
class Palette:
    """Names and colours of the classes, for painting."""

    names: tuple[str, ...]
    colors: npt.NDArray[np.uint8] = field(repr=False)
    """(K, 3) uint8 RGB."""


@dataclass(frozen=True)
class ClassScore:
    """A class and how probable the model holds it, 0..1."""

    id: int
    name: str
    probability: float


def probabilities_from_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax over all classes, (K,) -> (K,).

    Raises:
        CheckError: a logit is NaN or infinite, so the network's arithmetic has broken down.
    """
    if not np.isfinite(logits).all():
        raise CheckError(
            "the model's logits are not finite: its arithmetic overflows at this precision; try --precision fp32"
        )
    # Shifted by the largest, so that no power overflows.
    raised = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def most_probable(probabilities: npt.NDArray[np.float64], *, top: int) -> npt.NDArray[np.intp]:
    """The ids of the `top` most probable classes, or of all; of equals the lower id comes first: (min(top, K),)."""
    # Stable, so that equals keep the order of their ids.
    return np.argsort(-probabilities, kind="stable")[:top]


def scores_from_probabilities(
    probabilities: npt.NDArray[np.float64], names: Sequence[str], *, top: int = TOP
) -> tuple[ClassScore, ...]:
    """The `top` most probable classes, the most probable first."""
    return tuple(
        ClassScore(int(number), names[number], float(probabilities[number]))
        for number in most_probable(probabilities, top=top)
    )
