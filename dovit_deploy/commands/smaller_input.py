"""The bundle's network at smaller inputs: what anybody would try first, so `eval` and `calibrate` compare with it.

The smaller networks run in the PyTorch reference, rebuilt from the bundle's own weights. Accuracy and MACs are those of
an export at that size; time is not measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dovit_deploy import packages
from dovit_deploy.errors import PackageMissing

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.families.spec import ModelSpec
    from dovit_deploy.runtime.session import Session

FACTORS = (0.8, 0.65)
"""Of each side: about 64 % and 42 % of the pixels."""


@dataclass(frozen=True)
class SmallerInputs:
    """Sessions for dense runs, the largest input first, or why there are none."""

    sessions: tuple[Session, ...] = ()
    left_out: str | None = None


@contextmanager
def smaller_inputs(bundle: Bundle, *, threads: int | None) -> Iterator[SmallerInputs]:
    """The bundle's network at `smaller_sizes`, where it can run there."""
    reason = _reason_against(bundle)
    if reason is not None:
        yield SmallerInputs(left_out=reason)
        return
    from dovit_deploy.export.pipeline import reference_bundle_at_size
    from dovit_deploy.runtime.session import Session

    # In this order: the sessions are closed before the folder that they read from is removed.
    with TemporaryDirectory(prefix="dovit-") as folder, ExitStack() as stack:
        sizes = smaller_sizes(bundle.manifest.spec)
        small = [reference_bundle_at_size(bundle, size, Path(folder)) for size in sizes]
        yield SmallerInputs(tuple(stack.enter_context(Session(one, engine="torch", threads=threads)) for one in small))


def smaller_sizes(spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """`FACTORS` of the model's size (height, width) in whole patches, those that are smaller than it."""
    from dovit_deploy.families.spec import SMALLEST_SIDE

    sizes = (tuple(max(1, round(factor * side / spec.patch)) * spec.patch for side in spec.size) for factor in FACTORS)
    # As keys, since two factors of a small size may round to the same one.
    wanted = dict.fromkeys((height, width) for height, width in sizes)
    area = spec.size[0] * spec.size[1]
    return tuple(size for size in wanted if size[0] * size[1] < area and min(size) >= SMALLEST_SIDE)


def _reason_against(bundle: Bundle) -> str | None:
    if bundle.manifest.preprocessing.stride is not None:
        return "a sliding window takes images at their own size"
    if not bundle.manifest.spec.has_dense:
        return "the model has no dense network of its weights"
    if not smaller_sizes(bundle.manifest.spec):
        return "the model's own input is the smallest that there is"
    try:
        packages.load("torch")
    except PackageMissing as error:
        return str(error)
    return None
