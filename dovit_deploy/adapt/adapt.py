"""From a dense network and images to a bundle with gates: one dense pass, a fit, an export, and thresholds that hold.

    fitting part    one dense pass -> gates and lenses -> bundle at whose thresholds nothing stops, verified
    judged part     one recording pass -> thresholds that keep the answer, checked on its held-out half

The draft of the bundle lies in a working folder until everything is known; then it is written once.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dovit_deploy.adapt.features import seen_from_images
from dovit_deploy.adapt.fitting import fitted_parts
from dovit_deploy.adapt.images import Division, UnlabelledImages
from dovit_deploy.adapt.network import adaptable, adapted_checkpoint, empty_parts, gated
from dovit_deploy.adapt.report import GateEntry
from dovit_deploy.bundle.bundle import Bundle, foreign_in_bundle, write_calibrated
from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.datasets.scenes import street_images
from dovit_deploy.export.pipeline import bundle_from_plan
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.registry import model_from_spec, state_at_size
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.files import reported_writes, written_aside
from dovit_deploy.printing import plural
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.trace import Image
from dovit_deploy.runtime.transforms import whole_input

SEED = 11
"""Of the rendered image that the export is verified with."""


@dataclass(frozen=True)
class AdaptPlan:
    """Which dense checkpoint becomes which bundle. Made by `resolve`; no later step reads flags again."""

    dense: Checkpoint
    export: ExportPlan
    """Of the network with gates that are still empty; its output is the target."""
    spec: VisionTransformerSpec
    """Of that network, at the size of `dense`."""

    @classmethod
    def resolve(
        cls,
        dense: Checkpoint,
        output: Path,
        *,
        gates: Sequence[int] | None,
        answer: str | None,
        size: tuple[int, int] | None,
        overwrite: bool,
    ) -> AdaptPlan:
        """The plan for `dense`; raises UsageError for a network or gates that cannot be, or what `ExportPlan` refuses.

        Args:
            dense: a checkpoint without gates.
            output: folder of the bundle, NAME.dovit.
            gates: layers before which they stand; None: as the depth has it.
            answer: of a stopped token, "gate" or "lens"; None: as the decode head has it.
            size: what the graphs take; None: the checkpoint's own.
            overwrite: replace `output` where it exists.
        """
        spec = gated(adaptable(dense.spec, source=dense.source), gates, answer=answer)
        empty = adapted_checkpoint(dense, spec, empty_parts(spec))
        return cls(dense, ExportPlan.resolve(empty, output, size=size, overwrite=overwrite), spec)


def adapted_draft(
    plan: AdaptPlan, images: UnlabelledImages, division: Division, folder: Path, *, progress: StepProgress
) -> tuple[Bundle, tuple[GateEntry, ...]]:
    """The bundle of `plan` in `folder`, verified, at whose thresholds nothing stops; and how well its gates fit.

    Args:
        plan: what becomes what.
        images: all of them.
        division: what each is for.
        folder: what does not fit into memory is kept there, too.
        progress: is told of each step.

    Raises:
        OutputFailed: the disk refuses something in `folder`.
        ParityError: the graphs differ from PyTorch by more than rounding.
    """
    export, manifest = plan.export, plan.export.manifest
    spec = manifest.spec
    assert isinstance(spec, VisionTransformerSpec)
    model = model_from_spec(spec, state_at_size(export.checkpoint.state, export.checkpoint.spec, spec.size))
    count = len(division.fitted)
    progress.begin(f"dense pass over {plural(count, 'image')}", count)
    seen = seen_from_images(
        model,
        Bundle(export.output, manifest),
        (images.image(index).rgb for index in division.fitted),
        count=count,
        folder=folder,
        advance=progress.advance,
    )
    parts, fits = fitted_parts(model, seen, progress)
    checkpoint = adapted_checkpoint(plan.dense, plan.spec, parts)
    draft = replace(export, checkpoint=checkpoint, output=folder / export.output.name, overwrite=False)
    bundle, _ = bundle_from_plan(draft, images=_parity_images(images, division, manifest), progress=progress)
    return bundle, fits


def _parity_images(images: UnlabelledImages, division: Division, manifest: Manifest) -> list[Image]:
    """One of the user's, and a rendered one, whose tokens differ even where all of the user's are alike."""
    first = division.fitted[0]
    (rendered,) = street_images(1, seed=SEED)
    named = [(images.stems[first], images.image(first).rgb), ("rendered street scene", rendered)]
    return [(name, whole_input(rgb, manifest)) for name, rgb in named]


def write_adapted(draft: Bundle, calibration: Calibration | None, target: Path, *, overwrite: bool) -> Bundle:
    """Write `draft` to `target` with the thresholds of `calibration`; None: nothing stops in it.

    Raises:
        OutputFailed: the folder cannot be written.
        UsageError: the target appeared meanwhile, and may not be replaced.
    """
    if calibration is not None:
        return write_calibrated(draft, calibration, target, overwrite=overwrite)
    with (
        reported_writes(target),
        written_aside(target, overwrite=overwrite, mark=foreign_in_bundle) as folder,
    ):
        shutil.copytree(draft.path, folder, dirs_exist_ok=True)
    return Bundle.open(target)
