"""Was everything chosen before the drive was read that the claim is about? What is frozen, and the one look after it.

    python benchmarks/protocol/frozen.py freeze --recipe RECIPE --init BACKBONE --thresholds 0.9 --tried 12 \\\\
        --chosen-on train:@benchmarks/protocol/held.txt --reads train:0006R0 -o benchmarks/protocol/frozen.json
    python benchmarks/protocol/frozen.py read benchmarks/protocol/frozen.json \\\\
        --checkpoint runs/seed0/checkpoint --bundle seed0.dovit --dataset CAMVID -o benchmarks/results/seed0.json

`freeze` writes a file that is committed before anything is read: the recipe (but its seed), the weights that its runs
start from, the operating point, on what they were chosen, how many recipes were tried, what is in every list that a
split names, and a digest of all of it. `read` measures a bundle on the frozen split, at the frozen thresholds and with
all controls, once. It refuses (4) where the frozen file was changed, the recipe or the choice looked at the split that
is to be read, a list has other images by now, the checkpoint was trained by another recipe or from other weights, the
bundle was made of another checkpoint, or the same weights, or others of the same seed, were read before: that they were
is noted beside the frozen file, in `frozen.reads.json`, which is committed, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
from dovit_deploy.errors import CheckError, InputError, UsageError
from dovit_deploy.files import write_text
from dovit_deploy.record import Record
from dovit_deploy.train.recipe import Recipe, recipe_from_file
from dovit_deploy.train.start import given_at
from dovit_deploy.train.state import GivenFacts, given_facts

WEIGHTS, TRAINING = "model.safetensors", "train.json"
"""Of a checkpoint: its weights, and the record of the run that made it."""

READS = ".reads.json"

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
    lists: dict[str, str]
    """Of all these splits, those that a list names -> SHA-256 of what is in it."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return _digest(self.model_dump(mode="json"))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """What is frozen of a recipe; keys that later versions add change nothing as long as they keep their defaults."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content.pop("seed", None)
    return content


def list_digests(*splits: str) -> dict[str, str]:
    """SHA-256 of the stems in the list that a split names, sorted; splits that name none are left out."""
    listed = {split: split_from_text(split).listed for split in splits}
    return {
        split: hashlib.sha256("\n".join(sorted(stems)).encode()).hexdigest()
        for split, stems in listed.items()
        if stems is not None
    }


def start_facts(init: Path | None, recipe: Recipe) -> GivenFacts | None:
    """What is frozen of the weights that runs start from.

    Raises:
        UsageError: none are given, and the recipe keeps layers of them.
        DovitError: they cannot be read.
    """
    if init is None and recipe.frozen_layers:
        raise UsageError(f"the recipe keeps {recipe.frozen_layers} layers of --init as they are; name it")
    return None if init is None else given_facts(given_at(init, recipe.init_config))


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


def check_bundle(frozen: Frozen, checkpoint: Path, bundle: Bundle) -> tuple[str, int]:
    """SHA-256 of the checkpoint's weights and the seed of its run, if the bundle is what was frozen.

    Raises:
        InputError: the checkpoint cannot be read.
        CheckError: another recipe, start or checkpoint.
    """
    try:
        trained = data_from_json(read_text(checkpoint / TRAINING))
        assert isinstance(trained, dict)
        whole = Recipe.model_validate(trained["recipe"])
        recipe = recipe_content(whole)
        start = None if trained.get("init") is None else GivenFacts.model_validate(trained["init"])
        weights = file_entry(checkpoint / WEIGHTS).sha256
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise InputError(f"{checkpoint}: no checkpoint of `dovit train` ({error})") from error
    other = sorted(key for key in recipe.keys() | frozen.recipe.keys() if recipe.get(key) != frozen.recipe.get(key))
    if other:
        raise CheckError(
            f"{checkpoint} was trained by another recipe than was frozen: it differs in {', '.join(other)}"
        )
    if (start and start.sha256) != (frozen.init and frozen.init.sha256):
        own, wanted = (one.source if one else "drawn weights" for one in (start, frozen.init))
        raise CheckError(
            f"{checkpoint} was trained from {own}, which is not what was frozen ({wanted}, by its SHA-256)"
        )
    if bundle.manifest.provenance.source_sha256 != weights:
        raise CheckError(f"{bundle.path} was made of another checkpoint than {checkpoint}")
    return weights, whole.seed


def check_unseen(frozen: Frozen, dataset: Path) -> None:
    """Raise CheckError where training, validation or the choice saw an image of the split that is to be read."""
    unseen = set(dataset_from_path(dataset, frozen.reads).stems)
    recipe = Recipe.model_validate(frozen.recipe)
    looks = (("trains on", recipe.split), ("is watched on", recipe.watch), ("was chosen on", frozen.chosen_on))
    for what, split in looks:
        seen = unseen & set(dataset_from_path(dataset, split).stems)
        if seen:
            raise CheckError(f"the recipe {what} {split}: {len(seen)} images of {frozen.reads}, as {min(seen)}")
    now = list_digests(recipe.split, recipe.watch, frozen.chosen_on, frozen.reads)
    changed = sorted(split for split in now.keys() | frozen.lists.keys() if now.get(split) != frozen.lists.get(split))
    if changed:
        raise CheckError(f"{changed[0]}: the list was changed after the recipe was frozen")


def reads_of(path: Path) -> list[dict[str, Any]]:
    """Every look that was taken, in its order; `path`: of the frozen file."""
    log = path.with_suffix(READS)
    if not log.exists():
        return []
    try:
        reads = data_from_json(read_text(log))
    except (OSError, ValueError) as error:
        raise InputError(f"{log}: cannot be read ({error})") from error
    if not isinstance(reads, list):
        raise InputError(f"{log}: no list of looks")
    return reads


def evaluation(bundle: Path, dataset: Path, frozen: Frozen) -> dict[str, Any]:
    """What `dovit eval` finds on the frozen split at the frozen thresholds; exits with its code where it fails."""
    thresholds = ",".join(f"{value:.9g}" for value in frozen.thresholds)
    words = ["eval", str(bundle), str(dataset), "--split", frozen.reads, "--threshold", thresholds, "--controls"]
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        report = Path(folder) / "eval.json"
        code = subprocess.run([*DOVIT, *words, "--threads", "1", "--json", str(report)], check=False).returncode
        if code:
            # It has said why.
            sys.exit(code)
        return dict(json.loads(report.read_text(encoding="utf-8")))


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
        lists=list_digests(recipe.split, recipe.watch, options.chosen_on, options.reads),
    )
    command = command_text("protocol/frozen.py", sys.argv[1:])
    content = {**circumstances(command), "frozen": frozen.model_dump(mode="json"), "digest": frozen.digest}
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    print(f"{options.output}: frozen, {frozen.digest[:12]}; {frozen.reads} may be read once per seed")


def read(options: argparse.Namespace) -> None:
    """Measure a bundle on the frozen split, once; UsageError where another look is written already."""
    if options.output.exists():
        raise UsageError(f"{options.output} exists: a look cannot be taken again; write this one to another file")
    frozen, bundle = frozen_from_file(options.frozen), Bundle.open(options.bundle)
    check_unseen(frozen, options.dataset)
    weights, seed = check_bundle(frozen, options.checkpoint, bundle)
    reads = reads_of(options.frozen)
    before = next((look for look in reads if look["weights"] == weights), None)
    if before is not None:
        raise CheckError(f"{options.bundle}: these weights were read on {before['date']}, by {before['command']}")
    before = next((look for look in reads if look["seed"] == seed), None)
    if before is not None:
        raise CheckError(
            f"{options.bundle}: weights of seed {seed} were read on {before['date']}, by {before['command']}; "
            "a seed is read once, however often it is trained"
        )
    figures = evaluation(options.bundle, options.dataset, frozen)
    command = command_text("protocol/frozen.py", sys.argv[1:])
    look = {**circumstances(command), "frozen": frozen.digest, "weights": weights, "seed": seed, "eval": figures}
    write_text(options.output, json.dumps(look, indent=1) + "\n")
    summary = {key: look[key] for key in ("date", "weights", "seed", "command")}
    summary |= {"dense": figures["dense"]["miou"], "dynamic": figures["dynamic"]["miou"]}
    write_text(options.frozen.with_suffix(READS), json.dumps([*reads, summary], indent=1) + "\n")
    print(f"{options.output}: look {len(reads) + 1} at {frozen.reads}, after {frozen.tried} recipes tried elsewhere")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    # Also before the verb is known, so that an output that cannot be written is refused whatever else is missing.
    result.add_argument("-o", "--output", type=output_file, help="of either verb")
    verbs = result.add_subparsers(metavar="freeze|read")
    one = verbs.add_parser("freeze", help="write down what was chosen")
    one.add_argument("--recipe", type=Path, required=True, help="of the final run")
    one.add_argument("--init", type=Path, metavar="CHECKPOINT", help="what its runs start from; default: drawn weights")
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
    other.add_argument("-o", "--output", type=output_file, required=True)
    other.set_defaults(verb=read)
    return result


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if "verb" not in options:
        command_line.error("freeze or read is needed")
    options.verb(options)


if __name__ == "__main__":
    main()
