"""What will the bundle be? Checkpoint and flags resolved once, before anything is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import ValidationError

from dovit_deploy import __version__
from dovit_deploy.bundle.manifest import GateDefaults, Manifest, Preprocessing, Provenance, TokenCount
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.registry import spec_at_size
from dovit_deploy.families.spec import SMALLEST_SIDE
from dovit_deploy.runtime.settings import thresholds_from


@dataclass(frozen=True)
class ExportPlan:
    """Which checkpoint becomes which bundle, and where. Made by `resolve`; no later step reads flags again."""

    checkpoint: Checkpoint
    output: Path
    manifest: Manifest
    """Of the bundle, as far as it is known before the export: files and usual token counts come last."""
    overwrite: bool
    compact: bool = False
    """Large weights are stored in float16."""

    @classmethod
    def resolve(
        cls,
        checkpoint: Checkpoint,
        output: Path,
        *,
        size: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        overwrite: bool = False,
        compact: bool = False,
    ) -> Self:
        """The plan for `checkpoint`, which has the thresholds already.

        Args:
            checkpoint: what is exported.
            output: folder of the bundle, NAME.dovit.
            size: height and width that the graphs take; None: the window of a sliding configuration, else the size of
                the training.
            stride: step of the sliding window in pixels; None: what the checkpoint says.
            overwrite: replace `output` where it exists.
            compact: store large weights in float16.

        Raises:
            UsageError: a size that the network cannot have, a stride where no window can slide, thresholds out of range
                or of the wrong number, or anything else that every run would refuse.
            ConfigError: the checkpoint states something of that kind itself.
        """
        spec = _spec_at(checkpoint, size or checkpoint.slide_size or checkpoint.spec.size)
        manifest = Manifest(
            name=output.stem,
            task=spec.task,
            spec=spec,
            preprocessing=_preprocessing(checkpoint, spec, stride),
            classes=checkpoint.classes,
            defaults=GateDefaults(thresholds=()),
            counts=full_counts(spec),
            provenance=Provenance(
                tool=f"dovit-deploy {__version__}",
                source=checkpoint.source,
                source_sha256=checkpoint.source_sha256,
                license=checkpoint.license,
            ),
            files={},
        )
        manifest = manifest.model_copy(update={"defaults": _defaults(checkpoint, manifest)})
        fault = manifest.disagreement()
        if fault is not None:
            # What the checkpoint says of itself is no wrong use of the command.
            kind = ConfigError if size is None and stride is None else UsageError
            raise kind(f"no run would take this bundle: {fault}", *_remedy(manifest, stride))
        return cls(checkpoint, output, manifest, overwrite, compact)


def _remedy(manifest: Manifest, stride: tuple[int, int] | None) -> tuple[str, ...]:
    """A second line where the checkpoint's own stride is larger than the window that is asked for."""
    own, window = manifest.preprocessing.stride, manifest.spec.size
    if stride is not None or own is None or not (own[0] > window[0] or own[1] > window[1]):
        return ()
    return (f"The stride is the checkpoint's own: give --stride, too, at most {window[0]}x{window[1]}",)


def full_counts(spec: AnySpec) -> tuple[TokenCount, ...]:
    """Token counts of every stage while nothing is known of what its gates stop."""
    first = TokenCount(minimum=spec.tokens, typical=spec.tokens, maximum=spec.tokens)
    # At least 1, although all patches may stop where there are no extra tokens: engines are not built for 0.
    later = TokenCount(minimum=spec.extra_tokens or 1, typical=spec.tokens, maximum=spec.tokens)
    return (first, *(later for _ in spec.gates))


def _spec_at(checkpoint: Checkpoint, size: tuple[int, int]) -> AnySpec:
    """The architecture at the size that the graphs will take."""
    shown = f"size {size[0]}x{size[1]}: "
    if min(size) < SMALLEST_SIDE:
        raise UsageError(f"{shown}both sides must be at least {SMALLEST_SIDE} pixels")
    try:
        return spec_at_size(checkpoint.spec, size)
    except ValidationError as error:
        # Some specs name the size themselves.
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix(shown)
        raise UsageError(f"{shown}{reason}") from error


def _preprocessing(checkpoint: Checkpoint, spec: AnySpec, stride: tuple[int, int] | None) -> Preprocessing:
    """What images go through before the graphs."""
    preprocessing = checkpoint.preprocessing.for_spec(spec)
    if stride is None:
        return preprocessing
    if spec.task != "segmentation":
        raise UsageError("--stride: only a segmentation network slides a window over larger images")
    return preprocessing.model_copy(update={"stride": stride})


def _defaults(checkpoint: Checkpoint, manifest: Manifest) -> GateDefaults:
    """The checkpoint's thresholds, per gate, for every class."""
    if not manifest.spec.gates:
        return GateDefaults(thresholds=())
    table = thresholds_from(np.asarray(checkpoint.thresholds), manifest)
    # Seven digits are all that a float32 holds: the manifest says 0.7, not 0.699999988.
    rows = tuple(tuple(round(float(entry), 7) for entry in row) for row in table)
    return GateDefaults(thresholds=rows, floor=checkpoint.floor)
