"""`dovit export CHECKPOINT`: checkpoint -> bundle, checked against PyTorch before it is called done."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.errors import SourceError, UsageError
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.bundle.parity import ParityReport
    from dovit_deploy.commands.precisions import PrecisionRequest
    from dovit_deploy.export.plan import ExportPlan
    from dovit_deploy.runtime.trace import Image
    from dovit_deploy.sources.source import RGB

PARITY_IMAGES = 2
"""Each is run at the bundle's own thresholds and at some that stop half of the tokens."""
PARITY_SEED = 11

MaxDrop = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS", help="What int8 may lose, default 1: of mIoU with labels, else of the pixels, in percent."
    ),
]


def export(
    checkpoint: arguments.CheckpointPath = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="NAME.dovit; default: beside it.")] = None,
    backbone: arguments.BackboneFile = None,
    head: arguments.HeadFile = None,
    config: Annotated[Path | None, typer.Option(help="What the keys cannot show: JSON or variant.yml.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="What the graphs take, in pixels.")] = None,
    threshold: arguments.Threshold = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean of the pixels, on 0..255.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation, on 0..255.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names: JSON, or one name a line.")] = None,
    stride: Annotated[str | None, typer.Option(metavar="HxW", help="Slide over larger images by this step.")] = None,
    parity_images: Annotated[str | None, typer.Option(metavar="SRC", help="Images to verify with.")] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32[,int8]", help="Number formats of the graphs; fp32 is always among them.")
    ] = "fp32",
    calibration: Annotated[
        str | None, typer.Option(metavar="SRC", help="Images, or DATASET[:SPLIT], that int8 is made and judged with.")
    ] = None,
    max_drop: MaxDrop = None,
    positions: arguments.Positions = None,
    compact: Annotated[bool, typer.Option(help="Store large weights in fp16: half the size, checked.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Load pickled objects too: they can execute code.")] = False,
    overwrite: arguments.Overwrite = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Turn a checkpoint into a bundle: staged ONNX graphs with dynamic token counts, verified."""
    start = perf_counter()
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    # A missing package is reported before the checkpoint, perhaps gigabytes, is read.
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        packages.load(package)
    from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
    from dovit_deploy.commands.precisions import PrecisionRequest, loss_lines
    from dovit_deploy.export.plan import ExportPlan

    source_path = arguments.checkpoint_path(checkpoint, backbone=backbone, head=head)
    request = PrecisionRequest.from_flags(precision, calibration, max_drop)
    inputs = (source_path, head, config, classes, parity_images, calibration)
    target = targets.claim_bundle(output, source_path, inputs=inputs, overwrite=overwrite)
    targets.claim_report(json_file, inputs=inputs, outputs=(target,))
    wanted_size, wanted_stride = arguments.size(size, option="--size"), arguments.size(stride, option="--stride")
    source = checkpoint_from_path(
        source_path,
        head=head,
        positions=arguments.position_mode(positions),
        config=config,
        allow_pickle=allow_pickle,
        mean=arguments.triple(mean, option="--mean"),
        std=arguments.triple(std, option="--std"),
        classes=classes,
        thresholds=arguments.thresholds(threshold),
    )
    for line in source.remarks:
        console.remark(f"{source_path.name}: {line}", quiet=not verbose)
    if source.assumed:
        console.remark(f"{source.assumed} (--positions)", quiet=quiet)
    console.remarks(_left_behind(source_path, request, compact=compact), quiet=quiet)
    plan = ExportPlan.resolve(
        source, target, size=wanted_size, stride=wanted_stride, overwrite=overwrite, compact=compact
    )
    for line in _assumptions(plan.manifest):
        console.remark(line, quiet=quiet)
    bundle, report = _exported(plan, request, _parity_pixels(plan.manifest, parity_images), quiet=quiet)
    console.write_json(json_file, {"bundle": str(bundle.path), "parity": report.model_dump(mode="json")})
    console.result(str(bundle.path), _summary(report, perf_counter() - start), *loss_lines(report.precisions))
    console.next_command(first_use(target, bundle.manifest), quiet=quiet)


def _left_behind(source: Path, request: PrecisionRequest, *, compact: bool) -> list[str]:
    """What a bundle that is exported again has and the new one will not have: forms, small weights."""
    from dovit_deploy.bundle.bundle import MANIFEST, Bundle

    if not (source / MANIFEST).is_file():
        return []
    bundle, lines = Bundle.open(source), []
    forms = [form for form in bundle.manifest.precisions if form not in request.precisions]
    if forms:
        asked = ",".join((*request.precisions, *forms))
        lines.append(f"{source.name} also has {', '.join(forms)}; --precision {asked} --calibration SRC makes it anew")
    report = bundle.parity()
    if report is not None and report.compact is not None and not compact:
        lines.append(
            f"{source.name} has large weights in fp16, the new bundle in fp32, twice the size; --compact keeps fp16"
        )
    return lines


def _assumptions(manifest: Manifest) -> list[str]:
    """What nobody stated and the user should know: mean and std, and what is added to pixels."""
    spec, lines = manifest.spec, []
    if manifest.preprocessing.assumed:
        lines.append("mean and std: ImageNet's assumed; the checkpoint does not say (--mean, --std)")
    height, width = (side * spec.patch for side in spec.grid)
    if (height, width) != spec.size:
        where = "on all sides" if any(spec.pads_before) else "right and bottom"
        given = f"{spec.size[0]}x{spec.size[1]}"
        lines.append(f"size {given}: padded {where} to {height}x{width}, whole patches of {spec.patch}")
    return lines


def _exported(
    plan: ExportPlan, request: PrecisionRequest, images: list[Image], *, quiet: bool
) -> tuple[Bundle, ParityReport]:
    """The bundle of `plan`, verified on `images`, in every precision of `request`."""
    from dovit_deploy.export.pipeline import bundle_from_plan

    calibrated = request.images(plan.manifest)
    with console.progress("export", quiet=quiet) as display:
        return bundle_from_plan(
            plan,
            images=images,
            progress=display,
            int8=request.plan(calibrated),
            losses=lambda draft: request.losses(
                draft, calibrated, progress=display, remark=lambda line: console.remark(line, quiet=quiet)
            ),
            max_drop=request.max_drop,
        )


def _parity_pixels(manifest: Manifest, given: str | None) -> list[Image]:
    """What to verify with, as pixels at the bundle's size: the user's images, or rendered street scenes."""
    from dovit_deploy.runtime.transforms import to_input

    # The graphs take one window, so a sliding bundle is verified on resized images too.
    whole = manifest.preprocessing.model_copy(update={"stride": None})
    named = _rendered_images() if given is None else _given_images(given)
    return [(name, to_input(rgb, whole, manifest.spec.size)) for name, rgb in named]


def _rendered_images() -> list[tuple[str, RGB]]:
    from dovit_deploy.datasets.scenes import street_images

    rendered = street_images(PARITY_IMAGES, seed=PARITY_SEED)
    return [(f"rendered street scene {number}", rgb) for number, rgb in enumerate(rendered)]


def _given_images(given: str) -> list[tuple[str, RGB]]:
    from dovit_deploy.sources.open import open_source
    from dovit_deploy.sources.source import FailedFrame

    images = []
    with open_source(given, max_frames=PARITY_IMAGES) as source:
        for frame in source:
            if isinstance(frame, FailedFrame):
                raise SourceError(f"--parity-images: {frame.message}")
            images.append((f"{Path(frame.source).name} frame {frame.index}", frame.rgb))
    return images


def _summary(report: ParityReport, seconds: float) -> str:
    runs = [run for form in report.forms for run in form.runs]
    flips = sum(gate.explained for run in runs for gate in run.gates)
    rounded = "" if report.compact is None else f", {report.compact.text}"
    return (
        f"verified against PyTorch: {plural(len(runs), 'run')}, largest difference {report.answers_error or 0:.1e}, "
        f"{plural(flips, 'explained decision flip')}{rounded}; {seconds:.0f} s"
    )
