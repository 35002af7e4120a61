"""The README's strip: a frame, its classes, where its tokens stopped. Only rendered streets are shown.

python docs/make_images.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dovit_deploy import Bundle, Predictor, Session
from dovit_deploy.runtime.legend import draw_legend
from dovit_deploy.runtime.token_maps import KEY_BACKGROUND
from dovit_scenes import street_frames

TARGET = Path(__file__).parent / "images" / "strip.png"
MODELS = Path(__file__).parent.parent / "models"


def default_bundle() -> Path:
    """That of the default model which is being released: it need not be the installed one."""
    projects = MODELS.glob("*/pyproject.toml")
    (name,) = (path.parent.name for path in projects if "\ndefault = " in path.read_text(encoding="utf-8"))
    return MODELS / name / f"dovit_model_{name.replace('-', '_')}" / f"{name}.dovit"


def main() -> None:
    """Write the strip."""
    frame = list(street_frames(12, seed=7, size=(360, 480), density=0.6))[-1]
    with Session(Bundle.open(default_bundle())) as session:
        result = Predictor(session).predict(frame.rgb)
    overlay, tokens = result.plot(), result.plot_tokens()
    draw_legend(overlay, result.shares())
    # The key of the exit map stands below it, and the others are as high.
    room = ((0, len(tokens) - len(overlay)), (0, 0), (0, 0))
    below = [np.pad(image, room, constant_values=KEY_BACKGROUND) for image in (frame.rgb, overlay)]
    strip = np.concatenate([*below, tokens], axis=1)
    TARGET.parent.mkdir(exist_ok=True)
    Image.fromarray(strip).quantize(256).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
