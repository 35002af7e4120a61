"""Why not a static network of the same class? Training runs of several seeds on the same frames, one table an engine.

    python benchmarks/why_not/rivals.py CAMVID --runs runs --ours class \\
        --rivals class-dense class-dense-392x294 class-10-layers class-8-layers class-6-layers --seeds 0 1 2 \\
        --frozen benchmarks/protocol/class.json --smaller 294x392 --merge 48 64 --split train:0006R0 --split val/8 \\
        --runtimes onnxruntime:fp32 openvino:int8 \\
        --calibration CAMVID:train:@benchmarks/protocol/fit.txt --work work/rivals \\
        -o benchmarks/results/rivals.json --docs docs/benchmarks.md
    python benchmarks/why_not/rivals.py --tables benchmarks/results/rivals.json --docs docs/benchmarks.md

RUNS/NAME-seedN is the folder of a `dovit train` run. Each is exported into --work, ours at the thresholds that are
given and at smaller inputs, and a rival is dense-trained, at a smaller input, or shallower, as its network says;
NAME@HxW is that network at another input than it was trained at. Runs that have not ended are left out, and the tables
say so. What is done in --work is kept, a file for each network, seed, runtime and way: an interrupted command goes on,
and further seeds, splits and runtimes only add to it. Networks or settings other than those it was begun with are
refused (4). SPLIT/N judges each Nth image of a split.

`--measure exports accuracy` does what needs no quiet machine, `--measure latency` times a few images (`--timed`) in
pairs with our dense run; without it both are done. What is to stay unseen, by what is frozen in `benchmarks/protocol`,
is measured with --frozen alone, where that is committed and no network saw it, and each look is noted as
`protocol/frozen.py read` does.

With --size all are exported at that size, for images of more pixels: `python -m dovit_scenes` renders some, in which
every pixel is drawn and none enlarged (docs/benchmarks.md has the commands). --table NAME: of their marks in a page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol.frozen import (
    check_bundle,
    check_unseen,
    frozen_from_file,
    keeping_unseen,
    refuse_seen,
    trained_from_file,
)
from protocol.looks import Look, check_committed, note_look
from report import at_least, command_text, errors_in_a_line, output_file, page_with, publish, read_figures, write_table

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.interface import FP32
from dovit_deploy.commands.arguments import numbers_within_one
from dovit_deploy.commands.arguments import size as size_from_text
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import CheckError
from why_not.cells import CellFolder, CellKey
from why_not.compare import runtime
from why_not.contenders import OURS, Asked, Contender, RivalContest, contest
from why_not.exports import WEIGHTS, RunExports
from why_not.rivals_result import JudgedContender, RivalTable, page, table_of
from why_not.ways import Runtime

SCRIPT = "benchmarks/why_not/rivals.py"
STEPS = ("exports", "accuracy", "latency")


@dataclass(frozen=True)
class CellPlan:
    """Which cells there are to be, of what can be compared."""

    contest: RivalContest
    splits: tuple[str, ...]
    runtimes: tuple[Runtime, ...]

    def judged_in(self, one: Runtime, contender: Contender) -> Runtime:
        """fp32 is the same in every engine: it is judged in the first that computes it."""
        own = contender.computed_in(one)
        if own.precision != FP32:
            return own
        return next((other for other in self.runtimes if other.precision == FP32), Runtime())

    def accuracy_key(self, contender: Contender, one: Runtime, split: str) -> CellKey:
        """Of the cell whose answers a table shows."""
        return CellKey(contender, self.judged_in(one, contender), split)

    def latency_key(self, contender: Contender, one: Runtime, split: str) -> CellKey | None:
        """Of the cell of its times; None: another seed's stands for it, or it is what all are timed against."""
        if contender.family == "dense":
            return None
        if contender.stops:
            return CellKey(contender, one, split)
        alike = [other for other in self.contest.contenders if (other.family, other.name) == _kind(contender)]
        return CellKey(contender, one, self.splits[0]) if contender is alike[0] else None

    def accuracy_keys(self) -> tuple[CellKey, ...]:
        """All cells of answers, each once."""
        keys = (self.accuracy_key(*each) for each in self._all())
        return tuple(dict.fromkeys(keys))

    def latency_keys(self) -> tuple[CellKey, ...]:
        """All cells of times, each once; those of one runtime and seed together."""
        keys = (self.latency_key(*each) for each in self._all())
        found = dict.fromkeys(key for key in keys if key is not None)
        return tuple(sorted(found, key=lambda key: (self.runtimes.index(key.runtime), key.contender.seed)))

    def dense_of(self, contender: Contender) -> Contender:
        """Our dense run of the same seed."""
        return next(one for one in self.contest.contenders if (one.seed, one.family) == (contender.seed, "dense"))

    def _all(self) -> Iterator[tuple[Contender, Runtime, str]]:
        for one in self.runtimes:
            for split in self.splits:
                for contender in self.contest.contenders:
                    yield contender, one, split


def _kind(contender: Contender) -> tuple[str, str]:
    return contender.family, contender.name


def check_choice(exports: RunExports, options: argparse.Namespace, found: RivalContest) -> None:
    """Raise CheckError where a network of ours is not what was frozen."""
    if options.frozen is not None:
        frozen = frozen_from_file(options.frozen)
        for one in found.contenders:
            if one.family == OURS:
                check_bundle(frozen, exports.checkpoint(options.ours, one.seed), Bundle.open(one.bundle))


def note_looks(
    exports: RunExports, options: argparse.Namespace, seeds: Sequence[int], splits: Sequence[str], command: str
) -> None:
    """With --frozen: write down, before it is taken, a look at the split that was to stay unseen.

    Args:
        exports: of the runs.
        options: of the command line.
        seeds: whose networks are about to be measured.
        splits: that they are about to be measured on.
        command: that looks.

    Raises:
        CheckError: what is frozen is not committed, a network has seen the split, or other weights of a seed were read.
    """
    if options.frozen is None:
        return
    frozen = frozen_from_file(options.frozen)
    unseen = set(dataset_from_path(options.dataset, frozen.reads).stems)
    if not any(unseen & set(dataset_from_path(options.dataset, split).stems) for split in splits):
        return
    check_committed(options.frozen)
    check_unseen(frozen, options.dataset)
    names = [rival.partition("@")[0] for rival in options.rivals]
    for name, seed in ((name, seed) for seed in seeds for name in names if exports.has_ended(name, seed)):
        recipe = trained_from_file(exports.checkpoint(name, seed)).recipe
        refuse_seen(frozen, options.dataset, f"{name} trains on", recipe.split)
        refuse_seen(frozen, options.dataset, f"{name} is watched on", recipe.watch)
    for seed in seeds:
        weights = file_entry(exports.checkpoint(options.ours, seed) / WEIGHTS).sha256
        look = Look(reads=frozen.reads, frozen=frozen.digest, weights=weights, seed=seed, command=command)
        # At the same weights: a table of more splits, seeds or engines is another look at what was chosen.
        note_look(options.frozen.parent, look, again=True)


def refuse_unseen(dataset: Path, split: str) -> None:
    """Raise CheckError where `split` has images that are to stay unseen."""
    for path, frozen in keeping_unseen(dataset, split).items():
        raise CheckError(
            f"--split {split} has images of {frozen.reads}, which are to stay unseen; "
            f"--frozen {path} in place of --threshold notes the look"
        )


def measured(options: argparse.Namespace, command: str) -> dict[str, object]:
    """The figures of all that is asked for and there; `command`: what asked."""
    every = dict(_share(text) for text in options.split or ["val"])
    for split in every:
        # All splits are found, and may be read, before the first network is exported.
        dataset_from_path(options.dataset, split)
        if options.frozen is None:
            refuse_unseen(options.dataset, split)
    bundles, folder = options.work / "bundles", options.work / "cells"
    for one in (bundles, folder):
        one.mkdir(parents=True, exist_ok=True)
    exports = RunExports(options.runs, bundles, options.threshold, options.size, options.calibration)
    asked = Asked(options.ours, options.rivals, options.seeds, options.curve, options.smaller, options.merge)
    plan = CellPlan(contest(exports, asked), tuple(every), tuple(options.runtimes))
    for run in plan.contest.missing:
        print(f"{run}: not there, or not ended; left out", file=sys.stderr)
    check_choice(exports, options, plan.contest)
    cells = CellFolder(folder, options.dataset, every=every, timed=options.timed)
    measure(
        plan, cells, options.measure, note=lambda seeds, splits: note_looks(exports, options, seeds, splits, command)
    )
    tables = [table.model_dump(mode="json") for table in tables_of(plan, cells)]
    figures: dict[str, object] = {"dataset": options.dataset.name, "timed": options.timed, "tables": tables}
    figures["every"] = {split: number for split, number in every.items() if number > 1}
    if options.size is not None:
        trained = exports.trained_size(options.ours, plan.contest.seeds[0])
        figures["sizes"] = {"run": list(size_from_text(options.size, option="--size") or ()), "trained": list(trained)}
    return figures


def measure(
    plan: CellPlan, cells: CellFolder, steps: Sequence[str], *, note: Callable[[Sequence[int], Sequence[str]], None]
) -> None:
    """Measure the cells that are not there yet; `note` is told, before the first, of all their seeds and splits."""
    judged = [key for key in plan.accuracy_keys() if "accuracy" in steps and not cells.has_accuracy(key)]
    timed = [key for key in plan.latency_keys() if "latency" in steps and not cells.has_latency(key)]
    left = [*judged, *timed]
    note(sorted({key.contender.seed for key in left}), list(dict.fromkeys(key.split for key in left)))
    for key in judged:
        cells.accuracy(key)
    for key in timed:
        cells.latency(key, plan.dense_of(key.contender))


def tables_of(plan: CellPlan, cells: CellFolder) -> list[RivalTable]:
    """A table for each runtime and split, of the cells that are there; none where no seed of ours is judged."""
    tables = []
    for one in plan.runtimes:
        for split in plan.splits:
            judged = list(_judged(plan, cells, one, split))
            if judged:
                judge = plan.judged_in(one, judged[0].contender).engine
                left = [each for each in plan.contest.contenders if each not in [done.contender for done in judged]]
                tables.append(
                    table_of(
                        judged,
                        split=split,
                        runtime=one,
                        judged_in=judge,
                        missing=plan.contest.missing,
                        unmeasured=[f"{each.name} (seed {each.seed})" for each in left],
                    )
                )
    return tables


def _judged(plan: CellPlan, cells: CellFolder, one: Runtime, split: str) -> Iterator[JudgedContender]:
    """What is known of each contender in a table, of the seeds of which ours is judged, dense and as it runs."""
    known = [each for each in plan.contest.contenders if cells.has_accuracy(plan.accuracy_key(each, one, split))]
    ours, dense = ({each.seed for each in known if each.family == family} for family in (OURS, "dense"))
    for contender in known:
        if contender.seed in ours & dense:
            times = plan.latency_key(contender, one, split)
            timed = times is not None and cells.has_latency(times)
            latency = cells.latency(times, plan.dense_of(contender)) if times is not None and timed else None
            yield JudgedContender(contender, cells.accuracy(plan.accuracy_key(contender, one, split)), latency)


def mark(name: str) -> str:
    """The line before the tables of this name in a page."""
    return f"<!-- table: {' '.join(filter(None, (SCRIPT, name)))} -->"


def _share(text: str) -> tuple[str, int]:
    """ "val/4" -> ("val", 4): each fourth image."""
    split, slash, number = text.rpartition("/")
    return (split, int(number)) if slash and number.isdecimal() and int(number) else (text, 1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("dataset", type=Path, nargs="?")
    result.add_argument("--runs", type=Path, help="folder of the runs, each called NAME-seedN")
    result.add_argument("--ours", metavar="NAME", help="of the runs with gates")
    result.add_argument(
        "--rivals", nargs="+", metavar="NAME[@HxW]", help="of the static ones, the dense-trained among them"
    )
    result.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2])
    result.add_argument("--threshold", metavar="T[,T...]", help="of ours: the operating point that was chosen before")
    result.add_argument("--frozen", type=Path, metavar="JSON", help="... as `protocol/frozen.py freeze` wrote it down")
    result.add_argument("--curve", nargs="*", default=[], metavar="T", help="further thresholds")
    result.add_argument("--size", metavar="HxW", help="of all inputs; default: as each was trained")
    result.add_argument("--smaller", nargs="*", default=[], metavar="HxW", help="ours dense at these inputs")
    result.add_argument("--merge", type=at_least(1), nargs="*", default=[], help="tokens merged per layer")
    result.add_argument(
        "--split", action="append", metavar="SPLIT[/N]", help="as `dovit eval` takes it; may be repeated; default: val"
    )
    result.add_argument(
        "--runtimes", nargs="+", type=runtime, default=[Runtime()], metavar="ENGINE:PRECISION", help="a table for each"
    )
    result.add_argument("--calibration", metavar="SRC", help="as `dovit export` takes it; int8 needs it")
    result.add_argument(
        "--measure", nargs="+", choices=STEPS, default=list(STEPS), help="what is done; exports come with either"
    )
    result.add_argument("--timed", type=at_least(1), default=8, help="images that latency is measured on")
    result.add_argument("--work", type=Path, help="folder of all that is made on the way")
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result; measure nothing")
    result.add_argument("--docs", type=Path, help="page with the tables' marks")
    result.add_argument("--table", metavar="NAME", default="", help="of the marks, where a page has tables of several")
    return result


def check(command_line: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what cannot be meant."""
    if (options.threshold is None) == (options.frozen is None):
        command_line.error("one of --threshold and --frozen is needed, or --tables")
    if options.frozen is not None:
        options.threshold = frozen_from_file(options.frozen).threshold_text
    needed = ("dataset", "runs", "ours", "rivals", "work")
    missing = [name for name in needed if getattr(options, name) is None]
    if missing:
        command_line.error(f"{', '.join(missing)}: needed, or --tables")
    if any(one.precision == "int8" for one in options.runtimes) and options.calibration is None:
        command_line.error("--runtimes with int8 needs --calibration SRC, without the drive that is measured on")
    numbers_within_one(options.threshold, option="--threshold")
    others = [rival.partition("@")[2] for rival in options.rivals if "@" in rival]
    for text in (*options.smaller, *others, *([] if options.size is None else [options.size])):
        size_from_text(text, option="--smaller, --size, --rivals NAME@HxW")


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured, and write the tables."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.docs is not None:
        try:
            page_with(mark(options.table))(str(options.docs))
        except argparse.ArgumentTypeError as error:
            command_line.error(f"--docs: {error}")
    if options.tables is not None:
        report = read_figures(options.tables, names=("tables", "dataset", "timed"))
    else:
        check(command_line, options)
        command = command_text("why_not/rivals.py", sys.argv[1:] if arguments is None else arguments)
        report = publish(measured(options, command), command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, mark(options.table), page(report))


if __name__ == "__main__":
    main()
