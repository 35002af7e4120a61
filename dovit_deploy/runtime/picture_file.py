"""A painted picture as a PNG file, to be looked at rather than archived."""

from __future__ import annotations

from pathlib import Path

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem
from dovit_deploy.runtime.results import RGB


def save_picture(path: Path, rgb: RGB) -> None:
    """Write `rgb` (H, W, 3) uint8 to `path`, as fast as PNG can be written.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    cv2 = packages.opencv()
    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise EnvironmentProblem(f"OpenCV cannot encode {path.name} as PNG")
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror or error}") from error
