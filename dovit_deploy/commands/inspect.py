"""`dovit inspect PATH`: what is in a bundle, a checkpoint, an ONNX or safetensors file, an image or a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.errors import InputError
from dovit_deploy.printing import quote

if TYPE_CHECKING:
    from dovit_deploy.measure.inspect import Contents, CostRow


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

    targets.claim_report(json_file, inputs=(path,))
    if not path.exists():
        # Only a bare word can be a name of a model; a path is a path that is wrong.
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"{path}: no such file or folder")
        path = arguments.bundle_path(path, quiet=quiet)
    try:
        contents = contents_of(path)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read, permission denied") from error
    console.write_json(json_file, contents.model_dump(mode="json"))
    console.result(f"{contents.path}: {contents.kind}")
    # Without the first line, the empty headings.
    for line in console.plain_lines(("", ""), contents.facts)[1:]:
        console.result(f"  {line}")
    _show_tables(contents)
    console.next_command(next_line(contents), quiet=quiet)


def _show_tables(contents: Contents) -> None:
    """What is better read in columns: cost and files."""
    from dovit_deploy.measure.inspect import BundleContents, CheckpointContents

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
    from dovit_deploy.measure.inspect import BundleContents, CheckpointContents

    path = Path(contents.path)
    if isinstance(contents, BundleContents):
        return arguments.first_use(path, contents.manifest)
    # A graph or the weights of a bundle are nothing by themselves.
    if (path.parent / "manifest.json").is_file():
        return f"dovit inspect {quote(str(path.parent))}"
    if isinstance(contents, CheckpointContents):
        return f"dovit export {quote(str(path))}{' --config FILE' if contents.problem else ''}"
    if contents.kind == "safetensors":
        return f"dovit export {quote(str(path))}"
    return "dovit doctor" if contents.kind == "onnx" else f"dovit run {quote(str(path))}"
