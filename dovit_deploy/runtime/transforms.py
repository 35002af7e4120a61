"""Image in, class map out: what is done before and after the model, the way each family's own code does it.

Sources: mmsegmentation's test pipeline (OpenCV's bilinear resize of 0..255, then mean and std; logits to the input,
then to the image) and Segmenter's (logits to the padded input, cropped). Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.manifest import Manifest, Preprocessing
from dovit_deploy.errors import ConfigError, InputError
from dovit_deploy.families.spec import Size
from dovit_deploy.runtime.class_map import Axis, class_map, stretched_class_map
from dovit_deploy.runtime.given import check_rgb
from dovit_deploy.runtime.results import ClassMap, Logits, Pixels, Region
from dovit_deploy.sources.source import RGB

Cover = Literal["image", "padded"]

LONGEST_STRIP = 16
"""Of an image longer than so many times its shorter side the middle is taken first: a strip of one row would be
enlarged to an image that fills the memory."""
LONGEST_ENLARGED = 8
"""Windows that an enlarged side may measure; an image of one row would fill the memory otherwise."""


def to_input(rgb: RGB, preprocessing: Preprocessing, size: Size) -> Pixels:
    """An image as the model takes it.

    Without a stride the image is resized to `size`. With one it keeps its own size, and is only enlarged, keeping
    its proportions, until both sides reach `size`. With a crop its shorter side is resized and its centre cut out.

    Args:
        rgb: (H, W, 3) uint8.
        preprocessing: the manifest's.
        size: the model's.

    Returns:
        (1, 3, h, w) float32, normalised.

    Raises:
        InputError: not an (H, W, 3) uint8 array.
    """
    check_rgb(rgb)
    cv2 = packages.opencv()
    fitted = _fitted(rgb, preprocessing, size)
    pixels = np.empty((1, 3, *fitted.shape[:2]), dtype=np.float32)
    # 256 values per channel: looking up is exact, and faster than the arithmetic.
    values = np.arange(256)
    for channel, plane in enumerate(cv2.split(fitted)):
        table = (values - preprocessing.mean[channel]) / preprocessing.std[channel]
        cv2.LUT(plane, table.astype(np.float32), dst=pixels[0, channel])
    return pixels


def whole_input(rgb: RGB, manifest: Manifest) -> Pixels:
    """(1, 3, H, W) at the model's size, also for models whose larger images would slide: one frame is one run."""
    # Without a stride `to_input` resizes.
    whole = manifest.preprocessing.model_copy(update={"stride": None})
    return to_input(rgb, whole, manifest.spec.size)


def _fitted(rgb: RGB, preprocessing: Preprocessing, size: Size) -> RGB:
    """The image at the size that the model, or its windows, see: (h, w, 3) uint8."""
    if preprocessing.crop is not None:
        return centre_crop(rgb, shorter=preprocessing.crop.shorter, size=size)
    height, width = size if preprocessing.stride is None else sliding_size(rgb.shape[:2], size)
    # OpenCV refuses some views, as of a flipped image.
    rgb = np.ascontiguousarray(rgb)
    if rgb.shape[:2] == (height, width):
        return rgb
    cv2 = packages.opencv()
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR))


def sliding_size(image: Size, window: Size) -> Size:
    """The size at which windows slide over an image: its own, or enlarged until both sides reach the window.

    Proportions are kept unless a side would have to be enlarged to more than `LONGEST_ENLARGED` windows.
    """
    scale = max(1.0, window[0] / image[0], window[1] / image[1])
    longest = [max(own, LONGEST_ENLARGED * side) for own, side in zip(image, window, strict=True)]
    # Halves are rounded up, as in mmcv; `round` would take them to the even side.
    wanted = [max(side, int(own * scale + 0.5)) for own, side in zip(image, window, strict=True)]
    return min(wanted[0], longest[0]), min(wanted[1], longest[1])


def window_count(image: Size, preprocessing: Preprocessing, size: Size) -> int:
    """How many windows of `size` slide over an image of (height, width); 1 where images are resized.

    Raises:
        ConfigError: the stride leaves gaps, or is not positive.
    """
    if preprocessing.stride is None:
        return 1
    return len(windows(*sliding_size(image, size), size, preprocessing.stride))


def windows(height: int, width: int, size: Size, stride: Size) -> tuple[tuple[int, int], ...]:
    """Top and left corner of each window over an input of (height, width), in raster order, by mmsegmentation's rule.

    The last window of each row and column is shifted back so that it ends at the border.

    Raises:
        InputError: a side is smaller than the window.
        ConfigError: the stride leaves gaps, or is not positive.
    """
    if height < size[0] or width < size[1]:
        raise InputError(f"input {height}x{width} is smaller than the window {size[0]}x{size[1]}")
    if not (0 < stride[0] <= size[0] and 0 < stride[1] <= size[1]):
        raise ConfigError(
            f"stride {stride[0]}x{stride[1]}: each side must be between 1 and the window's {size[0]}x{size[1]}"
        )
    tops = _corners(height, size[0], stride[0])
    return tuple((top, left) for top in tops for left in _corners(width, size[1], stride[1]))


def _corners(length: int, window: int, stride: int) -> list[int]:
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(number * stride, length - window) for number in range(count)]


def covered_size(input_size: Size, *, cover: Cover, patch: int) -> Size:
    """What the logits' grid is stretched over: the input, or the input padded right and bottom to whole patches."""
    if cover == "image":
        return input_size
    return math.ceil(input_size[0] / patch) * patch, math.ceil(input_size[1] / patch) * patch


def resize_logits(logits: Logits, size: Size) -> Logits:
    """(K, h, w) to (K, *size), bilinear with half-pixel centres and without antialiasing (`align_corners=False`)."""
    if logits.shape[1:] == size:
        return logits
    cv2 = packages.opencv()
    resized = np.empty((len(logits), *size), dtype=np.float32)
    for source, target in zip(np.ascontiguousarray(logits), resized, strict=True):
        cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def logits_at_input(logits: Logits, input_size: Size, *, cover: Cover, patch: int) -> Logits:
    """The head's logits (K, h, w) at the size of the model's input: (K, *input_size)."""
    stretched = resize_logits(logits, covered_size(input_size, cover=cover, patch=patch))
    return stretched[:, : input_size[0], : input_size[1]]


def to_class_map(logits: Logits, input_size: Size, image_size: Size, *, cover: Cover, patch: int) -> ClassMap:
    """The class of each pixel of the image; of equal logits the lowest class, as argmax has it.

    Equal to resizing the logits to the input (padded and cropped where `cover` says so), then to the image, then
    taking the argmax; both resizes are done as one.

    Args:
        logits: (K, h, w) float32, as the head gives them; K at most 256.
        input_size: of the model's input, unpadded.
        image_size: of the image.
        cover: what the logits' grid is stretched over.
        patch: side of a patch in pixels, to which the input is padded.

    Returns:
        (H, W) uint8 in the image's own pixels.
    """
    canvas = covered_size(input_size, cover=cover, patch=patch)
    # Nothing is stretched, so the two matrices would be identities.
    if logits.shape[1:] == canvas == input_size == image_size:
        return class_map(logits)
    rows, columns = (
        Axis(grid=grid, canvas=over, visible=visible, size=size)
        for grid, over, visible, size in zip(logits.shape[1:], canvas, input_size, image_size, strict=True)
    )
    return stretched_class_map(logits, rows, columns)


@dataclass(frozen=True)
class _Axis:
    """One axis: `kept` pixels of the image from `first` on become `resized`, of which `cut` from `start` on stay."""

    first: int
    kept: int
    resized: int
    start: int
    cut: int

    @property
    def kept_span(self) -> tuple[float, float]:
        """First pixel and number of pixels of the image that stay."""
        scale = self.kept / self.resized
        return self.first + self.start * scale, self.cut * scale


def centre_crop(rgb: RGB, *, shorter: int, size: Size) -> RGB:
    """The centre of an image whose shorter side was resized to `shorter` pixels.

    As DeiT, LeViT and Swin are evaluated: torchvision's `Resize(shorter, bicubic)` and `CenterCrop` on a Pillow image.
    Pillow's bicubic (a = -0.5) is as wide as the reduction, so it does not alias; OpenCV's is another one and does.

    Args:
        rgb: (H, W, 3) uint8.
        shorter: at least as large as both sides of `size`.
        size: of the result.

    Returns:
        (*size, 3) uint8, equal to Pillow's resize and torchvision's crop; a new array.
    """
    pillow = packages.pillow()
    rows, columns = _axes(rgb.shape[:2], shorter, size)
    # Cut first, so that not the whole of a long strip is enlarged.
    middle = rgb[rows.first : rows.first + rows.kept, columns.first : columns.first + columns.kept]
    image = pillow.fromarray(np.ascontiguousarray(middle))
    resized = image.resize((columns.resized, rows.resized), pillow.Resampling.BICUBIC)
    box = columns.start, rows.start, columns.start + columns.cut, rows.start + rows.cut
    return np.array(resized.crop(box), dtype=np.uint8)


def crop_region(image: Size, *, shorter: int, size: Size) -> Region:
    """The rectangle that `centre_crop` takes out of an image of the size `image`, in its pixels."""
    (top, height), (left, width) = (axis.kept_span for axis in _axes(image, shorter, size))
    return Region(top, left, height, width)


def _axes(image: Size, shorter: int, size: Size) -> tuple[_Axis, _Axis]:
    least = min(image)
    rows, columns = (
        _axis(length, least=least, shorter=shorter, cut=cut) for length, cut in zip(image, size, strict=True)
    )
    return rows, columns


def _axis(length: int, *, least: int, shorter: int, cut: int) -> _Axis:
    kept = min(length, LONGEST_STRIP * least)
    # Both roundings are torchvision's: the longer side is truncated, half a pixel of the border goes to the even side.
    resized = shorter * kept // least
    return _Axis((length - kept) // 2, kept, resized, round((resized - cut) / 2), cut)
