"""`dovit adapt CHECKPOINT IMAGES`: a dense segmenter becomes a calibrated dynamic bundle, without labels."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.errors import PartialFailure, UsageError
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.adapt.adapt import AdaptPlan
    from dovit_deploy.adapt.distil import DistilRequest, MinutesClock
    from dovit_deploy.calibrate.images import SplitImages

MOST_MINUTES = 1e6
LABELLED_SPLIT = "val"
"""Of `--labels`, where none is named."""


# The options that this verb alone has.

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="[CHECKPOINT|BUNDLE]",
        help="A dense network that segments: whatever export takes, or a bundle; left out with --backbone.",
    ),
]
ImagesArgument = Annotated[
    str | None,
    typer.Argument(metavar="IMAGES", help="Folder, image pattern, video or DATASET[:SPLIT]; labels are not needed."),
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="NAME.dovit", help="Default: NAME-adapted.dovit beside it.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="What the keys cannot show: JSON or variant.yml.")]
SizeOption = Annotated[str | None, typer.Option(metavar="HxW", help="What the graphs take, in pixels.")]
GatesOption = Annotated[
    str | None,
    typer.Option(metavar="L[,L...]", help="Layers with a gate before them; default: 2,5,8 of 12, 6,12,18 of 24."),
]
AnswerOption = Annotated[
    str | None,
    typer.Option(
        metavar="gate|lens",
        help="What answers for a stopped token; default: its gate, where the head looks at one token at a time.",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(
        metavar="none|pooled",
        help="What layers behind a gate see of stopped tokens: nothing (default), or for each class their mean.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Images that are taken at most, spread evenly; default: 256.")
]
LabelsOption = Annotated[
    str | None, typer.Option(metavar="DATASET[:SPLIT]", help="Also compare mIoU on labelled images; split: val.")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(metavar="M", help="Also fine-tune the layers behind the first gate for so long, without labels."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the fine-tuning that was ended.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of what --minutes draws; default: 0.")]
ClockOption = Annotated[
    str | None, typer.Option(help="How --minutes are counted: wall (default), or processor, of this process alone.")
]
KeepDenseOption = Annotated[
    bool, typer.Option("--keep-dense", help="With --minutes: also write the network as given, NAME-dense.dovit.")
]


def adapt(
    first: NetworkArgument,
    second: ImagesArgument = None,
    output: OutputOption = None,
    backbone: arguments.BackboneFile = None,
    head: arguments.HeadFile = None,
    config: ConfigOption = None,
    size: SizeOption = None,
    gates: GatesOption = None,
    answer: AnswerOption = None,
    context: ContextOption = None,
    limit: LimitOption = None,
    labels: LabelsOption = None,
    minutes: MinutesOption = None,
    resume: ResumeOption = False,
    seed: SeedOption = None,
    clock: ClockOption = None,
    keep_dense: KeepDenseOption = False,
    max_disagree: arguments.MaxDisagree = None,
    confidence: arguments.Confidence = None,
    unit: arguments.UnitName = None,
    frame_rate: arguments.FrameNumbersPerSecond = None,
    overwrite: arguments.Overwrite = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Make a dense network dynamic from images without labels: gates are fitted to its own answers.

    The network itself stays as it is, and so does its dense answer, bit for bit. Half of the images are fitted to; on
    the others thresholds are chosen at which on average at most 1% of the pixels change, or what --max-disagree
    promises, and a table shows what else saves as much: random stopping, fewer layers, a smaller input. With --minutes
    the layers behind the first gate learn from the network's own answers to do without what has stopped.
    """
    start = perf_counter()
    # A missing package is reported before the checkpoint, perhaps gigabytes, is read.
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "cv2", "PIL"):
        packages.load(package)
    from dovit_deploy.adapt.adapt import original_plan
    from dovit_deploy.adapt.images import check_limit
    from dovit_deploy.adapt.run_folder import folder_of
    from dovit_deploy.commands.adapt_report import show_adapted
    from dovit_deploy.commands.adapt_steps import AdaptRequest, adapted
    from dovit_deploy.commands.calibrate import promised_budget, unit_kind

    check_limit(limit)
    distil = _distillation(minutes, seed, clock, resume=resume, keep_dense=keep_dense, overwrite=overwrite)
    promised, kind = promised_budget(max_disagree, confidence), unit_kind(unit, frame_rate, max_disagree)
    source, given = _positional(first, second, backbone=backbone, head=head, quiet=quiet)
    inputs = (source, head, config, given, labels)
    target = targets.claim_bundle(output, source, inputs=inputs, overwrite=overwrite, added="-adapted")
    original = _claim_original(target, inputs, overwrite=overwrite) if keep_dense else None
    outputs = (target, original, None if distil is None else folder_of(target))
    targets.claim_report(json_file, inputs=inputs, outputs=outputs)
    parts = _GateParts(gates, answer, context, tuned=distil is not None)
    plan = _plan(source, target, parts, head=head, config=config, size=size, overwrite=overwrite)
    _remark(plan, source, quiet=quiet, verbose=verbose)
    wanted = AdaptRequest(
        given=given,
        limit=limit,
        labelled=_labelled(labels, plan),
        distil=distil,
        original=None if original is None else original_plan(plan, original, overwrite=overwrite),
        promised=promised,
        unit=kind,
        frame_rate=frame_rate,
        quiet=quiet,
    )
    made = adapted(plan, wanted)
    failed = made.opened.failed
    console.write_json(json_file, {"bundle": str(made.bundle.path), **made.report.model_dump(mode="json")})
    show_adapted(made.report, seconds=perf_counter() - start)
    console.result(str(made.bundle.path))
    console.next_command(first_use(target, made.bundle.manifest), quiet=quiet)
    if failed:
        raise PartialFailure(
            f"{plural(len(failed), 'image')} of {given} could not be read and took no part: {failed[0]}"
        )


# What is asked for, as far as flags alone show it.


def _positional(
    first: str, second: str | None, *, backbone: Path | None, head: Path | None, quiet: bool
) -> tuple[Path, str]:
    """The dense network and IMAGES; with `--backbone` one argument alone is IMAGES."""
    from dovit_deploy.bundle.installed import installed_names

    if backbone is not None and second is None:
        return arguments.checkpoint_path(None, backbone=backbone, head=head), first
    if second is None:
        raise UsageError(
            f"one argument given ({first}); give the network and then IMAGES: dovit adapt CHECKPOINT IMAGES, or "
            "dovit adapt IMAGES --backbone FILE --head FILE"
        )
    path = arguments.checkpoint_path(Path(first), backbone=backbone, head=head)
    if not path.exists() and first in installed_names():
        path = arguments.bundle_path(path, quiet=quiet)
    return path, second


def _gate_layers(text: str | None) -> tuple[int, ...] | None:
    """ "2,5,8" -> (2, 5, 8)."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    # ASCII only, and no more digits than a number of layers has.
    if not all(part.isascii() and part.isdecimal() and len(part) <= 4 for part in parts):
        raise UsageError(f"--gates: '{text}' given; layers separated by commas are needed, as 2,5,8")
    return tuple(map(int, parts))


def _distillation(
    minutes: float | None, seed: int | None, clock: str | None, *, resume: bool, keep_dense: bool, overwrite: bool
) -> DistilRequest | None:
    """How the network is to be fine-tuned; None: it stays as it is."""
    from dovit_deploy.adapt.distil import CLOCKS, DistilRequest

    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise UsageError(f"--minutes: {minutes:g} given; a number above 0 and at most {MOST_MINUTES:g} is needed")
    named: MinutesClock | None = next((one for one in CLOCKS if one == clock), None)
    if clock is not None and named is None:
        raise UsageError(f"--clock: '{clock}' given; allowed: {', '.join(CLOCKS)}")
    if minutes is None and not resume:
        stated = {"--seed": seed is not None, "--clock": clock is not None, "--keep-dense": keep_dense}
        wrong = next((flag for flag, given in stated.items() if given), None)
        if wrong is not None:
            raise UsageError(
                f"{wrong} is for --minutes M: without it the network stays as it is, and so does its dense answer"
            )
        return None
    return DistilRequest(minutes, seed, named, resume=resume, overwrite=overwrite)


def _claim_original(target: Path, inputs: targets.Inputs, *, overwrite: bool) -> Path:
    """Claim where the network as it was given is kept: NAME-dense.dovit beside NAME.dovit."""
    return targets.claim_bundle(None, target, inputs=inputs, overwrite=overwrite, added="-dense")


class _GateParts(NamedTuple):
    """What is added to the network, as the flags say it."""

    layers: str | None
    answer: str | None
    context: str | None
    tuned: bool
    """The network is to be fine-tuned with them."""


def _plan(
    source: Path,
    target: Path,
    parts: _GateParts,
    *,
    head: Path | None,
    config: Path | None,
    size: str | None,
    overwrite: bool,
) -> AdaptPlan:
    from dovit_deploy.adapt.adapt import AdaptPlan
    from dovit_deploy.adapt.distil import refuse_undistillable
    from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path

    wanted = arguments.size(size, option="--size")
    dense = checkpoint_from_path(source, head=head, config=config)
    plan = AdaptPlan.resolve(
        dense,
        target,
        gates=_gate_layers(parts.layers),
        answer=parts.answer,
        context=parts.context,
        size=wanted,
        overwrite=overwrite,
    )
    if parts.tuned:
        refuse_undistillable(plan.spec, plan.dense.source)
    return plan


def _remark(plan: AdaptPlan, source: Path, *, quiet: bool, verbose: bool) -> None:
    for line in plan.dense.remarks:
        console.remark(f"{source.name}: {line}", quiet=not verbose)
    if plan.dense.assumed:
        console.remark(f"{plan.dense.assumed} (dovit export --positions, then adapt the bundle)", quiet=quiet)
    if plan.export.manifest.preprocessing.assumed:
        console.remark(
            "mean and std: ImageNet's assumed; the checkpoint does not say (dovit export --mean --std, then adapt the "
            "bundle)",
            quiet=quiet,
        )


def _labelled(labels: str | None, plan: AdaptPlan) -> SplitImages | None:
    """The images of `--labels`, whose classes are the network's."""
    from dovit_deploy.calibrate.images import SplitImages
    from dovit_deploy.datasets.open import dataset_from_path, named_split
    from dovit_deploy.measure.evaluate import check_classes

    if labels is None:
        return None
    dataset, named = named_split(labels)
    split = named or LABELLED_SPLIT
    data = dataset_from_path(dataset, split)
    check_classes(data, plan.export.manifest)
    return SplitImages(data, name=f"{dataset} ({split})", split=split)
