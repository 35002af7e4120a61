"""The Typer application and the entry points: `dovit`, `dovit-export`, `dovit-run`, `dovit-bench`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from dovit_deploy import __version__
from dovit_deploy.commands import targets
from dovit_deploy.commands.arguments import CommonFlags, VerbCommand
from dovit_deploy.commands.bench import bench
from dovit_deploy.commands.build import build
from dovit_deploy.commands.cache import cache
from dovit_deploy.commands.calibrate import calibrate
from dovit_deploy.commands.doctor import doctor
from dovit_deploy.commands.evaluate import evaluate
from dovit_deploy.commands.export import export
from dovit_deploy.commands.inspect import inspect
from dovit_deploy.commands.run import run
from dovit_deploy.commands.train import train
from dovit_deploy.credentials import masked
from dovit_deploy.errors import DovitError, Interrupted

# NumPy's matrices are small here; more threads would only spin beside those of the engine (docs/decisions/0005).
# Read when NumPy is imported, which no import above does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

VERBS: tuple[Callable[..., None], ...] = (run, export, bench, evaluate, calibrate, train, build, cache, inspect, doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"dovit-deploy {__version__}\n")
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


def _run(app: typer.Typer, arguments: list[str]) -> int:
    """Run `app` and turn what happens into an exit code (README, "Exit codes")."""
    # The short names have no callback above their one verb that would take it.
    if arguments == ["--version"]:
        sys.stdout.write(f"dovit-deploy {__version__}\n")
        return 0
    flags = CommonFlags()
    try:
        app(args=arguments, obj=flags)
    except DovitError as error:
        if flags.verbose:
            sys.stderr.write(masked(traceback.format_exc()))
        sys.stderr.write(f"error: {masked(str(error))}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return Interrupted.exit_code
    # Click leaves this way in any case: 0 when done, 2 for wrong usage.
    except SystemExit as leaving:
        # Typer makes this of Ctrl-C within a verb, without a word.
        if leaving.code == Interrupted.exit_code:
            sys.stderr.write("interrupted\n")
        return leaving.code if isinstance(leaving.code, int) else 0
    finally:
        targets.release()
    return 0


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
