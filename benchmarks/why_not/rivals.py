"""Why not a static network of the same class? Training runs of several seeds on the same frames, one table an engine.

    python benchmarks/why_not/rivals.py CAMVID --runs runs --ours class \\
        --rivals class-dense class-dense-392x294 class-10-layers class-8-layers class-6-layers --seeds 0 1 2 \\
        --frozen benchmarks/protocol/class.json --smaller 294x392 --merge 16 32 48 --split train:0006R0 --split val \\
        --runtimes onnxruntime:fp32 onnxruntime:int8 openvino:fp32 openvino:bf16 openvino:int8 \\
        --calibration CAMVID:train:@benchmarks/protocol/fit.txt --work work/rivals \\
        -o benchmarks/results/rivals.json --docs docs/benchmarks.md
    python benchmarks/why_not/rivals.py --tables benchmarks/results/rivals.json --docs docs/benchmarks.md

RUNS/NAME-seedN is the folder of a `dovit train` run. Each is exported into --work, ours at the thresholds that are
given and at smaller inputs, and a rival is dense-trained, at a smaller input, or shallower, as its network says. What
is done in --work is kept: an interrupted run goes on, and further seeds, splits and runtimes only add to it. Networks
or settings other than those it was begun with are refused (4). What is to stay unseen, by what is frozen in
`benchmarks/protocol`, is measured with --frozen alone, where that is committed and no network saw it, and each look is
noted as `protocol/frozen.py read` does.

Each export with 8 bits takes ranges of at most 32 images of --calibration, spread over them, and judges what is lost
on at most 64: some minutes of processor time a network of the size of a ViT-S, however many there are.

With --size all are exported at that size, for images of more pixels: `python -m dovit_scenes rendered-980x728
--size 980x728 --images 1 --val 40` renders some, in which every pixel is drawn and none enlarged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

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
from dovit_deploy.commands.arguments import numbers_within_one
from dovit_deploy.commands.arguments import size as size_from_text
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.documents import read_text
from dovit_deploy.errors import CheckError, InputError, UsageError
from dovit_deploy.files import write_text
from dovit_deploy.measure.intervals import blocks_of
from why_not.compare import measured_ways, part, runtime
from why_not.rivals_result import SeedResult, WayResult, page, tables_of
from why_not.ways import Alternatives, Runtime, WayComparison

DOVIT = [sys.executable, "-m", "dovit_deploy"]
MARK = "<!-- table: benchmarks/why_not/rivals.py -->"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Exports:
    """How runs become bundles in a folder."""

    runs: Path
    folder: Path
    threshold: str
    """Of ours."""
    size: str | None
    calibration: str | None
    """Images for 8 bits; None: no runtime computes in them."""

    def checkpoint(self, name: str, seed: int) -> Path:
        """Of a run."""
        return self.runs / f"{name}-seed{seed}" / "checkpoint"

    def bundle(self, name: str, seed: int, *, size: str | None = None, ours: bool = False) -> Path:
        """The bundle of a run, exported unless it is there.

        Args:
            name: of the runs with all seeds.
            seed: of this one.
            size: another input than that of all (HxW).
            ours: it stops tokens, at the thresholds.

        Raises:
            InputError: there is no such run, or it has not ended.
            CheckError: the bundle that is there was made of other weights, or has not what is needed.
        """
        checkpoint, at = self.checkpoint(name, seed), size or self.size
        if not (checkpoint / WEIGHTS).is_file():
            raise InputError(f"{checkpoint}: there is no such run, or it has not ended")
        path = self.folder / f"{name}-seed{seed}{'' if at is None else f'-{at}'}.dovit"
        if not path.exists():
            words = ["export", checkpoint, "-o", path]
            words += [] if at is None else ["--size", at]
            words += ["--threshold", self.threshold] if ours else []
            words += [] if self.calibration is None else ["--precision", "fp32,int8", "--calibration", self.calibration]
            code = subprocess.run([*DOVIT, *map(str, words)], check=False).returncode
            if code:
                # It has said why.
                sys.exit(code)
        manifest = Bundle.open(path).manifest
        if manifest.provenance.source_sha256 != file_entry(checkpoint / WEIGHTS).sha256:
            raise CheckError(f"{path} was made of other weights than {checkpoint}; remove it, or give another --work")
        if self.calibration is not None and "int8" not in manifest.precisions:
            raise CheckError(f"{path} was exported without int8; remove it, or give another --work")
        return path


def alternatives(exports: Exports, options: argparse.Namespace, seed: int) -> Alternatives:
    """All bundles of one seed, each rival under what its network is.

    Raises:
        UsageError: a rival is nothing that is compared, or there are two of a kind.
        CheckError: ours is not what was frozen.
    """
    ours = exports.bundle(options.ours, seed, ours=True)
    if options.frozen is not None:
        check_bundle(frozen_from_file(options.frozen), exports.checkpoint(options.ours, seed), Bundle.open(ours))
    spec = Bundle.open(ours).manifest.spec
    kinds: dict[str, list[Path]] = {"dense-trained": [], "smaller": [], "shallower": []}
    for name in options.rivals:
        path = exports.bundle(name, seed)
        other = Bundle.open(path).manifest.spec
        kind = "shallower" if other.depth < spec.depth else "smaller" if other.tokens < spec.tokens else "dense-trained"
        if other.depth > spec.depth or (kind == "shallower" and other.size != spec.size):
            raise UsageError(f"{name}: {other.depth} layers at {other.size}; ours has {spec.depth} at {spec.size}")
        kinds[kind].append(path)
    if len(kinds["dense-trained"]) != 1:
        found = ", ".join(path.stem for path in kinds["dense-trained"]) or "none"
        raise UsageError(
            f"--rivals: one network of the size and depth of ours is needed, trained dense; given: {found}"
        )
    return Alternatives(
        bundle=ours,
        curve=options.curve,
        smaller=[exports.bundle(options.ours, seed, size=at, ours=True) for at in options.smaller],
        dense_trained=kinds["dense-trained"][0],
        dense_trained_smaller=kinds["smaller"],
        shallower=kinds["shallower"],
        merge=options.merge,
        controls=False,
    )


def made_of(chosen: Alternatives, options: argparse.Namespace) -> dict[str, str]:
    """What decides the figures of a seed."""
    bundles = [chosen.bundle, *chosen.smaller, chosen.dense_trained, *chosen.dense_trained_smaller, *chosen.shallower]
    digests = {path.stem: Bundle.open(path).manifest.provenance.source_sha256 for path in bundles if path is not None}
    thresholds = Bundle.open(chosen.bundle).manifest.defaults.thresholds
    return {
        **digests,
        "thresholds": ", ".join(f"{row[0]:g}" for row in thresholds),
        "curve": " ".join(options.curve),
        "merge": " ".join(map(str, options.merge)),
        "every": str(options.every),
        "dataset": str(options.dataset.resolve()),
    }


def note_looks(exports: Exports, options: argparse.Namespace, splits: Sequence[str], command: str) -> None:
    """With --frozen: write down, before it is taken, a look at the split that was to stay unseen.

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
    for seed in options.seeds:
        for name in options.rivals:
            recipe = trained_from_file(exports.checkpoint(name, seed)).recipe
            refuse_seen(frozen, options.dataset, f"{name} trains on", recipe.split)
            refuse_seen(frozen, options.dataset, f"{name} is watched on", recipe.watch)
    for seed in options.seeds:
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


class MeasuredSeeds:
    """What was measured, in a folder: a file for each seed, runtime and split."""

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder, self.every = folder, every

    def result(
        self, chosen: Alternatives, note: dict[str, str], seed: int, one: Runtime, dataset: Path, split: str
    ) -> SeedResult:
        """That of one file, measured unless it is there.

        Raises:
            CheckError: it is there and of other networks or settings.
        """
        slug = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in split)
        path = self.folder / f"seed{seed}-{one.engine}-{one.precision}-{slug}.json"
        if path.exists():
            known = SeedResult.model_validate_json(read_text(path))
            other = sorted(key for key in known.made_of.keys() | note.keys() if known.made_of.get(key) != note.get(key))
            if other:
                raise CheckError(f"{path}: measured with other {', '.join(other)}; remove it, or give another --work")
            return known
        data = part(dataset_from_path(dataset, split), self.every)
        found = self._measured(chosen, note, seed, one, data, split)
        write_text(path, found.model_dump_json() + "\n")
        return found

    def _measured(
        self, chosen: Alternatives, note: dict[str, str], seed: int, one: Runtime, data: Dataset, split: str
    ) -> SeedResult:
        title = f"seed {seed}, {one.engine} {one.precision}, {split}"
        with TemporaryDirectory(prefix="dovit-") as graphs:
            comparison = WayComparison(chosen, folder=Path(graphs), runtime=one)
            ways = measured_ways(comparison, data, title, show=sys.stderr.isatty())
        blocks = blocks_of(len(data), data.moments)
        return SeedResult(
            seed=seed,
            split=split,
            engine=one.engine,
            precision=one.precision,
            made_of=note,
            frames=len(data),
            seconds_per_block=blocks.seconds,
            ways=tuple(WayResult.of(way, blocks) for way in ways),
        )


def measured(options: argparse.Namespace, command: str) -> dict[str, object]:
    """The figures of all that is asked for; `command`: what asked."""
    splits = options.split or ["val"]
    for split in splits:
        # All splits are found, and may be read, before the first network is exported.
        dataset_from_path(options.dataset, split)
        if options.frozen is None:
            refuse_unseen(options.dataset, split)
    bundles, cells = options.work / "bundles", options.work / "cells"
    for folder in (bundles, cells):
        folder.mkdir(parents=True, exist_ok=True)
    exports = Exports(options.runs, bundles, options.threshold, options.size, options.calibration)
    chosen = {seed: alternatives(exports, options, seed) for seed in options.seeds}
    note_looks(exports, options, splits, command)
    kept = MeasuredSeeds(cells, every=options.every)
    results = [
        kept.result(chosen[seed], made_of(chosen[seed], options), seed, one, options.dataset, split)
        for one in options.runtimes
        for split in splits
        for seed in options.seeds
    ]
    tables = [table.model_dump(mode="json") for table in tables_of(results)]
    return {"dataset": options.dataset.name, "every": options.every, "tables": tables}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("dataset", type=Path, nargs="?")
    result.add_argument("--runs", type=Path, help="folder of the runs, each called NAME-seedN")
    result.add_argument("--ours", metavar="NAME", help="of the runs with gates")
    result.add_argument("--rivals", nargs="+", metavar="NAME", help="of the static ones, the dense-trained among them")
    result.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2])
    result.add_argument("--threshold", metavar="T[,T...]", help="of ours: the operating point that was chosen before")
    result.add_argument("--frozen", type=Path, metavar="JSON", help="... as `protocol/frozen.py freeze` wrote it down")
    result.add_argument("--curve", nargs="*", default=[], metavar="T", help="further thresholds")
    result.add_argument("--size", metavar="HxW", help="of all inputs; default: as each was trained")
    result.add_argument("--smaller", nargs="*", default=[], metavar="HxW", help="ours dense at these inputs")
    result.add_argument("--merge", type=at_least(1), nargs="*", default=[], help="tokens merged per layer")
    result.add_argument("--split", action="append", help="as `dovit eval` takes it; may be repeated; default: val")
    result.add_argument(
        "--runtimes", nargs="+", type=runtime, default=[Runtime()], metavar="ENGINE:PRECISION", help="a table for each"
    )
    result.add_argument("--calibration", metavar="SRC", help="as `dovit export` takes it; int8 needs it")
    result.add_argument("--every", type=at_least(1), default=1, help="each so-manieth image")
    result.add_argument("--work", type=Path, help="folder of all that is made on the way")
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result; measure nothing")
    result.add_argument("--docs", type=page_with(MARK), help="page with the tables' marks")
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
    for text in (*options.smaller, *([] if options.size is None else [options.size])):
        size_from_text(text, option="--smaller, --size")


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured, and write the tables."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.tables is not None:
        report = read_figures(options.tables, names=("tables", "dataset"))
    else:
        check(command_line, options)
        command = command_text("why_not/rivals.py", sys.argv[1:] if arguments is None else arguments)
        report = publish(measured(options, command), command=command, output=options.output)
    if options.docs is not None:
        write_table(options.docs, MARK, page(report))


if __name__ == "__main__":
    main()
