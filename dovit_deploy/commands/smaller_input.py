"""The same network at smaller input sizes, run dense by the reference engine: what a user would do without gates.

Graphs are made for one size, so other sizes need PyTorch and the bundle's own weights. Accuracy and MACs are those of
an export at that size; time is not measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
"""Of each side."""


def smaller_sizes(spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """`FACTORS` of the model's size in whole patches, those that are smaller than it."""
    sizes = (tuple(max(1, round(factor * side / spec.patch)) * spec.patch for side in spec.size) for factor in FACTORS)
    wanted = dict.fromkeys((height, width) for height, width in sizes)
    return tuple(size for size in wanted if size[0] * size[1] < spec.size[0] * spec.size[1] and min(size) >= 16)


def reason_against(bundle: Bundle) -> str | None:
    """Why there is nothing to compare with at smaller inputs; None when there is."""
    if bundle.manifest.preprocessing.stride is not None:
        return "a sliding window takes pictures at their own size"
    if not bundle.manifest.spec.has_dense:
        return "the model has no dense network of its weights"
    if not smaller_sizes(bundle.manifest.spec):
        return "the model's own input is the smallest that there is"
    try:
        packages.load("torch")
    except PackageMissing as error:
        return str(error)
    return None


@contextmanager
def smaller_sessions(bundle: Bundle, *, threads: int | None) -> Iterator[tuple[Session, ...]]:
    """Sessions of the bundle's network at `smaller_sizes`, for dense runs.

    `reason_against` was asked before.
    """
    from dovit_deploy.export.pipeline import reference_bundle_at_size
    from dovit_deploy.runtime.session import Session

    with TemporaryDirectory(prefix="dovit-") as folder, ExitStack() as stack:
        sizes = smaller_sizes(bundle.manifest.spec)
        small = [reference_bundle_at_size(bundle, size, Path(folder)) for size in sizes]
        yield tuple(stack.enter_context(Session(one, engine="torch", threads=threads)) for one in small)
