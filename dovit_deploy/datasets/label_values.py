"""Which numbers does the file of a label map store?

Decoders show images to the eye: of 4 bits they give 0, 17, 34, ... where the file says 0, 1, 2. Labels are the numbers
themselves, whatever their bit depth; of an indexed file they are the indices, its palette is for the eye alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.errors import SourceError
from dovit_deploy.sources.images import opened_image

_CHANGING = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
"""Formats, by Pillow's names, whose compression may change values; a changed id is another class."""
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_SCALES = {"L;2": 85, "L;4": 17}
"""By which factor Pillow stretches values of 2 and 4 bits to 8, by the name it has for how they are stored."""


def stored_values(path: Path) -> NDArray[Any]:
    """The numbers in the label file at `path`: (H, W), uint8, or wider integers of a file of more bits.

    Raises:
        SourceError: it cannot be decoded, is in a format that changes values, or holds colours.
    """
    with opened_image(path) as image:
        if image.format in _CHANGING:
            name = "JPEG" if image.format == "MPO" else image.format
            raise SourceError(f"{path}: this label is a {name}, which changes class ids; save labels as PNG")
        # Known until the image is decoded.
        raw_mode = _raw_mode(image)
        if image.mode not in _MODES:
            raise SourceError(
                f"{path}: a label must be a grey or indexed PNG whose pixel values are class ids, this is {image.mode}"
            )
        return _as_stored(np.array(image), raw_mode)


def _as_stored(values: NDArray[Any], raw_mode: str) -> NDArray[Any]:
    """`values` as Pillow gives them, brought back to what the file says."""
    white = np.uint8(255)
    if values.dtype == np.bool_:
        values, white = values.astype(np.uint8), np.uint8(1)
    depth = raw_mode.removesuffix("R").removesuffix("I").removesuffix(";")
    # TIFF may call 0 white, which Pillow turns round.
    if values.dtype == np.uint8 and raw_mode.removesuffix("R").endswith((";I", "2I", "4I")):
        values = white - values
    return values // np.uint8(_SCALES[depth]) if depth in _SCALES else values


def _raw_mode(image: Any) -> str:  # noqa: ANN401
    """How the file stores its values, as Pillow's decoders are told, as "L;4"; empty where no decoder is."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
