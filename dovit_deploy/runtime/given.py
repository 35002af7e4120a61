"""What did a Python caller give? Images and pixels in the forms that people have them, or an error that names the form.

image    (H, W, 3) uint8, red first; a path; a Pillow image    -> RGB
pixels   float32 of the shape that a model takes, all finite
number   a real number within a range; True and "0.9" are none
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from dovit_deploy.credentials import masked
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.sources.images import read_image, rgb_from_pillow
from dovit_deploy.sources.source import RGB

Image = Any
"""(H, W, 3) uint8, a path, or a Pillow image; the last is not installed everywhere, so it has no type here."""

SEVERAL = (list, tuple)
"""What counts as several images; an array of four axes does not, since only (H, W, 3) is an image."""
NEEDED = "RGB as uint8 of shape (H, W, 3), a path, or a Pillow image needed"


def image_from(given: Image) -> tuple[RGB, float]:
    """The image (H, W, 3) uint8, upright, and the milliseconds that decoding it took.

    Raises:
        InputError: none of the three; or the file cannot be read (SourceError).
    """
    start = perf_counter()
    if isinstance(given, str | os.PathLike):
        if "://" in str(given):
            raise InputError(f"image: {masked(str(given))} is an address; give a file, or open it with `dovit run`")
        rgb = read_image(Path(given))
    elif _comes_from(given, "PIL"):
        rgb = rgb_from_pillow(given)
    else:
        check_rgb(given)
        return given, 0.0
    return rgb, 1e3 * (perf_counter() - start)


def check_rgb(given: object) -> None:
    """Raise InputError unless it is an (H, W, 3) uint8 array; the message says what makes one of it."""
    fits = isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 3 and given.shape[2] == 3
    if not (fits and isinstance(given, np.ndarray) and given.size):
        raise InputError(f"image: {described(given)} given, {NEEDED}{_remedy(given)}")


def check_pixels_array(given: object, shape: str) -> None:
    """Raise InputError unless it is float32 of four axes, all finite; `shape` says in messages which are meant."""
    if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.ndim != 4:
        if _comes_from(given, "torch"):
            remedy = "; give tensor.detach().cpu().numpy()"
        else:
            other_type = isinstance(given, np.ndarray) and given.ndim == 4
            remedy = "; give pixels.astype(numpy.float32)" if other_type else ""
        raise InputError(f"pixels: {described(given)} given, float32 of shape {shape} needed{remedy}")
    # The sum is finite exactly if every value is: cheaper than asking each.
    if not np.isfinite(given.sum(dtype=np.float64)):
        raise InputError("pixels hold NaN or infinite values; they are (image - mean) / std of an image in 0..255")


def number_within(value: object, name: str, low: float, high: float) -> float:
    """A real number in [low, high]; raises UsageError otherwise, also for NaN, booleans and text."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise UsageError(f"{name}: {described(value)} given, a number from {low:g} to {high:g} needed")
    number = float(value)
    # Written so that NaN is refused too.
    if not low <= number <= high:
        raise UsageError(f"{name} {number:g} is outside [{low:g}, {high:g}]")
    return number


def path_from(given: object) -> Path:
    """A path to write to; raises UsageError for what is none."""
    if not isinstance(given, str | os.PathLike):
        raise UsageError(f"path: {described(given)} given, a path is needed")
    return Path(given)


def described(value: object) -> str:
    """Type, shape and range of what was given, for messages: "float64 of shape (2, 2, 3), values 0 to 1"."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}{_range(value)}"
    if _comes_from(value, "torch"):
        return f"a torch tensor of shape {tuple(getattr(value, 'shape', ()))}"
    return f"{str(value)[:80]!r}" if isinstance(value, str) else type(value).__name__


def _range(values: np.ndarray[Any, Any]) -> str:
    if values.dtype.kind != "f" or not values.size:
        return ""
    if not np.isfinite(values).all():
        return ", with NaN or infinite values"
    return f", values {values.min():g} to {values.max():g}"


def _remedy(given: object) -> str:
    """The line that makes an image of what was given; "" where there is none."""
    tensor = _comes_from(given, "torch")
    shape: Sequence[int] = tuple(getattr(given, "shape", ()))
    if isinstance(given, bytes | bytearray) or hasattr(given, "read"):
        return "; open it with Pillow, or save it and give the path"
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.size:
        if given.ndim == 2:
            return "; give numpy.stack([image] * 3, axis=-1)"
        if given.ndim == 3 and given.shape[2] == 4:
            return "; give image[:, :, :3]"
    if not (tensor or isinstance(given, np.ndarray)) or len(shape) != 3:
        return "; several images are given as a list" if len(shape) == 4 else ""
    first = shape[0] == 3 != shape[2]
    if tensor:
        permuted = ".permute(1, 2, 0)" if first else ""
        return f"; give tensor{permuted}.cpu().numpy(), as uint8 (times 255 where it is 0 to 1)"
    transposed = ".transpose(1, 2, 0)" if first else ""
    if isinstance(given, np.ndarray) and given.dtype.kind == "f" and np.isfinite(given).all():
        scale = " * 255" if given.size and given.max() <= 1 else ""
        return f"; give (image{transposed}{scale}).round().astype(numpy.uint8)"
    return f"; give image{transposed}" if transposed else ""


def _comes_from(value: object, package: str) -> bool:
    # By the name of the module, so that nothing is imported that the caller does not have.
    return any(base.__module__.split(".")[0] == package for base in type(value).__mro__)
