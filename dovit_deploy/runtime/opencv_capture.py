"""Open a file, stream or camera with OpenCV: silently, in bounded time, with its rate as a fraction."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 15_000
_ASSUMED_RATE = Fraction(25)
_NTSC_DENOMINATOR = 1001


def opened_capture(cv2: Any, what: str | int) -> Any:  # noqa: ANN401
    """`cv2.VideoCapture` of an address or camera index; `isOpened()` tells whether it worked.

    OpenCV writes lines of its own to stderr when it does not; our error says it once (`packages` silences the FFmpeg
    inside).
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(what, int):
            return cv2.VideoCapture(what)
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        return cv2.VideoCapture(what, cv2.CAP_FFMPEG, timeouts)
    finally:
        cv2.utils.logging.setLogLevel(level)


def rate_from_capture(cv2: Any, capture: Any) -> Fraction:  # noqa: ANN401
    """Frames per second; OpenCV gives a float, of which 30000/1001 and its like are recovered."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not 0 < rate < 1e6:
        return _ASSUMED_RATE
    return Fraction(rate).limit_denominator(_NTSC_DENOMINATOR)
