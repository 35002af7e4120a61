"""The Typer application and the entry points: `dovit`, `dovit-export`, `dovit-run`, `dovit-bench`."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from dovit_deploy import __version__
from dovit_deploy.commands import targets
from dovit_deploy.commands.adapt import adapt
from dovit_deploy.commands.arguments import CommonFlags, VerbCommand
from dovit_deploy.commands.batch import batch
from dovit_deploy.commands.bench import bench
from dovit_deploy.commands.build import build
from dovit_deploy.commands.cache import cache
from dovit_deploy.commands.calibrate import calibrate
from dovit_deploy.commands.doctor import doctor
from dovit_deploy.commands.evaluate import evaluate
from dovit_deploy.commands.export import export
from dovit_deploy.commands.inspect import inspect
from dovit_deploy.commands.run import run
from dovit_deploy.commands.streams import kept_streams
from dovit_deploy.commands.train import train
from dovit_deploy.commands.triton import triton
from dovit_deploy.commands.view import view
from dovit_deploy.errors import DovitError, InputError, Interrupted, OutputFailed, shown
from dovit_deploy.files import NO_ROOM
from dovit_deploy.interruption import interruptible
from dovit_deploy.printing import prepare_streams, print_remarks, print_results, print_traceback, shortened

# NumPy's matrices are small here; more threads would only spin beside those of the engine (docs/decisions/0005).
# Read when NumPy is imported, which no import above does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A call of OpenCV takes below a millisecond: a second thread saves nothing, and takes a core from the model.
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

VERBS: tuple[Callable[..., None], ...] = (
    *(run, batch, export, adapt, bench, evaluate, calibrate, train),
    *(view, build, triton, cache, inspect, doctor),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_results(f"dovit-deploy {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
]


def _application() -> typer.Typer:
    app = typer.Typer(
        name="dovit",
        help="Dynamic-token vision transformers: checkpoint -> bundle -> fast, exact, measured segmentation.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(version: Version = False) -> None:
        del version

    for verb in VERBS:
        app.command(verb.__name__, cls=VerbCommand)(verb)
    return app


def _single(verb: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(
        name=f"dovit-{verb.__name__}",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(verb.__name__, cls=VerbCommand)(verb)
    return app


# What the option parser raises: Typer may carry a copy of Click of its own, and neither is imported by name.
_WrongUsage: type[typer.BadParameter] = typer.BadParameter.__bases__[0]


def _run(app: typer.Typer, arguments: list[str]) -> int:
    """Run `app`, whatever happens to what it prints; the exit code (README, "Exit codes")."""
    prepare_streams()
    # A bug of ours; its message may hold what came from outside.
    sys.excepthook = print_traceback
    with kept_streams() as output:
        code = _code(app, arguments)
        output.flush()
        # A reader that has seen enough is no failure; and the first failure is the one that counts.
        if output.problem is None or isinstance(output.problem, BrokenPipeError) or code:
            return code
        reason = output.problem.strerror or output.problem
        print_remarks(f"error: stdout cannot be written ({reason}); the work is done, and files are complete")
        return OutputFailed.exit_code


def _code(app: typer.Typer, arguments: list[str]) -> int:
    """Run `app` and turn what happens into an exit code."""
    # The short names have no callback above their one verb that would take it.
    if arguments == ["--version"]:
        print_results(f"dovit-deploy {__version__}")
        return 0
    flags = CommonFlags()
    try:
        with interruptible():
            # Not `app()`: it would print what is wrong in its own way, with a box around it.
            code = typer.main.get_command(app).main(arguments, standalone_mode=False, obj=flags)
    except DovitError as error:
        return _say_error(error, error.lines, flags)
    except _WrongUsage as error:
        return _say_usage(error)
    except OSError as error:
        return _say_refusal(error, flags)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    finally:
        targets.release()
    if code == Interrupted.exit_code:
        # Typer makes this of Ctrl-C within a verb, without a word.
        print_remarks("interrupted")
    # Click gives what an early end was given, as of `--help`; a verb itself gives nothing.
    return code if isinstance(code, int) else 0


def _say_error(error: DovitError, lines: tuple[str, ...], flags: CommonFlags) -> int:
    if flags.verbose:
        print_remarks(*traceback.format_exc().splitlines())
    # What a reader was given may be a line of megabytes.
    first, *others = map(shortened, lines or ("",))
    print_remarks(f"error: {first}", *others)
    return error.exit_code


def _say_refusal(error: OSError, flags: CommonFlags) -> int:
    """What a file system refuses where nobody expected it: a folder that may not be searched, a name too long for it.

    What a verb writes reports itself, so that no room can only be that of the folder of temporary files.
    """
    if error.errno in NO_ROOM:
        where = error.filename or tempfile.gettempdir()
        return _say_error(OutputFailed(), (f"cannot write {where}: {error.strerror}; make room",), flags)
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return _say_error(InputError(), (reason,), flags)


def _say_usage(error: typer.BadParameter) -> int:
    # Raised where no argument at all was given; the help is printed by then.
    if type(error).__name__ != "NoArgsIsHelpError":
        print_remarks(f"error: {_with_value(error)}")
        if error.ctx is not None:
            print_remarks(f"see: {error.ctx.command_path} --help")
    return error.exit_code


def _with_value(error: typer.BadParameter) -> str:
    """The message in one line, with the value given: where Typer checks it with Pydantic, most messages lack it."""
    from pydantic import ValidationError

    # Choices are listed in lines of their own.
    message = shortened(error.format_message().replace("\n\t", " ").replace(": Value error, ", ": "))
    if not isinstance(error.__cause__, ValidationError):
        return message
    given = f"'{shown(error.__cause__.errors(include_url=False)[0]['input'])}'"
    return message if given in message else f"{message}; {given} was given"


def main() -> None:
    """`dovit VERB ...`."""
    sys.exit(_run(_application(), sys.argv[1:]))


def main_run() -> None:
    """`dovit-run SOURCE ...`."""
    sys.exit(_run(_single(run), sys.argv[1:]))


def main_export() -> None:
    """`dovit-export CHECKPOINT ...`."""
    sys.exit(_run(_single(export), sys.argv[1:]))


def main_bench() -> None:
    """`dovit-bench [BUNDLE] ...`."""
    sys.exit(_run(_single(bench), sys.argv[1:]))
