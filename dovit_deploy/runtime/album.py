"""Which frames of a run are kept as pictures, however many there are? Some evenly spread, the hardest, the easiest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem
from dovit_deploy.pages.page import Colors, Picture, Still
from dovit_deploy.runtime.legend import ClassShare
from dovit_deploy.runtime.lettering import Color
from dovit_deploy.runtime.results import Filled, ShownPicture
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.sources.source import RGB

MOST_EVEN = 16
"""Frames that are kept evenly spread; at least half as many of a longer run."""
EXTREMES = 3
"""Hardest frames that are kept, and easiest."""
FILLED_HOW: dict[Filled, str] = {"hold": "answer held", "warp": "answer moved along"}
"""What a page says of frames that took the answer of the last one that ran."""
APART_S = 1.0
"""Seconds of a video between two of these: neighbours are hard alike."""
LONGER_SIDE = 480
"""Of a picture, in pixels."""
JPEG_QUALITY = 80
STILL_BYTES = 85_000
"""Of all pictures of a frame: a page of 22 frames, where three bytes become four letters, is smaller than 3 MB."""
COARSER = ((LONGER_SIDE, JPEG_QUALITY), (LONGER_SIDE, 60), (400, 50), (320, 40), (240, 30), (160, 20))
"""Longer side and quality, taken in this order until the pictures of a frame are small enough."""


@dataclass
class Extremes:
    """The frames with the highest or lowest cost so far, in a video a second apart."""

    sign: int
    """1: the hardest, -1: the easiest."""
    apart_s: float
    kept: list[tuple[float, float, Still]] = field(default_factory=list)
    """Signed cost, time in seconds and the frame; the most extreme first."""

    def wants(self, gmacs: float, time_s: float) -> bool:
        """Whether a frame would be kept."""
        cost = self.sign * gmacs
        near = [kept for kept, time, _ in self.kept if abs(time - time_s) < self.apart_s]
        if near:
            return cost > max(near)
        return len(self.kept) < EXTREMES or cost > self.kept[-1][0]

    def put(self, gmacs: float, time_s: float, still: Still) -> None:
        """Keep a frame that is wanted; what it takes the place of goes."""
        others = [entry for entry in self.kept if abs(entry[1] - time_s) >= self.apart_s]
        others.append((self.sign * gmacs, time_s, still))
        self.kept = sorted(others, key=lambda entry: -entry[0])[:EXTREMES]

    def __iter__(self) -> Iterator[Still]:
        return (still for _, _, still in self.kept)


class Album:
    """Pictures of some frames and the classes' shares of all, in memory of one size for runs of any length.

    Args:
        video: its frames follow each other; images do not.
    """

    def __init__(self, *, video: bool) -> None:
        self._video = video
        apart = APART_S if video else 0.0
        self.hardest, self.easiest = Extremes(1, apart), Extremes(-1, apart)
        self._even: list[tuple[int, Still]] = []
        self._step = 1
        self._number = 0
        self._areas: defaultdict[int, float] = defaultdict(float)
        self._classes: dict[int, tuple[str, Color]] = {}
        self.key: tuple[tuple[str, Color], ...] = ()
        """What the colours of the exit map stand for."""

    @property
    def even(self) -> tuple[Still, ...]:
        """Those that are evenly spread, in their order."""
        return tuple(still for _, still in self._even)

    @property
    def shares(self) -> tuple[ClassShare, ...]:
        """Classes with their mean share of the pixels, the largest first; none where the answer is no map."""
        largest_first = sorted(self._areas.items(), key=lambda entry: -entry[1])
        return tuple(ClassShare(number, *self._classes[number], area / self._number) for number, area in largest_first)

    def add(self, row: dict[str, Any], result: ImageResult) -> None:
        """Take a frame into account, in the order of the run."""
        number, gmacs = self._number, row["gmacs"]["actual"]
        time_s: float = row["time_s"] if self._video else number
        self._number += 1
        for share in result.shares():
            self._areas[share.id] += share.share
            self._classes[share.id] = (share.name, share.color)
        if not self.key:
            self.key = result.token_key()
        # A frame that repeats another computed nothing: it is as hard as that one.
        extremes = () if row.get("still") or "filled" in row else (self.hardest, self.easiest)
        takers = [extreme for extreme in extremes if extreme.wants(gmacs, time_s)]
        evenly = number % self._step == 0
        if not (takers or evenly):
            return
        still = self._still(row, result)
        for taker in takers:
            taker.put(gmacs, time_s, still)
        if evenly:
            self._even.append((number, still))
        if len(self._even) > MOST_EVEN:
            self._step *= 2
            self._even = [entry for entry in self._even if entry[0] % self._step == 0]

    def _still(self, row: dict[str, Any], result: ImageResult) -> Still:
        name = f"frame {row['index']} at {row['time_s']:.2f} s" if self._video else row["source"]
        facts = (
            f"{row['flops_saved']:z.1%} of the FLOPs saved ({row['gmacs']['actual']:.2f} GMACs), "
            f"{row['latency_ms']['total']:.1f} ms"
        )
        if "filled" in row:
            facts = f"did not run, {FILLED_HOW[row['filled']]}"
        return Still(name, facts, encoded_together(result.pictures()))


def token_colors(key: tuple[tuple[str, Color], ...]) -> Colors:
    """What the colours of the last pictures stand for, as a part of a page."""
    return Colors("Exit depth" if len(key) > 1 else "Tokens", key)


def encoded_together(shown: Sequence[ShownPicture], *, most: int = STILL_BYTES) -> tuple[Picture, ...]:
    """The pictures of a frame, all as fine as each other, and as coarse as it takes to be `most` bytes together."""
    pictures = tuple[Picture, ...]()
    for longer, quality in COARSER:
        pictures = tuple(Picture(one.name, encoded(one, longer=longer, quality=quality)) for one in shown)
        if sum(len(picture.content) for picture in pictures) <= most:
            break
    return pictures


def encoded(shown: ShownPicture, *, longer: int = LONGER_SIDE, quality: int = JPEG_QUALITY) -> bytes:
    """A picture as it lies in a page: flat colours as PNG, others as JPEG, at most `longer` pixels wide or high."""
    cv2 = packages.opencv()
    rgb = _reduced(shown.rgb, longer, flat=shown.flat)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9] if shown.flat else [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, content = cv2.imencode(".png" if shown.flat else ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise EnvironmentProblem(f"OpenCV cannot encode an image of {rgb.shape[1]}x{rgb.shape[0]}")
    return bytes(content.tobytes())


def _reduced(rgb: RGB, longer: int, *, flat: bool) -> RGB:
    cv2 = packages.opencv()
    scale = longer / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    size = tuple(max(1, round(side * scale)) for side in (rgb.shape[1], rgb.shape[0]))
    # Colours of classes are not mixed.
    return cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)  # type: ignore[no-any-return]
