"""Write pictures as MPEG-4 Part 2 with OpenCV: the way where PyAV is not installed.

No sound, a constant rate, and the rate as a float; each loss is said in a warning.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from dovit_deploy import packages
from dovit_deploy.errors import EncoderMissing
from dovit_deploy.runtime.closing import Closing
from dovit_deploy.runtime.results import RGB
from dovit_deploy.runtime.video_padding import EvenPadding

_CODEC = "mp4v"


class OpencvVideoWriter(Closing):
    """As `open_video_writer`.

    Raises:
        EncoderMissing: OpenCV is missing, or this build cannot encode, or not pictures of this size.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], rate: Fraction, wants_audio: bool) -> None:
        loss = " without sound," if wants_audio else ""
        self.warnings = [
            f"{path.name}: written with OpenCV as MPEG-4 ({_CODEC}),{loss} at a constant rate, because PyAV is not "
            "installed; for H.264, sound and exact times: pip install 'dovit-deploy[video]'"
        ]
        self._cv2 = packages.opencv()
        self._padding = EvenPadding(size)
        self._path = path
        self._written = 0
        width_height = (self._padding.width, self._padding.height)
        fourcc = self._cv2.VideoWriter.fourcc(*_CODEC)
        self._writer = self._cv2.VideoWriter(str(path.absolute()), fourcc, float(rate), width_height)
        if not self._writer.isOpened():
            self._writer.release()
            path.unlink(missing_ok=True)
            raise EncoderMissing(
                f"{path}: OpenCV cannot encode {width_height[0]}x{width_height[1]} as {_CODEC}; "
                "install PyAV: pip install 'dovit-deploy[video]', or save masks instead (--save masks)"
            )

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Encode one picture; its time cannot be kept, only its place.

        Raises:
            ValueError: `rgb` is not of the announced size.
        """
        del time_s
        self._writer.write(self._cv2.cvtColor(self._padding.padded(rgb), self._cv2.COLOR_RGB2BGR))
        self._written += 1

    def close(self) -> None:
        """Finish the file; without a single picture no file is left; may be called twice."""
        self._writer.release()
        if not self._written:
            self._path.unlink(missing_ok=True)
