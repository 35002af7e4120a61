"""`dovit inspect PATH`: what is in a bundle, a checkpoint, an ONNX or safetensors file, an image or a video."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.commands.console import plain_lines, show_table
from dovit_deploy.errors import InputError

if TYPE_CHECKING:
    from dovit_deploy.measure.inspect import CostRow

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
CHECKPOINT_FILES = ("config.json", "checkpoint.pth")
"""Of our own format, and of Segmenter's; either makes a folder a checkpoint."""


class Contents(Protocol):
    """What was found; every kind of file has its own record."""

    @property
    def kind(self) -> str:
        """What the file is."""

    @property
    def path(self) -> str:
        """What was inspected."""

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and text, in the order in which a user reads them."""

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """Everything, as JSON values."""


def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle, checkpoint, .onnx, .safetensors, image, folder or video.")],
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Say what is in a file, without running it."""
    console.check_writable(json_file, given=path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    try:
        contents = contents_of(path)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read, permission denied") from error
    console.result(f"{contents.path}: {contents.kind}")
    for line in plain_lines(("", ""), contents.rows)[1:]:
        console.result(f"  {line}")
    _show_tables(contents)
    console.write_json(json_file, contents.model_dump(mode="json"))
    console.next_command(next_line(contents), quiet=quiet)


def contents_of(path: Path) -> Contents:
    """Tell what `path` is, by its suffix and what lies in it, and read it.

    Raises:
        InputError: it cannot be read, or is nothing that is known here.
        UntrustedError: a bundle or checkpoint that must not be trusted.
        PackageMissing: what reads it is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".dovit" or (path / "manifest.json").is_file():
        from dovit_deploy.bundle.bundle import Bundle
        from dovit_deploy.measure.inspect import bundle_contents

        return bundle_contents(Bundle.open(path))
    if suffix in CHECKPOINT_SUFFIXES or any((path / name).is_file() for name in CHECKPOINT_FILES):
        packages.load("torch")
        from dovit_deploy.commands.checkpoint_contents import checkpoint_contents

        return checkpoint_contents(path)
    if suffix == ".onnx" and path.is_file():
        from dovit_deploy.measure.onnx_contents import onnx_contents

        return onnx_contents(path)
    if suffix == ".safetensors" and path.is_file():
        from dovit_deploy.measure.safetensors_contents import safetensors_contents

        return safetensors_contents(path)
    from dovit_deploy.measure.inspect import picture_contents

    return picture_contents(path)


def _show_tables(contents: Contents) -> None:
    """What is better read in columns: cost and files."""
    from dovit_deploy.measure.inspect import BundleContents

    if isinstance(contents, BundleContents):
        show_cost(contents.gmacs)
        files = [(name, f"{entry.bytes:,}") for name, entry in contents.manifest.files.items()]
        show_table("files (bytes)", ("file", "size"), [*files, ("total", f"{contents.bytes:,}")], right=(1,))
        return
    network = getattr(contents, "network", None)
    if network is not None:
        show_cost(network.gmacs)


def show_cost(rows: tuple[CostRow, ...]) -> None:
    """A table of GMACs by part."""
    cells = [
        (row.case, *(f"{value:#.4g}" for value in (row.stem, row.layers, row.gates, row.head, row.total)))
        for row in rows
    ]
    show_table("cost (GMACs)", ("", "stem", "layers", "gates", "head", "total"), cells, right=range(1, 6))


def next_line(contents: Contents) -> str:
    """What one does with such a file."""
    from dovit_deploy.measure.inspect import BundleContents

    path = Path(contents.path)
    if isinstance(contents, BundleContents):
        return first_use(path, contents.manifest)
    if (path.parent / "manifest.json").is_file():
        return f"dovit inspect {quote(str(path.parent))}"
    if contents.kind in ("checkpoint", "safetensors"):
        needs = " --config FILE" if getattr(contents, "problem", None) else ""
        return f"dovit export {quote(str(path))}{needs}"
    return "dovit doctor" if contents.kind == "onnx" else f"dovit run {quote(str(path))}"
