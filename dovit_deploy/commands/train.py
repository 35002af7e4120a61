"""`dovit train DATASET`: labelled images -> a checkpoint that `dovit export` takes, resumable at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import PackageMissing, UsageError
from dovit_deploy.printing import plural, quote

if TYPE_CHECKING:
    from dovit_deploy.train.job import TrainingResult
    from dovit_deploy.train.loop import TrainingProgress

RUNS = Path("runs")
PLOT = "training.png"


def train(
    dataset: Annotated[str, typer.Argument(help="Folder of a data set; 'rendered': rendered street scenes.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="RUN_DIR", help="Folder of the run; default: runs/train-<data set>."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe, TOML or YAML; saved with the weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN_DIR.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Start from trained weights: ViT, Segmenter, SETR, DoViT, a backbone."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Learn from the answers of a trained network, too."),
    ] = None,
    classes: arguments.Classes = None,
    minutes: Annotated[float | None, typer.Option(help="Length of the run; default: the recipe's, else 60.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is drawn; default: recipe's, else 0.")] = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Train a dynamic-token model: from scratch, from a trained checkpoint, or going on where a run was killed.

    Layouts: classes.json with images/ and labels/, SegNet's CamVid, Cityscapes, ADE20K. RUN_DIR gets the checkpoint,
    log.jsonl, curve.json (accuracy and FLOPs by threshold), a plot of the run, and the recipe. docs/training.md
    has the keys of the recipe.
    """
    _check(dataset, output, classes, resume=resume, minutes=minutes)
    # A missing package is reported before the data set is read.
    for package in ("torch", "cv2", "PIL"):
        packages.load(package)
    from dovit_deploy.train.job import TrainingRequest
    from dovit_deploy.train.job import train as trained
    from dovit_deploy.train.recipe import Recipe, recipe_from_file, with_flags

    recipe = Recipe() if config is None else recipe_from_file(config)
    folder = _claimed_folder(output, dataset)
    targets.claim_report(json_file, inputs=(dataset, init, teacher, config, classes), outputs=(folder,))
    request = TrainingRequest(
        dataset=dataset,
        output=folder,
        recipe=with_flags(recipe, minutes=minutes, seed=seed, teacher=teacher is not None),
        recipe_given=config is not None,
        init=init,
        teacher=teacher,
        resume=resume,
        classes=classes,
    )
    with console.progress("training", total=1, unit="%", quiet=quiet) as shown:

        def measuring(done: int, total: int) -> None:
            shown.begin("measuring thresholds")
            shown.reach(done, total=total)

        result = trained(
            request,
            progress=lambda now: shown.reach(now.progress, note=progress_note(now)),
            measuring=measuring,
            remark=lambda text: console.remark(text, quiet=quiet),
        )
    # Before anything is printed: a reader that stops reading (head) must not cost the report.
    console.write_json(json_file, _report(result))
    _plot(result, quiet=quiet)
    _show(result)
    console.next_command(f"dovit export {quote(str(result.checkpoint))}", quiet=quiet)


def _check(dataset: str, output: Path | None, classes: Path | None, *, resume: bool, minutes: float | None) -> None:
    from dovit_deploy.datasets.open import is_rendered

    if classes is not None and is_rendered(dataset):
        raise UsageError("--classes is for a folder of label maps; rendered scenes have classes of their own")
    if resume and output is None:
        raise UsageError("--resume goes on with the run in RUN_DIR; name it with -o")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UsageError(f"--minutes: {minutes:g} given; a number above 0 is needed")


def _claimed_folder(output: Path | None, dataset: str) -> Path:
    """Where the run goes; a run that goes on claims its folder as well."""
    if output is None:
        return targets.claim_free_folder(RUNS / f"train-{Path(dataset).resolve().name}")
    targets.claim(output)
    return output


def progress_note(now: TrainingProgress) -> str:
    """What stands beside the progress bar."""
    miou = "" if now.miou is None else f"  mIoU {now.miou:.1f}"
    return f"step {now.step}  {now.steps_per_s:.2g} steps/s  loss {now.loss:.3f}{miou}"


def _plot(result: TrainingResult, *, quiet: bool) -> None:
    """The curve as PNG, where it can be drawn; the run stands without."""
    from dovit_deploy.train.plot import write_plot
    from dovit_deploy.train.state import RunFolder

    try:
        rows, classes = RunFolder(result.folder).rows(), result.record.data.classes
        write_plot(result.folder / PLOT, rows, result.curve, result.samples, classes)
    except PackageMissing as error:
        console.remark(f"no plot of the run: {error}", quiet=quiet)


def _show(result: TrainingResult) -> None:
    rows = [
        (
            "dense" if point.threshold is None else f"{point.threshold:g}",
            f"{point.miou:.1f}",
            f"{point.drop:+z.2f}",
            f"{point.flops_saved:z.1%}",
            " -> ".join(f"{count:.0f}" for count in point.kept),
        )
        for point in result.curve
    ]
    if rows:
        headers = ("threshold", "mIoU", "drop", "FLOPs saved", "tokens per stage")
        show_table("validation images, by threshold", headers, rows, right=range(4))
    gates = f", threshold {result.threshold:g}" if result.record.config.spec.gates else ", dense"
    console.result(
        str(result.checkpoint), f"{plural(result.steps, 'step')} in {result.seconds / 60:.1f} minutes{gates}"
    )


def _report(result: TrainingResult) -> dict[str, object]:
    config = result.record.config
    return {
        "run": str(result.folder.resolve()),
        "checkpoint": str(result.checkpoint.resolve()),
        "steps": result.steps,
        "seconds": result.seconds,
        "seed": config.seed,
        "precision": config.precision,
        "images": result.record.data.images,
        "data": result.data.model_dump(mode="json"),
        "threshold": result.threshold if config.spec.gates else None,
        "curve": [point.model_dump(mode="json") for point in result.curve],
    }
