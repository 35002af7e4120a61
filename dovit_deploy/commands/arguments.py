"""Options that several verbs share, declared once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from dovit_deploy.commands import console
from dovit_deploy.engines.registry import AUTO, ENGINES, engine_names
from dovit_deploy.errors import UsageError
from dovit_deploy.printing import quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.families.parts import PositionMode


@dataclass
class CommonFlags:
    """The flags that every verb takes: `cli` makes one for each call of a verb, and the flags' callbacks fill it."""

    verbose: bool = False


def _note_verbose(context: typer.Context, value: bool) -> bool:
    # A verb that is called without `cli`, as in a test, has none.
    if isinstance(context.obj, CommonFlags):
        context.obj.verbose = value
    return value


JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON here.")]
PageFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a page to look at here.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints; results and errors only.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_note_verbose, help="More detail, and the traceback of an error."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if this verb wrote it.")]
BundleName = Annotated[Path, typer.Argument(metavar="BUNDLE", help="NAME.dovit, or the name of an installed model.")]
BundleFirst = Annotated[
    Path, typer.Argument(metavar="[BUNDLE]", help="NAME.dovit or an installed model; default: the default model.")
]
"""One of two positional arguments; see `bundle_and_dataset`."""
OptionalBundle = Annotated[
    Path | None,
    typer.Option("--bundle", help="NAME.dovit, or the name of an installed model; default: the installed default."),
]
ClassNames = Annotated[
    Path | None,
    typer.Option("--classes", help="Class names instead of the bundle's: a line each, or JSON, as a data set's."),
]
SaveKinds = Annotated[
    str | None,
    typer.Option(
        "--save",
        metavar="KIND[,KIND...]",
        help="overlay, masks, tokens, report, coco, cityscapes. Default: overlay, report; of images also masks.",
    ),
]
StopNothing = Annotated[bool, typer.Option("--dense", help="Stop nothing: every token runs through every layer.")]
Every = Annotated[int, typer.Option(min=1, max=10**9, help="Take every N-th frame.")]
NoLegend = Annotated[
    bool, typer.Option("--no-legend", help="Only colours: no class names, speed or savings on what is painted.")
]


def _precision_lines() -> str:
    """ "onnxruntime, torch: fp32; cuda: fp32, fp16": the engines with the same precisions together."""
    engines: dict[str, list[str]] = {}
    for name, entry in ENGINES.items():
        engines.setdefault(", ".join(entry.precisions), []).append(name)
    return "; ".join(f"{', '.join(names)}: {precisions}" for precisions, names in engines.items())


ENGINE_LINE = ", ".join(f"{name} ({entry.purpose})" for name, entry in ENGINES.items())
PRECISION_LINE = f"{_precision_lines()}; an engine's first is its default"


class VerbCommand(typer.core.TyperCommand):
    """A verb that takes no text which no file can be called, and whose help also names engines of other distributions.

    Those are searched for only when the help is shown.
    """

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  as above it
        for parameter in self.params:
            refuse_impossible(ctx.params.get(parameter.name), option=parameter.opts[0])
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  Typer's versions differ in the types
        others = [name for name in engine_names() if name not in ENGINES]
        for parameter in self.params:
            if others and parameter.name == "engine" and isinstance(parameter, typer.core.TyperOption):
                parameter.help = f"{parameter.help} Also installed: {', '.join(others)}."
        super().format_help(ctx, formatter)


EngineName = Annotated[str, typer.Option("--engine", help=f"{ENGINE_LINE}.")]
EngineOrAuto = Annotated[
    str, typer.Option("--engine", help=f"{AUTO} (the fastest here within the bundle's accuracy), {ENGINE_LINE}.")
]
Precision = Annotated[
    str | None, typer.Option("--precision", help=f"Number format of weights and arithmetic. {PRECISION_LINE}.")
]
CudaMemory = Annotated[
    str | None,
    typer.Option("--cuda-memory", metavar="NAME", help="GPU memory through cuda-core (default) or pycuda; TensorRT."),
]
TrustEngine = Annotated[
    bool,
    typer.Option("--trust-engine", help="Run built engines that came with the bundle: they could run anything."),
]
DeadlineMs = Annotated[
    float | None,
    typer.Option(metavar="D", help="Of a frame's model step: where it would take longer, the surest tokens stop, too."),
]
OtherNames = Annotated[
    Path | None,
    typer.Option("--classes", help="Class names instead of the bundle's: a line each, or JSON, as a data set's."),
]
MaxPoints = Annotated[
    float | None,
    typer.Option(
        "--max-drop", metavar="POINTS", help="mIoU that may be lost at most: upper end of the drop's 95 % interval."
    ),
]
LatencyMs = Annotated[
    float | None, typer.Option(metavar="MS", help="Median model step at most, by a latency model of this machine.")
]
MaxDisagree = Annotated[
    float | None,
    typer.Option(metavar="E", help="Share of the pixels that may differ from the dense answer; needs no labels."),
]
Confidence = Annotated[
    float | None, typer.Option(metavar="C", help="With which confidence --max-disagree must hold, as 0.95.")
]
UnitName = Annotated[
    str | None,
    typer.Option(help="What --max-disagree counts as independent: image, block (10 s of recording) or drive."),
]
FrameNumbersPerSecond = Annotated[
    float | None, typer.Option(metavar="HZ", help="Frame numbers a second in the names of the images, for blocks.")
]
AuditEvery = Annotated[
    int | None,
    typer.Option(
        min=1, max=10**9, metavar="N", help="Run one of N frames, drawn, dense too: does the model still agree?"
    ),
]
OnDrift = Annotated[
    str | None,
    typer.Option(help="When it no longer does: warn (default), tighten (more cautious thresholds) or dense."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=1024, help="Threads; default: all cores. `run` gives each image of a folder one."
    ),
]
CheckpointPath = Annotated[
    Path | None,
    typer.Argument(
        help="Checkpoint: .pth, .safetensors, or a folder of dovit's own, of transformers or of timm.",
        show_default=False,
    ),
]
BackboneFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="In place of CHECKPOINT: a backbone without a head, for --head.")
]
HeadFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The decode head, from a file of its own.")]
POSITIONS: tuple[PositionMode, ...] = ("scale", "size", "antialias")
"""What `--positions` takes: the three ways of DINOv2 and timm."""
Positions = Annotated[
    str | None,
    typer.Option(metavar="|".join(POSITIONS), help="How positions are resized; default: as the source does it."),
]
Threshold = Annotated[
    str | None,
    typer.Option("--threshold", metavar="T[,T...]", help="Confidence above which a token stops: one, or one per gate."),
]
Classes = Annotated[
    Path | None,
    typer.Option("--classes", metavar="FILE", help="The classes of the label maps: classes.json, or a name per line."),
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Of a folder also the images in the folders below it.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, max=10**12, help="Refuse images with more pixels than this; default: 150 million."
    ),
]


# The bundle that is meant.


def bundle_path(given: Path | None, *, quiet: bool) -> Path:
    """Where the bundle lies that was named by its path or as an installed model, whose licence is then shown.

    Raises:
        InputError: there is none; the message lists the installed models.
    """
    from dovit_deploy.bundle.installed import chosen_bundle

    chosen = chosen_bundle(given)
    if chosen.licence:
        console.remark(chosen.licence, quiet=quiet)
    return chosen.path


def bundle_and_dataset(first: Path, second: Path | None) -> tuple[Path | None, Path]:
    """The positional arguments `[BUNDLE] DATASET`: one alone is the data set, for the default model.

    Raises:
        UsageError: the one that is given is a bundle.
    """
    if second is not None:
        return first, second
    # A data set may be called anything, so only what surely is a bundle is refused.
    if first.suffix == ".dovit" or (first / "manifest.json").is_file():
        raise UsageError(f"DATASET is missing: {first} is a bundle; give the data set after it")
    return None, first


# Text of an option -> value, with one-line errors.


def refuse_impossible(value: object, *, option: str) -> None:
    """Refuse text that no system call takes, so that no reader or writer of a path has to think of it.

    Raises:
        UsageError: it holds a NUL, or a half of a pair of surrogates, which is no character.
    """
    if not isinstance(value, str | Path):
        return
    try:
        possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise UsageError(f"{option}: '{value}' holds a character that no name of a file or other thing can have")


def numbers(text: str, *, option: str) -> tuple[float, ...]:
    """ "0.9,0.95" -> (0.9, 0.95)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: '{text}' given; numbers separated by commas are needed, as 0.9,0.95") from error


def thresholds(text: str | None) -> tuple[float, ...] | None:
    """The values of `--threshold`, each within [0, 1]."""
    if text is None:
        return None
    return numbers_within_one(text, option="--threshold")


def numbers_within_one(text: str, *, option: str) -> tuple[float, ...]:
    """As `numbers`, each within [0, 1]."""
    values = numbers(text, option=option)
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"{option}: {value:g} is outside [0, 1]")
    return values


def thresholds_or_one(text: str | None) -> float | tuple[float, ...] | None:
    """As the runtime takes them: a single value holds for all gates, several are one for each."""
    values = thresholds(text)
    return values[0] if values is not None and len(values) == 1 else values


def size(text: str | None, *, option: str) -> tuple[int, int] | None:
    """ "512x1024" -> (512, 1024): height x width in pixels."""
    if text is None:
        return None
    # ASCII only: `isdigit` is also true of "²", which is no number to `int`. Six digits are more than any image has.
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.lower())
    if found is None:
        raise UsageError(f"{option}: '{text}' given; HEIGHTxWIDTH in pixels is needed, as 512x1024")
    return int(found[1]), int(found[2])


def triple(text: str | None, *, option: str) -> tuple[float, float, float] | None:
    """ "123.7,116.3,103.5" -> three numbers: red, green, blue."""
    if text is None:
        return None
    values = numbers(text, option=option)
    if len(values) != 3:
        raise UsageError(f"{option}: {len(values)} numbers given, 3 are needed: red,green,blue")
    return values[0], values[1], values[2]


def names(text: str, *, option: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """ "overlay,masks" -> ("overlay", "masks"), each one of `allowed`."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in parts if part not in allowed]
    if unknown or not parts:
        raise UsageError(f"{option}: '{text}' given; allowed: {', '.join(allowed)}, separated by commas")
    return parts


PLACEHOLDER = "YOUR_IMAGE_OR_VIDEO"
"""Stands for a file of the user's own in a suggested command."""


def first_use(bundle: Path, manifest: Manifest) -> str:
    """What to try first with a bundle: an image; a backbone without a head can only be timed."""
    from dovit_deploy.runtime.tasks import takes_images

    if takes_images(manifest):
        return f"dovit run {PLACEHOLDER} --bundle {quote(str(bundle))}"
    return f"dovit bench {quote(str(bundle))}"


def checkpoint_path(checkpoint: Path | None, *, backbone: Path | None, head: Path | None) -> Path:
    """The one of CHECKPOINT and `--backbone` that is given."""
    if checkpoint is not None and backbone is not None:
        raise UsageError(f"CHECKPOINT {checkpoint} and --backbone {backbone} are both given; give one of them")
    if backbone is not None and head is None:
        raise UsageError(f"--backbone {backbone} needs --head FILE; a file with both is given as CHECKPOINT")
    path = checkpoint or backbone
    if path is None:
        raise UsageError("no checkpoint given; give CHECKPOINT, or --backbone FILE with --head FILE")
    return path


def position_mode(given: str | None) -> PositionMode | None:
    """What `--positions` means; None where it is not given."""
    mode = next((mode for mode in POSITIONS if mode == given), None)
    if given is not None and mode is None:
        raise UsageError(f"--positions: '{given}' given; allowed: {', '.join(POSITIONS)}")
    return mode
