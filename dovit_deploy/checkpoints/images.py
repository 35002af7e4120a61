"""What does a network expect of its images, and what are its classes called?

Mean, standard deviation, class names and colours are the caller's, else the configuration's, else those in the
checkpoint's meta, else assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dovit_deploy.bundle.manifest import ClassEntry, check_number, entries_from_lists
from dovit_deploy.checkpoints.settings import Section
from dovit_deploy.errors import ConfigError, UsageError

Triple = tuple[float, float, float]
"""One number each for red, green and blue."""
IMAGENET: tuple[Triple, Triple] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and standard deviation in 0..255."""
HALF: tuple[Triple, Triple] = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""Of Segmenter's models that start from Google's ViT ("vit")."""
IMAGE_SETTINGS = frozenset(
    {
        *("data_preprocessor", "img_norm_cfg", "classes", "palette", "CLASSES", "PALETTE"),
        *("metainfo", "dataset_meta"),
    }
)
"""Settings that any reader knows."""
_PREPROCESSOR = frozenset(
    {
        *("type", "mean", "std", "bgr_to_rgb", "rgb_to_bgr", "pad_val", "seg_pad_val", "size", "size_divisor"),
        *("test_cfg", "batch_augments", "to_rgb"),
    }
)


def mean_and_std(
    settings: Mapping[str, object], *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Triple, Triple, bool]:
    """Mean and standard deviation for an RGB image of 0..255, and whether they are merely assumed.

    Args:
        settings: of the configuration.
        mean: the caller's, which takes precedence.
        std: the caller's; given together with `mean` or not at all.

    Raises:
        UsageError: only one of `mean` and `std` is given, or they are not three numbers each.
        ConfigError: the configuration's are not three numbers each, or not in the order red, green, blue.
    """
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    if mean is not None and std is not None:
        return *_checked(mean, std, UsageError("--mean and --std need three numbers each, --std above 0")), False
    section = Section("", settings)
    for key in ("data_preprocessor", "img_norm_cfg"):
        stated = section.section(key)
        if stated is not None and (stated.values.get("mean") is not None or stated.values.get("std") is not None):
            stated.only(_PREPROCESSOR)
            # A network fed with blue first would need its own kind of preprocessing; none of the sources has one.
            stated.must_all_be({"bgr_to_rgb": (True,), "to_rgb": (True,), "rgb_to_bgr": (False,)})
            wrong = ConfigError(f"'{key}' needs 'mean' and 'std' of three numbers each, 'std' above 0")
            return *_checked(stated.numbers("mean") or (), stated.numbers("std") or (), wrong), False
    named = _normalization(section)
    return *(named or IMAGENET), named is None


def _checked(mean: Sequence[float], std: Sequence[float], wrong: Exception) -> tuple[Triple, Triple]:
    # False for NaN, too. Even 16-bit pixels stay below the limit.
    finite = all(abs(value) < 1e6 for value in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not finite or min(std) < 1e-6:
        raise wrong
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _normalization(section: Section) -> tuple[Triple, Triple] | None:
    """Segmenter's name for a mean and standard deviation."""
    # variant.yml has it in two parts; the data set's is the one that the source's inference reads.
    for part in (section.section("dataset_kwargs"), section):
        name = part.text("normalization") if part is not None else None
        if name is not None and part is not None:
            part.must_be("normalization", "vit", "deit")
            return HALF if name == "vit" else IMAGENET
    return None


def class_entries(
    settings: Mapping[str, object],
    meta: Mapping[str, object],
    count: int,
    *,
    given: Sequence[ClassEntry] | None,
) -> tuple[ClassEntry, ...]:
    """`count` classes with names and colours; generated where no source has any.

    Raises:
        InputError: the caller's are not `count`.
        ConfigError: the configuration's or the meta's are not `count`, or no names and colours.
    """
    if given is not None:
        return check_number(given, count)
    if count == 0:
        # A backbone, whose features some detector's head will turn into classes of its own.
        return ()
    # In capitals as mmsegmentation wrote them before mmengine.
    names = _first_list(settings, meta, ("classes", "CLASSES"))
    colors = _first_list(settings, meta, ("palette", "PALETTE"))
    return entries_from_lists(names, colors, count, ConfigError)


def _first_list(
    settings: Mapping[str, object], meta: Mapping[str, object], keys: tuple[str, ...]
) -> Sequence[object] | None:
    """The first list called one of `keys`: in the configuration, its dataset's description, then the meta."""
    containers = [settings, settings.get("metainfo"), settings.get("dataset_meta"), meta, meta.get("dataset_meta")]
    for container in [one for one in containers if isinstance(one, Mapping)]:
        for key in keys:
            value = container.get(key)
            # mmengine stores palettes as arrays.
            value = value.tolist() if isinstance(value, np.ndarray) else value
            if isinstance(value, list | tuple) and value:
                return value
    return None
