"""`dovit adapt CHECKPOINT IMAGES`: a dense segmenter becomes a calibrated dynamic bundle, without labels."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import PartialFailure, UsageError
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dovit_deploy.adapt.adapt import AdaptPlan
    from dovit_deploy.adapt.comparison import ComparedWith
    from dovit_deploy.adapt.images import Opened, UnlabelledImages
    from dovit_deploy.adapt.report import AdaptReport, RuleBeside, TableEntry, WayEntry
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.calibration import Interval
    from dovit_deploy.calibrate.images import CalibrationImages, SplitImages
    from dovit_deploy.runtime.session import Session

LABELLED_SPLIT = "val"
"""Of `--labels`, where none is named."""


def adapt(
    first: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT|BUNDLE]",
            help="A dense network that segments: whatever export takes, or a bundle; left out with --backbone.",
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGES", help="Folder, image pattern, video or DATASET[:SPLIT]; labels are not needed."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="NAME.dovit", help="Default: NAME-adapted.dovit beside it.")
    ] = None,
    backbone: arguments.BackboneFile = None,
    head: arguments.HeadFile = None,
    config: Annotated[Path | None, typer.Option(help="What the keys cannot show: JSON or variant.yml.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="What the graphs take, in pixels.")] = None,
    gates: Annotated[
        str | None,
        typer.Option(metavar="L[,L...]", help="Layers with a gate before them; default: 2,5,8 of 12, 6,12,18 of 24."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            metavar="gate|lens",
            help="What answers for a stopped token; default: its gate, where the head looks at one token at a time.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Images that are taken at most, spread evenly; default: 256.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="DATASET[:SPLIT]", help="Also compare mIoU on labelled images; split: val."),
    ] = None,
    overwrite: arguments.Overwrite = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Make a dense network dynamic from images without labels: gates are fitted to its own answers.

    The network itself stays as it is, and so does its dense answer, bit for bit. Half of the images are fitted to; on
    the others thresholds are chosen at which on average at most 1% of the pixels change, and a table shows what else
    saves as much: random stopping, fewer layers, a smaller input.
    """
    start = perf_counter()
    # A missing package is reported before the checkpoint, perhaps gigabytes, is read.
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "cv2", "PIL"):
        packages.load(package)
    from dovit_deploy.adapt.images import check_limit

    check_limit(limit)
    source, given = _positional(first, second, backbone=backbone, head=head, quiet=quiet)
    inputs = (source, head, config, given, labels)
    target = targets.claim_bundle(output, source, inputs=inputs, overwrite=overwrite, added="-adapted")
    targets.claim_report(json_file, inputs=inputs, output=target)
    layers = _gate_layers(gates)
    plan = _plan(source, target, head=head, config=config, layers=layers, answer=answer, size=size, overwrite=overwrite)
    _remark(plan, source, quiet=quiet, verbose=verbose)
    labelled = _labelled(labels, plan)
    opened, report, bundle = _adapted(plan, given, limit=limit, labelled=labelled, quiet=quiet)
    console.write_json(json_file, {"bundle": str(bundle.path), **report.model_dump(mode="json")})
    _show(report, seconds=perf_counter() - start)
    console.result(str(bundle.path))
    console.next_command(first_use(target, bundle.manifest), quiet=quiet)
    if opened.failed:
        raise PartialFailure(
            f"{plural(len(opened.failed), 'image')} of {given} could not be read and took no part: {opened.failed[0]}"
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


def _plan(
    source: Path,
    target: Path,
    *,
    head: Path | None,
    config: Path | None,
    layers: tuple[int, ...] | None,
    answer: str | None,
    size: str | None,
    overwrite: bool,
) -> AdaptPlan:
    from dovit_deploy.adapt.adapt import AdaptPlan
    from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path

    wanted = arguments.size(size, option="--size")
    dense = checkpoint_from_path(source, head=head, config=config)
    return AdaptPlan.resolve(dense, target, gates=layers, answer=answer, size=wanted, overwrite=overwrite)


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


# The work.


def _adapted(
    plan: AdaptPlan, given: str, *, limit: int | None, labelled: SplitImages | None, quiet: bool
) -> tuple[Opened, AdaptReport, Bundle]:
    """Adapt, choose thresholds, compare; the bundle is written last, whole."""
    from dovit_deploy.adapt.adapt import adapted_draft, write_adapted
    from dovit_deploy.adapt.comparison import ComparedWith
    from dovit_deploy.adapt.images import divided, given_images
    from dovit_deploy.adapt.report import AdaptReport, domain_doubt
    from dovit_deploy.adapt.thresholds import chosen_thresholds
    from dovit_deploy.commands.smaller_input import smaller_inputs
    from dovit_deploy.files import working_folder
    from dovit_deploy.runtime.session import Session

    target = plan.export.output
    with working_folder(target) as folder, console.progress("reading images", quiet=quiet) as progress:
        opened = given_images(given, limit=limit, folder=folder, advance=progress.advance)
        images, division = opened.images, divided(opened.images)
        console.remarks(opened.remarks(), quiet=quiet)
        draft, gates = adapted_draft(plan, images, division, folder, progress=progress)
        with Session(draft) as session, smaller_inputs(draft, threads=None) as smaller:
            progress.begin("choosing thresholds", unit="images")
            choice = chosen_thresholds(session, division.judged, progress=progress)
            rivals = ComparedWith.of(choice.calibration, smaller=smaller.sessions, left_out=smaller.left_out)
            tables = _tables(session, rivals, (division.judged, division.held_out), labelled, progress)
        report = AdaptReport(
            images=images.name,
            taken=len(images),
            total=opened.total,
            failed=opened.failed,
            fitted=len(division.fitted),
            gates=gates,
            thresholds=None if choice.calibration is None else choice.calibration.chosen.thresholds,
            refusal=choice.refusal,
            doubts=tuple(filter(None, (domain_doubt(table, gates, fitted=len(division.fitted)) for table in tables))),
            tables=tables,
        )
        bundle = write_adapted(draft, choice.calibration, target, overwrite=plan.export.overwrite)
    console.remarks((f"note: {doubt}" for doubt in report.doubts), quiet=quiet)
    return opened, report, bundle


def _tables(
    session: Session,
    rivals: ComparedWith,
    held_out: tuple[UnlabelledImages, Sequence[int]],
    labelled: SplitImages | None,
    progress: console.ProgressDisplay,
) -> tuple[TableEntry, ...]:
    """Of the held-out images, and of those with labels."""
    from dovit_deploy.adapt.comparison import table_of

    parts: list[tuple[CalibrationImages, Sequence[int]]] = [held_out]
    if labelled is not None:
        parts.append((labelled, range(len(labelled.stems))))
    tables = []
    for images, indices in parts:
        progress.begin(f"comparing on {plural(len(indices), 'image')} of {images.name}", len(indices))
        tables.append(table_of(session, images, indices, rivals, advance=progress.advance))
    return tuple(tables)


# What is said at the end.


def _show(report: AdaptReport, *, seconds: float) -> None:
    console.result(report.verdict)
    for table in report.tables:
        _show_table(table)
    said = ", ".join(f"layer {gate.layer}: {gate.agreement:.1%}" for gate in report.gates)
    console.result(
        f"gates fitted to {plural(report.fitted, 'image')}; tokens that they answer as the network does, "
        f"before {said}; {seconds:.0f} s"
    )


def _show_table(table: TableEntry) -> None:
    score = "mIoU" if table.labelled else "agreement"
    headers = ("", "MACs saved", "as dense", *(("mIoU", "drop", "95 %") if table.labelled else ("95 %",)))
    headers = (*headers, f"{score} of token passing there", "gain")
    rows = [_row(way, labelled=table.labelled) for way in table.ways]
    title = f"{plural(table.images, 'held-out image')} of {table.name} in {plural(table.blocks, 'block')}"
    if table.dense_miou is not None:
        title = f"{plural(table.images, 'labelled image')} of {table.name}; dense: mIoU {table.dense_miou:.2f}"
    show_table(title, headers, rows, right=range(1, len(headers)))
    if table.left_out is not None:
        console.result(f"no smaller input: {table.left_out}")


def _row(way: WayEntry, *, labelled: bool) -> tuple[str, ...]:
    cells = [way.name, f"{way.flops_saved:z.1%}", f"{way.agreement:.2%}"]
    if labelled:
        cells += [_points(way.miou), _points(way.drop), _ends(way.drop_interval)]
    else:
        cells.append(_ends(way.agreement_interval, scale=100))
    return (*cells, *_rule_cells(way.rule))


def _rule_cells(rule: RuleBeside | None) -> tuple[str, str]:
    """The rule at as many MACs: its score with what it saves, and what it has more."""
    if rule is None:
        return "-", "-"
    score = f"{rule.agreement:.2%}" if rule.miou is None else f"{rule.miou:.2f}"
    ends = "" if rule.gain_interval is None else f" ({_ends(rule.gain_interval)})"
    return f"{score} at {rule.flops_saved:z.1%}", f"{rule.gain:+.2f}{ends}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _ends(interval: Interval | None, *, scale: float = 1.0) -> str:
    return "-" if interval is None else f"{scale * interval.low:z.2f} to {scale * interval.high:z.2f}"
