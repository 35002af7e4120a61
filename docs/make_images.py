"""The README's strip: a frame, its classes, where its tokens stopped. Only rendered streets are shown.

python docs/make_images.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dovit_deploy import Bundle, Predictor, Session
from dovit_scenes import street_frames

TARGET = Path(__file__).parent / "images" / "strip.png"


def main() -> None:
    """Write the strip."""
    frame = list(street_frames(12, seed=7, size=(360, 480), density=0.6))[-1]
    with Session(Bundle.open("default")) as session:
        result = Predictor(session).predict(frame.rgb)
    strip = np.concatenate([frame.rgb, result.plot(), result.plot_tokens()], axis=1)
    TARGET.parent.mkdir(exist_ok=True)
    Image.fromarray(strip).quantize(256).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
