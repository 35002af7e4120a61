"""From a dense network and images to a bundle with gates: one dense pass, a fit, an export, and thresholds that hold.

    fitting part    one dense pass -> gates and lenses -> (`distil`: the layers behind them learn to do without what
                    has stopped) -> bundle at whose thresholds nothing stops, verified
    judged part     one recording pass -> thresholds that keep the answer, checked on its held-out part

The draft of the bundle lies in a working folder until everything is known; then it is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dovit_deploy.adapt.features import SeenTokens, seen_from_images
from dovit_deploy.adapt.fitting import fitted_parts, gate_fits
from dovit_deploy.adapt.images import UnlabelledImages
from dovit_deploy.adapt.network import adaptable, adapted_checkpoint, empty_parts, gated
from dovit_deploy.adapt.report import GateEntry
from dovit_deploy.bundle.bundle import Bundle, foreign_in_bundle, write_calibrated
from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.datasets.scenes import street_images
from dovit_deploy.export.pipeline import bundle_from_plan, reference_bundle
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.registry import model_from_spec, state_at_size
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.files import copy_folder, reported_writes, written_aside
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
        context: str | None,
        size: tuple[int, int] | None,
        overwrite: bool,
    ) -> AdaptPlan:
        """The plan for `dense`; raises UsageError for a network or gates that cannot be, or what `ExportPlan` refuses.

        Args:
            dense: a checkpoint without gates.
            output: folder of the bundle, NAME.dovit.
            gates: layers before which they stand; None: as the depth has it.
            answer: of a stopped token, "gate" or "lens"; None: as the decode head has it.
            context: what layers see of stopped tokens, "none" or "pooled"; None: none.
            size: what the graphs take; None: the checkpoint's own.
            overwrite: replace `output` where it exists.
        """
        spec = gated(adaptable(dense.spec, source=dense.source), gates, answer=answer, context=context)
        empty = adapted_checkpoint(dense, spec, empty_parts(spec))
        return cls(dense, ExportPlan.resolve(empty, output, size=size, overwrite=overwrite), spec)


def fitted_to_images(
    plan: AdaptPlan,
    images: UnlabelledImages,
    fitted: Sequence[int],
    folder: Path,
    *,
    progress: StepProgress,
) -> tuple[dict[str, Tensor], tuple[GateEntry, ...]]:
    """Gates and lenses of the dense network of `plan`: their parameters by name, and how well the gates fit.

    Args:
        plan: what becomes what.
        images: all of them.
        fitted: the numbers of those that are fitted to.
        folder: what does not fit into memory is kept there.
        progress: is told of each step.

    Raises:
        OutputFailed: the disk refuses something in `folder`.
    """
    model, seen = _seen(plan.export.checkpoint, plan, images, fitted, folder, progress)
    return fitted_parts(model, seen, progress)


def fits_of_tuned(
    checkpoint: Checkpoint,
    plan: AdaptPlan,
    images: UnlabelledImages,
    fitted: Sequence[int],
    folder: Path,
    *,
    progress: StepProgress,
) -> tuple[GateEntry, ...]:
    """How well the gates of a network that was fine-tuned fit its answers, on the images that it learnt from."""
    # What the first pass kept lies in the folder itself.
    (folder / "tuned").mkdir()
    model, seen = _seen(checkpoint, plan, images, fitted, folder / "tuned", progress)
    return gate_fits(model, seen)


def _seen(
    checkpoint: Checkpoint,
    plan: AdaptPlan,
    images: UnlabelledImages,
    fitted: Sequence[int],
    folder: Path,
    progress: StepProgress,
) -> tuple[VisionTransformer, SeenTokens]:
    """The network of `checkpoint`, and what it makes of these images with nothing stopped."""
    export, manifest = plan.export, plan.export.manifest
    spec = manifest.spec
    model = model_from_spec(spec, state_at_size(checkpoint.state, checkpoint.spec, spec.size))
    progress.begin(f"dense pass over {plural(len(fitted), 'image')}", len(fitted), unit="images")
    seen = seen_from_images(
        model,
        Bundle(export.output, manifest),
        (images.image(index).rgb for index in fitted),
        count=len(fitted),
        folder=folder,
        advance=progress.advance,
    )
    return model, seen


def exported_draft(
    plan: AdaptPlan,
    checkpoint: Checkpoint,
    images: UnlabelledImages,
    example: int,
    folder: Path,
    *,
    progress: StepProgress,
) -> Bundle:
    """The bundle of `checkpoint` in `folder`, verified, at whose thresholds nothing stops.

    Args:
        plan: what becomes what.
        checkpoint: the network with its gates and lenses.
        images: all of them.
        example: the number of one that the graphs are verified with.
        folder: where the bundle lies.
        progress: is told of each step.

    Raises:
        ParityError: the graphs differ from PyTorch by more than rounding.
    """
    export = plan.export
    draft = replace(export, checkpoint=checkpoint, output=folder / export.output.name, overwrite=False)
    shown = _parity_images(images, example, export.manifest)
    return bundle_from_plan(draft, images=shown, progress=progress)[0]


def original_plan(plan: AdaptPlan, output: Path, *, overwrite: bool) -> ExportPlan:
    """How the network as it was given is exported to `output`, at the same size."""
    size = plan.export.manifest.spec.size
    return ExportPlan.resolve(plan.dense, output, size=size, overwrite=overwrite)


def original_reference(plan: AdaptPlan, folder: Path) -> Bundle:
    """The network as it was given, in a new folder in `folder`, for the engine "torch" alone."""
    manifest = original_plan(plan, folder / "original.dovit", overwrite=False).manifest
    state = state_at_size(plan.dense.state, plan.dense.spec, manifest.spec.size)
    return reference_bundle(manifest, state, folder / "original.dovit")


def original_draft(
    export: ExportPlan, images: UnlabelledImages, example: int, folder: Path, *, progress: StepProgress
) -> Bundle:
    """The network as it was given as a bundle of its own in `folder`, verified; arguments as of `exported_draft`."""
    draft = replace(export, output=folder / export.output.name, overwrite=False)
    return bundle_from_plan(draft, images=_parity_images(images, example, export.manifest), progress=progress)[0]


def _parity_images(images: UnlabelledImages, example: int, manifest: Manifest) -> list[Image]:
    """One of the user's, and a rendered one, whose tokens differ even where all of the user's are alike."""
    (rendered,) = street_images(1, seed=SEED)
    named = [(images.stems[example], images.image(example).rgb), ("rendered street scene", rendered)]
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
        copy_folder(draft.path, folder)
    return Bundle.open(target)
