"""The distribution of road-small out of a training run: its bundle, the package around it, and its card.

    python models/road-small/make_distribution.py runs/road-small CAMVID --frozen benchmarks/protocol/road-small.json

Large weights are stored in fp16, and forms in 8 bits are made beside them; their ranges come from drives that were
trained on, never from the one that was left out. Refused (4): a run of another recipe than the one that is published
beside it or, with --frozen, was frozen, rounding that changes more than 0.01 % of the pixels, 8 bits that lose more
than a point, a distribution above 95 MB. What can be installed is written last, and only as a whole. `make_card.py`
writes the card again when there are new figures, `models/make_default.py road-small` makes it the default model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What was frozen is a matter of the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from make_card import BUNDLE, PACKAGE, RUN, TrainedRun, write_card
from protocol.frozen import Frozen, check_bundle, frozen_from_file

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.documents import read_text
from dovit_deploy.errors import CheckError, DovitError, InputError
from dovit_deploy.files import reported_writes, write_text, written_aside
from dovit_deploy.interruption import interruptible
from dovit_deploy.train.recipe import Recipe, recipe_from_file

HERE = Path(__file__).resolve().parent
DOVIT = [sys.executable, "-m", "dovit_deploy"]
MOST_BYTES = 95_000_000
"""Of all files of the distribution."""
LEAST_AGREEMENT = 0.9999
"""Of the pixels, between the weights as they were trained and as they are stored."""
CALIBRATED_ON = "train:-0006R0"

TEXTS = ("LICENSE", "NOTICE", "classes.json")
"""What lies here already and belongs to the distribution; `classes.json` has its colours."""

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "dovit-model-road-small"
version = "{version}"
description = "Weights for dovit-deploy: a dynamic-token street segmenter from DINOv2 ViT-S (non-commercial research)"
readme = "MODEL_CARD.md"
license = "CC-BY-NC-4.0"
license-files = ["LICENSE", "LICENSE-APACHE", "NOTICE"]
requires-python = ">=3.11"
dependencies = []

[project.entry-points."dovit.models"]
{default}road-small = "dovit_model_road_small"

[tool.hatch.build.targets.wheel]
packages = ["dovit_model_road_small"]
# A bundle is data: it goes in whole, whatever a version control system ignores.
artifacts = ["dovit_model_road_small/road-small.dovit/**"]

[tool.hatch.build.targets.sdist]
include = ["dovit_model_road_small", "recipes", "LICENSE", "LICENSE-APACHE", "NOTICE", "MODEL_CARD.md"]
artifacts = ["dovit_model_road_small/road-small.dovit/**"]
"""

DEFAULT_LINE = 'default = "dovit_model_road_small"\n'
"""Of `models/make_default.py`."""

MODULE = '''\
"""The bundle `road-small.dovit`: 11 classes of street scenes, from a pretrained ViT-S, trained on CamVid."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LICENSE_LINE", "bundle_path"]

LICENSE_LINE = "road-small: weights trained on CamVid, for non-commercial research only (CC BY-NC 4.0)"


def bundle_path() -> Path:
    """The bundle's folder inside this package."""
    return Path(__file__).parent / "road-small.dovit"
'''


def trained_run(run: Path, recipe: Path) -> TrainedRun:
    """What is said of the run in the folder `run`.

    Raises:
        InputError: it is no folder of a run.
        CheckError: it was made by another recipe.
    """
    try:
        record = json.loads(read_text(run / "checkpoint" / "train.json"))
        made_by = Recipe.model_validate(record["recipe"])
        last = json.loads(read_text(run / "log.jsonl").rstrip().rsplit("\n", 1)[-1])
        found = TrainedRun(
            recipe=recipe.name,
            seed=made_by.seed,
            steps=last["step"],
            minutes=round(last["seconds"] / 60, 1),
            images=record["data"]["images"],
            init=record["init"]["source"],
            init_sha256=record["init"]["sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}: no folder of a `dovit train` run that has ended ({error})") from error
    published = recipe_from_file(recipe).model_copy(update={"seed": made_by.seed})
    differs = [name for name in type(published).model_fields if getattr(published, name) != getattr(made_by, name)]
    if differs:
        raise CheckError(f"{run} was made by another recipe than {recipe}: it differs in {', '.join(differs)}")
    return found


def export(run: Path, dataset: Path, output: Path, *, threshold: str | None) -> None:
    """Write the bundle; exits with the code of `dovit export` where that fails.

    It lies in a temporary folder as yet, which no line of the export is to name.
    """
    words = ["export", run / "checkpoint", "-o", output, "--compact", "--classes", HERE / "classes.json"]
    words += ["--precision", "fp32,int8", "--calibration", f"{dataset}:{CALIBRATED_ON}"]
    words += [] if threshold is None else ["--threshold", threshold]
    print(f"exporting {run / 'checkpoint'} in fp32 and int8, which takes some minutes", file=sys.stderr)
    command = [*DOVIT, *map(str, words), "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        # It has said why.
        sys.exit(done.returncode)
    # All but the first line, which is the path.
    print(*done.stdout.splitlines()[1:], sep="\n")


def check(package: Path) -> None:
    """Raise CheckError where the package must not be published."""
    report = ParityReport.model_validate_json(read_text(package / BUNDLE / "parity.json"))
    if report.compact is None or not report.compact.agreement >= LEAST_AGREEMENT:
        raise CheckError(f"{BUNDLE}: its rounded weights agree in less than {LEAST_AGREEMENT:.2%} of the pixels")
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise CheckError(f"{BUNDLE}: {size:,} bytes, {MOST_BYTES:,} are allowed in a distribution")


def foreign(folder: Path) -> str | None:
    """What is in the package at `folder` that this script did not write."""
    known = {"__init__.py", "py.typed", "__pycache__", BUNDLE}
    return next((entry.name for entry in sorted(folder.iterdir()) if entry.name not in known), None)


def make(
    run: Path,
    dataset: Path,
    *,
    recipe: Path,
    threshold: str | None,
    version: str,
    folder: Path,
    choice: Frozen | None = None,
) -> int:
    """Write the distribution into `folder`; the bytes that it takes. `choice`: what was frozen, for `threshold`."""
    facts = trained_run(run, recipe)
    if choice is not None:
        threshold = choice.threshold_text
    if threshold is None and not (run / "curve.json").exists():
        # It is the last that a run writes, with the thresholds that it chose.
        raise CheckError(f"{run} has chosen no thresholds: give --threshold, or go on with it: dovit train --resume")
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / PACKAGE, overwrite=True, mark=foreign) as package:
        export(run, dataset, package / BUNDLE, threshold=threshold)
        write_text(package / "__init__.py", MODULE)
        write_text(package / "py.typed", "")
        check(package)
        if choice is not None:
            check_bundle(choice, run / "checkpoint", Bundle.open(package / BUNDLE))
    with reported_writes(folder):
        for text in TEXTS:
            if folder.resolve() != HERE:
                shutil.copyfile(HERE / text, folder / text)
        shutil.copyfile(HERE.parent.parent / "LICENSE", folder / "LICENSE-APACHE")
    write_text(folder / RUN, facts.model_dump_json(indent=1) + "\n")
    # Results that are there are of older weights.
    write_card(folder, None)
    # Written again, the default model stays the default one.
    project = folder / "pyproject.toml"
    default = DEFAULT_LINE if project.exists() and DEFAULT_LINE in read_text(project) else ""
    write_text(project, PYPROJECT.format(version=version, default=default))
    return sum(path.stat().st_size for path in (folder / PACKAGE).rglob("*") if path.is_file())


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `dovit train`")
    parser.add_argument("dataset", type=Path, help="CamVid, for the ranges of 8 bits and what they lose")
    thresholds = parser.add_mutually_exclusive_group()
    thresholds.add_argument("--threshold", metavar="T[,T...]", help="default: as the run chose it")
    thresholds.add_argument(
        "--frozen", type=Path, metavar="JSON", help="thresholds and recipe are what was frozen there"
    )
    parser.add_argument("--recipe", type=Path, default=HERE / "recipes" / "road-small.toml")
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="default: beside this script")
    flags = parser.parse_args(words)
    given = {"recipe": flags.recipe, "threshold": flags.threshold, "version": flags.version}
    try:
        # Also SIGTERM is raised here: else half a package would stay.
        with interruptible():
            choice = None if flags.frozen is None else frozen_from_file(flags.frozen)
            size = make(flags.run, flags.dataset, folder=flags.output, choice=choice, **given)
    except DovitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    print(f"{flags.output}: {size:,} bytes; try it: pip install --no-deps {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
