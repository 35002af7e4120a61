"""Does a recipe hold on streets never seen? Each drive in turn is left out of training and measured.

    python benchmarks/protocol/leave_one_out.py CAMVID --recipe RECIPE --drives 0001TP --init dinov2_s14.safetensors \\
        --thresholds 0.9 --work runs/drives --only train                    # likewise 0006R0 and 0016E5
    python benchmarks/protocol/leave_one_out.py CAMVID --recipe RECIPE --drives 0001TP,0006R0,0016E5 \\
        --init dinov2_s14.safetensors --thresholds 0.9 --work runs/drives --only measure \\
        -o benchmarks/results/drives.json --docs docs/benchmarks.md
    python benchmarks/protocol/leave_one_out.py --tables benchmarks/results/drives.json --docs docs/benchmarks.md

Without --only one command does all. Measured is what is trained: a drive that is not, yet, is named below the table.

The recipe is the same for all, but for what it trains on (all drives but one) and is watched on (every third piece of
ten seconds of these, so that nothing of the drive is seen). A drive is trained, exported and measured with all controls
in a folder of its own below --work; what is finished there is not done again, and an interrupted run goes on. A
folder of another recipe, seed, start, data set or thresholds is refused (4). A drive that is to stay unseen, by what is
frozen beside this script, is read only where that is committed, and the look is noted before it is taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import command_text, errors_in_a_line, output_file, page_with, publish, read_figures, write_table

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import CheckError
from dovit_deploy.files import write_text
from dovit_deploy.measure.intervals import BLOCK_SECONDS
from dovit_deploy.train.recipe import recipe_from_file
from protocol.frozen import WEIGHTS, Frozen, keeping_unseen, note_beside
from protocol.hold_out import divided
from protocol.looks import check_committed

DOVIT = [sys.executable, "-m", "dovit_deploy"]
MARK = "<!-- table: benchmarks/protocol/leave_one_out.py -->"
PLAN = "plan.json"
"""Of a drive's folder: what is done there."""
PIECE = 3
"""Every so-manieth piece of the drives that are trained on is watched."""


@dataclass(frozen=True)
class DriveRun:
    """One drive left out: where its files lie, and how they are made."""

    dataset: Path
    drive: str
    folder: Path
    """Of its own."""

    @property
    def run(self) -> Path:
        """The folder of the training."""
        return self.folder / "run"

    @property
    def bundle(self) -> Path:
        """What is measured."""
        return self.folder / "left-out.dovit"

    @property
    def report(self) -> Path:
        """Of `dovit eval` on the drive."""
        return self.folder / "eval.json"

    @property
    def is_trained(self) -> bool:
        """Whether the training ended: the curve is the last file that it writes."""
        return (self.run / "curve.json").exists()

    def commands(
        self, recipe: Path, *, init: Path | None, thresholds: str | None, seed: int, only: str | None = None
    ) -> list[list[str]]:
        """What is still to be done, in its order; `only`: to "train" or to "measure"."""
        start = [] if init is None else ["--init", str(init)]
        # A run that was killed before it saved anything begins again, and needs its start.
        again = ["--resume"] if self.run.exists() else ["--config", str(recipe), "--seed", str(seed)]
        train = ["train", str(self.dataset), "-o", str(self.run), *again, *start]
        export = ["export", str(self.run / "checkpoint"), "-o", str(self.bundle)]
        measure = ["eval", str(self.bundle), str(self.dataset), "--split", f"train:{self.drive}", "--controls"]
        measure += [] if thresholds is None else ["--threshold", thresholds]
        measure += ["--threads", "1", "--json", str(self.report)]
        steps = ((train, self.is_trained), (export, self.bundle.exists()), (measure, self.report.exists()))
        asked = {"train": steps[:1], "measure": steps[1:]}.get(only or "", steps)
        return [command for command, done in asked if not done]


def own_recipe(recipe: Path, run: DriveRun) -> Path:
    """The recipe with this drive left out, written into its folder.

    Raises:
        ConfigError: it is no recipe, or names twice what it trains on.
    """
    split, watched = f"train:-{run.drive}", run.folder / "watched.txt"
    lines = recipe.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in ("split", "watch")]
    run.folder.mkdir(parents=True, exist_ok=True)
    _, held = divided(dataset_from_path(run.dataset, split), seconds=BLOCK_SECONDS, every=PIECE)
    write_text(watched, "\n".join(held) + "\n")
    replaced = [f"split = {json.dumps(split)}", f"watch = {json.dumps(f'train:@{watched}')}"]
    own = run.folder / "recipe.toml"
    write_text(own, "\n".join([*replaced, *kept]) + "\n")
    # What is wrong in it shows before the first training, not before the third.
    recipe_from_file(own)
    return own


def claim_folder(run: DriveRun, recipe: Path, *, init: Path | None, thresholds: str | None, seed: int) -> None:
    """Note in the folder what is done there; nothing of another recipe, or made with other options, is taken for it.

    Raises:
        CheckError: the folder's note says otherwise.
        InputError, ConfigError: the recipe cannot be read, or is none.
    """
    plan = {
        "dataset": str(run.dataset),
        "recipe": recipe_from_file(recipe).model_dump(mode="json"),
        "init": None if init is None else str(init),
        "thresholds": thresholds,
        "seed": seed,
    }
    note = run.folder / PLAN
    if note.exists():
        noted = json.loads(note.read_text(encoding="utf-8"))
        other = [name for name, value in plan.items() if noted[name] != value]
        if other:
            raise CheckError(f"{run.folder} was begun with another {' and '.join(other)}; give another --work")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(plan, indent=1) + "\n")


def frozen_over(run: DriveRun) -> dict[Path, Frozen]:
    """What is frozen and keeps images of the drive unseen, by its file; CheckError where that is not committed."""
    kept = keeping_unseen(run.dataset, f"train:{run.drive}")
    for path in kept:
        check_committed(path)
    return kept


def note_drive(run: DriveRun, kept: Mapping[Path, Frozen], seed: int) -> None:
    """Write down the look that is about to be taken, beside what is frozen."""
    weights = file_entry(run.run / "checkpoint" / WEIGHTS).sha256
    note_beside(kept, weights=weights, seed=seed, command=command_text("protocol/leave_one_out.py", sys.argv[1:]))


@dataclass(frozen=True)
class HowTrained:
    """What all drives' runs have in common."""

    recipe: Path
    init: Path | None
    thresholds: str | None
    seed: int


def carry_out(run: DriveRun, how: HowTrained, *, only: str | None) -> None:
    """Do what is left of a drive; exits with the code of a command that fails.

    Args:
        run: of the drive.
        how: it is trained.
        only: to "train" or to "measure"; None: both.

    Raises:
        CheckError: the folder was begun otherwise, or what keeps the drive unseen is not committed.
    """
    claim_folder(run, how.recipe, init=how.init, thresholds=how.thresholds, seed=how.seed)
    kept = {} if only == "train" else frozen_over(run)
    own = own_recipe(how.recipe, run)
    for command in run.commands(own, init=how.init, thresholds=how.thresholds, seed=how.seed, only=only):
        if command[0] == "eval":
            note_drive(run, kept, how.seed)
        code = subprocess.run([*DOVIT, *command], check=False).returncode
        if code:
            # It has said why.
            sys.exit(code)


def figures_of(run: DriveRun) -> dict[str, Any]:
    """What was measured of a drive."""
    report = json.loads(run.report.read_text(encoding="utf-8"))
    figures = {key: report[key] for key in ("images", "thresholds", "bootstrap", "dense", "dynamic", "controls")}
    return {"drive": run.drive, **figures}


def measured(runs: Sequence[DriveRun], how: HowTrained, command: str, *, only: str | None) -> dict[str, object]:
    """The figures of all drives that are trained; raises CheckError where none is, and as `carry_out`."""
    ready = [run for run in runs if only != "measure" or run.is_trained]
    if not ready:
        raise CheckError(f"none of {', '.join(run.drive for run in runs)} is trained yet: --only train does it")
    for run in ready:
        carry_out(run, how, only=only)
    missing = [run.drive for run in runs if run not in ready]
    return {
        "recipe": how.recipe.name,
        "seed": how.seed,
        "drives": [figures_of(run) for run in ready],
        "missing": missing,
    }


def table(report: dict[str, Any]) -> str:
    """A row for every drive."""
    lines = [
        "| drive left out | images, blocks | dense | rule | MACs saved | drop (95 %) | over random | over position "
        "| over another image's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["drives"]:
        dynamic, controls = row["dynamic"], row["controls"]
        gains = " | ".join(_gain(controls[name]) for name in ("random", "position", "other"))
        lines.append(
            f"| {row['drive']} | {row['images']}, {row['bootstrap']['blocks']} | {row['dense']['miou']:.1f} "
            f"| {dynamic['miou']:.1f} | {dynamic['flops_saved']:.0%} "
            f"| {_points(dynamic['drop'], dynamic['drop_interval'])} | {gains} |"
        )
    origin = f"{report['recipe']}, seed {report['seed']}; {report['machine']['cpu']}, {report['date']}"
    missing = [f"**Not trained yet, and missing here: {', '.join(report['missing'])}.**", ""]
    return "\n".join([*lines, "", *(missing if report["missing"] else []), f"{origin}; `{report['command']}`."])


def _gain(control: dict[str, Any] | None) -> str:
    return "-" if control is None else _points(control["rule_gain"], control["rule_gain_interval"])


def _points(value: float, ends: Sequence[float] | None) -> str:
    return f"{value:.2f}" + ("" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("dataset", type=Path, nargs="?")
    result.add_argument("--recipe", type=Path, help="TOML, as `dovit train --config` takes it")
    result.add_argument("--drives", metavar="A,B,...", help="beginnings of stems")
    result.add_argument("--init", type=Path, help="as `dovit train` takes it")
    result.add_argument("--thresholds", metavar="T[,T...]", help="default: those that each training chose")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--work", type=Path, help="folder of all runs")
    result.add_argument("--only", choices=("train", "measure"), help="default: both")
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the table of this result; measure nothing")
    result.add_argument("--docs", type=page_with(MARK), help="page with the table's marks")
    return result


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.tables is not None:
        report = read_figures(options.tables, names=("drives", "recipe", "seed", "missing"))
    elif None in (options.dataset, options.recipe, options.drives, options.work):
        command_line.error("DATASET, --recipe, --drives and --work are needed, or --tables")
    else:
        drives = options.drives.split(",")
        if not all(drives):
            command_line.error(f"--drives {options.drives}: names separated by commas are needed")
        runs = [DriveRun(options.dataset, drive, options.work / drive) for drive in drives]
        how = HowTrained(options.recipe, options.init, options.thresholds, options.seed)
        if options.only == "train":
            for run in runs:
                carry_out(run, how, only="train")
            return
        command = command_text("protocol/leave_one_out.py", sys.argv[1:] if arguments is None else arguments)
        report = publish(measured(runs, how, command, only=options.only), command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, table(report))


if __name__ == "__main__":
    main()
