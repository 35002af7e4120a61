"""`dovit inspect PATH`: what is in a bundle, a checkpoint, an ONNX or safetensors file, an image or a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.errors import InputError
from dovit_deploy.printing import quote

if TYPE_CHECKING:
    from dovit_deploy.checkpoints.checkpoint import Checkpoint
    from dovit_deploy.measure.inspect import Contents
    from dovit_deploy.measure.inspect_checkpoint import ExportOutlook
    from dovit_deploy.measure.inspect_network import CostRow


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="Bundle or installed model, checkpoint, .onnx, .safetensors, image, folder or video."),
    ],
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Say what is in a file, without running it."""
    from dovit_deploy.measure.inspect import contents_of
    from dovit_deploy.measure.inspect_checkpoint import CheckpointContents

    targets.claim_report(json_file, inputs=(path,))
    if not path.exists():
        # A bare word can be a name of a model, and with the suffix somebody meant one; else a path is wrong.
        if path.suffix not in ("", ".dovit") or len(path.parts) > 1:
            raise InputError(f"{path}: no such file or folder")
        path = arguments.bundle_path(path, quiet=quiet)
    try:
        contents = contents_of(path, check=_refuse_as_export_does)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read, permission denied") from error
    console.write_json(json_file, contents.model_dump(mode="json"))
    console.result(f"{contents.path}: {contents.kind}")
    # Without the first line, the empty headings.
    for line in console.plain_lines(("", ""), contents.facts)[1:]:
        console.result(f"  {line}")
    _show_tables(contents)
    for line in contents.remarks if isinstance(contents, CheckpointContents) else ():
        console.remark(f"{path.name}: {line}", quiet=not verbose)
    console.next_command(next_line(contents), quiet=quiet)


def _refuse_as_export_does(checkpoint: Checkpoint) -> None:
    """Raise UsageError for a checkpoint that an export without flags refuses."""
    from dovit_deploy.export.plan import ExportPlan

    ExportPlan.resolve(checkpoint, Path("inspected.dovit"))


def _show_tables(contents: Contents) -> None:
    """What is better read in columns: cost and files."""
    from dovit_deploy.measure.inspect import BundleContents
    from dovit_deploy.measure.inspect_checkpoint import CheckpointContents

    if isinstance(contents, BundleContents):
        _show_cost(contents.gmacs)
        files = [(name, f"{entry.bytes:,}") for name, entry in contents.manifest.files.items()]
        console.show_table("files (bytes)", ("file", "size"), [*files, ("total", f"{contents.bytes:,}")], right=(1,))
    elif isinstance(contents, CheckpointContents) and contents.network is not None:
        _show_cost(contents.network.gmacs)


def _show_cost(rows: tuple[CostRow, ...]) -> None:
    cells = [
        (row.case, *(f"{value:#.4g}" for value in (row.stem, row.layers, row.gates, row.head, row.total)))
        for row in rows
    ]
    headers = ("", "stem", "layers", "gates", "head", "total")
    console.show_table("cost (GMACs)", headers, cells, right=range(1, 6))


def next_line(contents: Contents) -> str:
    """The command to run next with such a file."""
    from dovit_deploy.measure.inspect import BundleContents

    path = Path(contents.path)
    if isinstance(contents, BundleContents):
        return arguments.first_use(path, contents.manifest)
    # A graph or the weights of a bundle are nothing by themselves.
    if (path.parent / "manifest.json").is_file():
        return f"dovit inspect {quote(str(path.parent))}"
    export = _export_of(contents)
    if export is not None and export.flags is not None:
        return f"dovit export {quote(str(path))}{export.flags}"
    if export is not None and export.headless:
        return f"dovit train DATASET --init {quote(str(path))}"
    return "dovit doctor" if export is not None or contents.kind == "onnx" else f"dovit run {quote(str(path))}"


def _export_of(contents: Contents) -> ExportOutlook | None:
    """What an export of the file would do; None for what is no checkpoint."""
    from dovit_deploy.measure.inspect_checkpoint import CheckpointContents, export_of

    if isinstance(contents, CheckpointContents):
        return contents.export
    if contents.kind != "safetensors":
        return None
    export = export_of(Path(contents.path), check=_refuse_as_export_does)
    if export.problem is not None:
        console.result(f"  network  not determined: {export.problem}")
    return export
