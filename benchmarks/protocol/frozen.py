"""Was everything chosen before the drive was read that the claim is about? What is frozen, and the one look after it.

    python benchmarks/protocol/frozen.py freeze --recipe RECIPE --init BACKBONE --thresholds 0.9 --tried 12 \\\\
        --chosen-on train:@benchmarks/protocol/held.txt --reads train:0006R0 -o benchmarks/protocol/frozen.json
    python benchmarks/protocol/frozen.py read benchmarks/protocol/frozen.json \\\\
        --checkpoint runs/seed0/checkpoint --bundle seed0.dovit --dataset CAMVID -o benchmarks/results/seed0.json

`freeze` writes a file that is committed before anything is read: the recipe (but its seed), the weights that its runs
start from, their teachers (one for every seed, or one for all), the operating point, on what they were chosen, how
many recipes were tried, what is in every list that a split names, how many looks were taken before, and a digest of all
of it. `read` measures a bundle on the frozen split, at the frozen thresholds and with all controls, once. It refuses
(4) where the frozen file was changed or is not committed, the recipe or the choice looked at the split that is to be
read, a list has other images by now, the checkpoint was trained by another recipe, from other weights, with another
teacher or on other images, the bundle was made of another checkpoint, or the same weights, or others of the same seed,
were read before. Every look is noted before it is taken, in `looks.json` beside the frozen file, for all that is frozen
in the folder; it is committed, too.

What nobody can prevent is `dovit eval` on the drive by hand. So the history has to show it: a choice is in a commit
before its first look, and figures that are published come from looks. `note` writes one down, before it is taken:

    python benchmarks/protocol/frozen.py note seed0.dovit CAMVID --split train:0006R0 --by "dovit eval seed0.dovit ..."
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import ValidationError
from report import at_least, circumstances, command_text, errors_in_a_line, output_file

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.commands.arguments import numbers_within_one
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.split import split_from_text
from dovit_deploy.documents import data_from_json, fault_of, read_text
from dovit_deploy.errors import CheckError, DatasetError, InputError, UsageError
from dovit_deploy.files import write_text
from dovit_deploy.record import Record
from dovit_deploy.train.recipe import Recipe, recipe_from_file
from dovit_deploy.train.start import given_at
from dovit_deploy.train.state import DataFacts, GivenFacts, given_facts, names_digest
from protocol.looks import LOOKS, Look, check_committed, looks_in, note_look

WEIGHTS, TRAINING = "model.safetensors", "train.json"
"""Of a checkpoint: its weights, and the record of the run that made it."""

HERE = Path(__file__).resolve().parent
"""Where what is frozen is committed."""

DOVIT = [sys.executable, "-m", "dovit_deploy"]


class Frozen(Record):
    """What was decided before the drive was read."""

    recipe: dict[str, Any]
    """Every key that differs from its default, without the seed."""
    recipe_file: str
    thresholds: list[float]
    """Per gate, or one for all."""
    chosen_on: str
    """The split."""
    tried: int
    """Recipes, this one included."""
    reads: str
    """The split that is read once per seed."""
    init: GivenFacts | None
    """The weights that runs start from; None: drawn ones."""
    teacher: list[GivenFacts] | None
    """What runs learn from beside the labels, each from one of these; None: from labels alone."""
    looks_before: int
    """At that split, of what was frozen earlier in the same folder: 0 where the choice knew nothing of it."""
    lists: dict[str, str]
    """Of all these splits, those that a list names -> SHA-256 of what is in it."""

    @property
    def threshold_text(self) -> str:
        """As `--threshold` takes them."""
        return ",".join(f"{value:.9g}" for value in self.thresholds)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """What is frozen of a recipe; keys that later versions add change nothing as long as they keep their defaults."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content.pop("seed", None)
    return content


def list_digests(*splits: str) -> dict[str, str]:
    """SHA-256 of the stems in the list that a split names, sorted; splits that name none are left out."""
    listed = {split: split_from_text(split).listed for split in splits}
    return {split: names_digest(sorted(stems)) for split, stems in listed.items() if stems is not None}


def start_facts(init: Path | None, recipe: Recipe) -> GivenFacts | None:
    """What is frozen of the weights that runs start from.

    Raises:
        UsageError: none are given, and the recipe keeps layers of them.
        DovitError: they cannot be read.
    """
    if init is None and recipe.frozen_layers:
        raise UsageError(f"the recipe keeps {recipe.frozen_layers} layers of --init as they are; name it")
    return None if init is None else given_facts(given_at(init, recipe.init_config))


def teacher_facts(teachers: Sequence[Path], recipe: Recipe) -> list[GivenFacts] | None:
    """What is frozen of the teachers; UsageError where only they, or only the recipe, say that there are some."""
    if bool(teachers) != (recipe.distillation.teacher == "checkpoint"):
        raise UsageError('--teacher is for a recipe with teacher = "checkpoint" in [distillation], which needs it')
    found = (given_facts(given_at(teacher, None)) for teacher in teachers)
    return [facts for facts in found if facts is not None] or None


def frozen_from_file(path: Path) -> Frozen:
    """What `freeze` wrote.

    Raises:
        InputError: it cannot be read.
        CheckError: it was changed.
    """
    try:
        content = data_from_json(read_text(path))
        assert isinstance(content, dict)
        found = Frozen.model_validate(content["frozen"])
        stated = content["digest"]
    except (OSError, ValueError, KeyError, AssertionError) as error:
        reason = fault_of(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{path}: cannot be read as what was frozen ({reason})") from error
    if found.digest != stated:
        raise CheckError(f"{path} was changed after it was frozen: its digest is {found.digest[:12]}, not {stated}")
    return found


def keeping_unseen(dataset: Path, split: str) -> dict[Path, Frozen]:
    """What is frozen in `HERE` and to stay unseen, where `split` has images of it, by its file.

    Raises:
        InputError, CheckError: as `frozen_from_file`; a list that a frozen split names is gone.
    """
    stems, found = set(dataset_from_path(dataset, split).stems), {}
    for path in sorted(HERE.glob("*.json")):
        if path.name == LOOKS:
            continue
        frozen = frozen_from_file(path)
        # Another data set has nothing of that name.
        with suppress(DatasetError):
            if stems & set(dataset_from_path(dataset, frozen.reads).stems):
                found[path] = frozen
    return found


def note_beside(kept: Mapping[Path, Frozen], *, weights: str, seed: int | None, command: str) -> None:
    """Write down a look that measures something else than what is frozen, beside it, before it is taken.

    Args:
        kept: what `keeping_unseen` found.
        weights: SHA-256; the same may be looked at again.
        seed: of their run; None: unknown.
        command: that looks.

    Raises:
        CheckError: what is frozen is not committed.
    """
    for path in kept:
        check_committed(path)
    for folder, reads in sorted({(path.parent, frozen.reads) for path, frozen in kept.items()}):
        note_look(folder, Look(reads=reads, frozen=None, weights=weights, seed=seed, command=command), again=True)


class Trained(Record, extra="ignore"):
    """What is asked of the record of a run."""

    recipe: Recipe
    data: DataFacts
    init: GivenFacts | None = None
    teacher: GivenFacts | None = None


def trained_from_file(checkpoint: Path) -> Trained:
    """The record of the run that made `checkpoint`; InputError where there is none."""
    try:
        return Trained.model_validate(data_from_json(read_text(checkpoint / TRAINING)))
    except (OSError, ValueError) as error:
        reason = fault_of(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{checkpoint}: no checkpoint of `dovit train` ({reason})") from error


def check_bundle(frozen: Frozen, checkpoint: Path, bundle: Bundle) -> tuple[str, int]:
    """SHA-256 of the checkpoint's weights and the seed of its run, if the bundle is what was frozen.

    Raises:
        InputError: the checkpoint cannot be read.
        CheckError: another recipe, start, teacher or checkpoint.
    """
    trained = trained_from_file(checkpoint)
    recipe = recipe_content(trained.recipe)
    other = sorted(key for key in recipe.keys() | frozen.recipe.keys() if recipe.get(key) != frozen.recipe.get(key))
    if other:
        raise CheckError(
            f"{checkpoint} was trained by another recipe than was frozen: it differs in {', '.join(other)}"
        )
    given = (
        ("from", "drawn weights", trained.init, [] if frozen.init is None else [frozen.init]),
        ("with", "no teacher", trained.teacher, frozen.teacher or []),
    )
    for how, nothing, own, wanted in given:
        if (own and own.sha256) not in ([one.sha256 for one in wanted] or [None]):
            frozen_names = ", ".join(f"{one.source} {one.sha256[:12]}" for one in wanted) or nothing
            raise CheckError(
                f"{checkpoint} was trained {how} {own.source if own else nothing}, "
                f"which is not what was frozen ({frozen_names}, by its SHA-256)"
            )
    weights = checkpoint / WEIGHTS
    try:
        digest = file_entry(weights).sha256
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror})") from error
    if bundle.manifest.provenance.source_sha256 != digest:
        raise CheckError(f"{bundle.path} was made of another checkpoint than {checkpoint}")
    return digest, trained.recipe.seed


def check_images(checkpoint: Path, dataset: Path) -> None:
    """Raise CheckError where the run learnt from other images than its recipe names in `dataset`."""
    trained = trained_from_file(checkpoint)
    found = dataset_from_path(dataset, trained.recipe.split)
    if names_digest(found.stems) != trained.data.digest:
        raise CheckError(
            f"{checkpoint} was trained on {trained.data.images} images of {trained.data.name}, which are not "
            f"the {len(found)} of {found.name}"
        )


def refuse_seen(frozen: Frozen, dataset: Path, what: str, split: str) -> None:
    """Raise CheckError, beginning with `what`, where `split` has images of the split that is to be read."""
    seen = set(dataset_from_path(dataset, frozen.reads).stems) & set(dataset_from_path(dataset, split).stems)
    if seen:
        raise CheckError(f"{what} {split}: {len(seen)} images of {frozen.reads}, as {min(seen)}")


def check_unseen(frozen: Frozen, dataset: Path) -> None:
    """Raise CheckError where training, validation or the choice saw an image of the split that is to be read."""
    recipe = Recipe.model_validate(frozen.recipe)
    refuse_seen(frozen, dataset, "the recipe trains on", recipe.split)
    refuse_seen(frozen, dataset, "the recipe is watched on", recipe.watch)
    refuse_seen(frozen, dataset, "the recipe was chosen on", frozen.chosen_on)
    now = list_digests(recipe.split, recipe.watch, frozen.chosen_on, frozen.reads)
    changed = sorted(split for split in now.keys() | frozen.lists.keys() if now.get(split) != frozen.lists.get(split))
    if changed:
        raise CheckError(f"{changed[0]}: the list was changed after the recipe was frozen")


def evaluation(bundle: Path, dataset: Path, frozen: Frozen) -> dict[str, Any]:
    """What `dovit eval` finds on the frozen split at the frozen thresholds; exits with its code where it fails."""
    words = ["eval", str(bundle), str(dataset), "--split", frozen.reads, "--controls"]
    words += ["--threshold", frozen.threshold_text]
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        report = Path(folder) / "eval.json"
        code = subprocess.run([*DOVIT, *words, "--threads", "1", "--json", str(report)], check=False).returncode
        if code:
            # It has said why.
            sys.exit(code)
        text = report.read_text(encoding="utf-8")
    for path in (bundle, dataset):
        # What is published names no folders of a machine.
        text = text.replace(json.dumps(str(path.resolve()))[1:-1], path.name)
    return dict(json.loads(text))


def freeze(options: argparse.Namespace) -> None:
    """Write what is frozen; UsageError where something is frozen there already."""
    if options.output.exists():
        raise UsageError(f"{options.output} exists: what is frozen stays so; freeze another choice under another name")
    recipe = recipe_from_file(options.recipe)
    frozen = Frozen(
        recipe=recipe_content(recipe),
        recipe_file=options.recipe.name,
        thresholds=list(numbers_within_one(options.thresholds, option="--thresholds")),
        chosen_on=options.chosen_on,
        tried=options.tried,
        reads=options.reads,
        init=start_facts(options.init, recipe),
        teacher=teacher_facts(options.teacher, recipe),
        looks_before=sum(look.reads == options.reads for look in looks_in(options.output.parent)),
        lists=list_digests(recipe.split, recipe.watch, options.chosen_on, options.reads),
    )
    command = command_text("protocol/frozen.py", sys.argv[1:])
    content = {**circumstances(command), "frozen": frozen.model_dump(mode="json"), "digest": frozen.digest}
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    print(f"{options.output}: frozen, {frozen.digest[:12]}; commit it, then {frozen.reads} may be read once per seed")


def read(options: argparse.Namespace) -> None:
    """Measure a bundle on the frozen split, once; UsageError where another look is written already."""
    if options.output.exists():
        raise UsageError(f"{options.output} exists: a look cannot be taken again; write this one to another file")
    frozen, bundle = frozen_from_file(options.frozen), Bundle.open(options.bundle)
    check_committed(options.frozen)
    check_unseen(frozen, options.dataset)
    weights, seed = check_bundle(frozen, options.checkpoint, bundle)
    check_images(options.checkpoint, options.dataset)
    command = command_text("protocol/frozen.py", sys.argv[1:])
    look = Look(reads=frozen.reads, frozen=frozen.digest, weights=weights, seed=seed, command=command)
    number = note_look(options.frozen.parent, look, again=options.again)
    figures = evaluation(options.bundle, options.dataset, frozen)
    known = {"tried": frozen.tried, "looks_before": frozen.looks_before}
    result = {**circumstances(command), **look.model_dump(mode="json"), **known, "eval": figures}
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(f"{options.output}: look {number} at {frozen.reads}, after {frozen.tried} recipes tried elsewhere")


def note(options: argparse.Namespace) -> None:
    """Write down a look that is about to be taken by hand; UsageError where nothing keeps the split unseen."""
    kept = keeping_unseen(options.dataset, options.split)
    if not kept:
        raise UsageError(f"--split {options.split}: nothing that is frozen in {HERE.name}/ keeps images of it unseen")
    weights = Bundle.open(options.bundle).manifest.provenance.source_sha256
    note_beside(kept, weights=weights, seed=None, command=options.by)
    print(f"noted; commit {HERE.name}/{LOOKS}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    # Also before the verb is known, so that an output that cannot be written is refused whatever else is missing.
    result.add_argument("-o", "--output", type=output_file, help="of either verb")
    verbs = result.add_subparsers(metavar="freeze|read|note")
    one = verbs.add_parser("freeze", help="write down what was chosen")
    one.add_argument("--recipe", type=Path, required=True, help="of the final run")
    one.add_argument("--init", type=Path, metavar="CHECKPOINT", help="what its runs start from; default: drawn weights")
    one.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="what its runs learn from beside the labels: one for all seeds, or one for each",
    )
    one.add_argument("--thresholds", required=True, metavar="T[,T...]", help="the operating point")
    one.add_argument("--tried", type=at_least(1), required=True, help="how many recipes were tried, this one included")
    one.add_argument("--chosen-on", required=True, metavar="SPLIT", help="what they were compared on")
    one.add_argument("--reads", required=True, metavar="SPLIT", help="what is read once per seed")
    one.add_argument("-o", "--output", type=output_file, required=True)
    one.set_defaults(verb=freeze)
    other = verbs.add_parser("read", help="measure a bundle on the frozen split, once")
    other.add_argument("frozen", type=Path)
    other.add_argument("--checkpoint", type=Path, required=True, help="of the run: RUN_DIR/checkpoint")
    other.add_argument("--bundle", type=Path, required=True, help="exported from it")
    other.add_argument("--dataset", type=Path, required=True)
    other.add_argument(
        "--again", action="store_true", help="a look at the same weights was interrupted; both are noted"
    )
    other.add_argument("-o", "--output", type=output_file, required=True)
    other.set_defaults(verb=read)
    by_hand = verbs.add_parser("note", help="write down a look by another command, before it is taken")
    by_hand.add_argument("bundle", type=Path)
    by_hand.add_argument("dataset", type=Path)
    by_hand.add_argument("--split", required=True, help="as that command names it")
    by_hand.add_argument("--by", required=True, metavar="COMMAND", help="what looks")
    by_hand.set_defaults(verb=note)
    return result


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if "verb" not in options:
        command_line.error("freeze, read or note is needed")
    options.verb(options)


if __name__ == "__main__":
    main()
