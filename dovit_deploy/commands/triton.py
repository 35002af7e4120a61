"""`dovit triton BUNDLE -o REPOSITORY`: a model repository from which NVIDIA Triton serves the bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.errors import UsageError
from dovit_deploy.printing import quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.triton.repository import WrittenVersion

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""What clients can ask for: it is a part of addresses, and the name of a folder."""
Repository = Annotated[
    Path, typer.Option("--output", "-o", metavar="REPOSITORY", help="The folder to write, for --model-repository.")
]
ModelName = Annotated[
    str | None, typer.Option("--name", help="Of the model, which clients ask for; default: the bundle's.")
]
MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch", min=1, max=1024, help="Images of a request, or of requests run together; default: 8."),
]
OperatorThreads = Annotated[
    int, typer.Option("--threads", min=1, max=1024, help="Of one operator; images run side by side on all cores.")
]


def triton(
    bundle: arguments.BundleName,
    output: Repository,
    name: ModelName = None,
    max_batch: MaxBatch = None,
    engine: arguments.EngineName = "onnxruntime",
    precision: arguments.Precision = None,
    threads: OperatorThreads = 1,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also merged.onnx, for servers with the ONNX Runtime backend.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="REPOSITORY is there: add the next version of the model, or a further model.")
    ] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Write a model repository for NVIDIA Triton, whose Python backend runs the bundle's stages.

    Each image is answered as it would be alone, whatever shares its batch. Requests may carry thresholds, and are told
    tokens, MACs and milliseconds. docs/serving.md says how a server is started and sized.
    """
    # Imported here, so that `dovit --help` stays fast.
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.triton.config import ServingPlan
    from dovit_deploy.triton.repository import add_to_repository, next_version, write_repository

    path = arguments.bundle_path(bundle, quiet=quiet)
    _claim(output, path, add=add)
    targets.claim_report(json_file, inputs=(path,), outputs=(output,))
    opened = Bundle.open(path)
    plan = ServingPlan(
        bundle=opened,
        name=_model_name(name, opened.path),
        engine=engine,
        precision=_checked_precision(opened, engine, precision, merged=merged),
        threads=threads,
        max_batch=max_batch,
        merged=merged,
    )
    if add:
        next_version(plan, output)
    written = add_to_repository(plan, output) if add else write_repository(plan, output)
    facts = {"bundle": str(opened.path), "engine": plan.engine, "precision": plan.precision}
    console.write_json(
        json_file, {"repository": str(output.resolve()), **facts, "models": [_row(each) for each in written]}
    )
    for each in written:
        console.result(f"{each.model}, version {each.version}: {each.folder}")
    console.next_command(f"tritonserver --model-repository={quote(str(output))}   (docs/serving.md)", quiet=quiet)


def _row(written: WrittenVersion) -> dict[str, object]:
    return {"name": written.model, "version": written.version, "folder": str(written.folder.resolve())}


def _claim(output: Path, bundle: Path, *, add: bool) -> None:
    """Claim the repository; with `add` it is there, and without, it is not."""
    from dovit_deploy.bundle.bundle import refuse_inside_bundle
    from dovit_deploy.files import refuse_inputs
    from dovit_deploy.triton.repository import ADD, CONFIG

    refuse_inside_bundle(output, option="-o")
    # A bundle that is served already may be added again, as when the newer one is no better.
    if not add:
        refuse_inputs(output, (bundle,))
    if add and not output.is_dir():
        raise UsageError(f"--add: {output} is no folder; leave out --add to make a new repository")
    if (output / "manifest.json").is_file():
        raise UsageError(f"-o {output}: this is a bundle; a repository holds models")
    if (output / CONFIG).is_file():
        raise UsageError(f"-o {output}: this is a model; its repository is the folder above")
    targets.claim(output)
    if not add and os.path.lexists(output):
        raise UsageError(f"{output} exists; {ADD}")


def _model_name(given: str | None, bundle: Path) -> str:
    name = bundle.stem if given is None else given
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name: '{name}' given; a letter or digit is needed, then letters, digits, '_', '-' and '.', at most 100"
        )
    return name


def _checked_precision(bundle: Bundle, engine: str, given: str | None, *, merged: bool) -> str:
    """The precision that the bundle is served in."""
    from dovit_deploy.bundle.interface import FP32, MERGED, stage_name
    from dovit_deploy.engines.registry import engine_entry

    allowed = engine_entry(engine).precisions
    precision = given or allowed[0]
    if precision not in allowed:
        raise UsageError(f"engine {engine} does not run precision '{precision}'; it runs: {', '.join(allowed)}")
    # The only form that no engine makes of fp32's when it loads.
    if precision == "int8":
        bundle.graph(stage_name(0), precision=precision)
    if merged and precision not in bundle.manifest.precisions:
        raise UsageError(
            f"--merged: {bundle.path.name} has no merged graph in {precision}, which {engine} makes when it loads; "
            f"serve it with --precision {FP32}"
        )
    if merged:
        bundle.graph(MERGED, precision=precision)
    return precision
