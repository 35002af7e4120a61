"""What do the controls of `dovit eval` need beside the bundle? Smaller inputs, and the rule's decisions elsewhere.

Where the control by position learns where tokens stop, `--position-from` says; else it is the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.datasets.classification import LabelledImages
from dovit_deploy.datasets.dataset import Dataset, DatasetPart
from dovit_deploy.datasets.open import dataset_from_path, has_split, is_rendered, named_split
from dovit_deploy.datasets.split import split_from_text
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.measure.decisions import Decisions, decisions_of
from dovit_deploy.measure.intervals import blocks_of

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.measure.evaluate import EvalPlan
    from dovit_deploy.runtime.session import Session

TRAINING = "train"
"""The split that is taken where none is named."""

IMAGES = 100
"""At most so many, spread over the split: a mean of more hardly moves."""


@contextmanager
def smaller_sessions(
    bundle: Bundle, plan: EvalPlan, *, threads: int | None, quiet: bool
) -> Iterator[tuple[Session, ...]]:
    """Sessions at smaller inputs where `--controls` asks for them; on stderr, which controls are left out and why."""
    from dovit_deploy.commands.smaller_input import smaller_inputs

    if plan.controls is None:
        yield ()
        return
    if bundle.manifest.task == "classification":
        console.remark(
            "random, first-gate and oracle stopping are left out: a classifier has no gates whose decisions could be "
            "replayed",
            quiet=quiet,
        )
    with smaller_inputs(bundle, threads=threads) as inputs:
        if inputs.left_out is not None:
            console.remark(f"dense at smaller inputs is left out: {inputs.left_out}", quiet=quiet)
        yield inputs.sessions


def positions_for(
    plan: EvalPlan,
    manifest: Manifest,
    data: Dataset | LabelledImages,
    given: str | None,
    *,
    classes: Path | None,
    quiet: bool,
) -> Dataset | None:
    """Where the control by position learns from; None: from the evaluated images, or it does not run."""
    if isinstance(data, LabelledImages) and given is not None:
        raise UsageError("--position-from is for label maps: a classifier has no gates whose decisions are replayed")
    if plan.controls is None or isinstance(data, LabelledImages) or not manifest.spec.gates:
        return None
    evaluated = Evaluated(plan.dataset, split_from_text(plan.split).name, data.stems)
    return position_source(given, evaluated, classes=classes, remark=partial(console.remark, quiet=quiet))


@dataclass(frozen=True)
class Evaluated:
    """The images that are evaluated, which nothing is learned from."""

    dataset: str
    """Its folder, or the word for rendered scenes."""
    split: str
    """The whole split that they belong to."""
    stems: tuple[str, ...]

    def among(self, dataset: str, split: str) -> frozenset[str]:
        """The stems of those that lie in this split, which is named whole or in part."""
        # Images of another folder, or of another split of the same one, may have the same names: both count from 0.
        same = self.is_of(dataset) and split_from_text(split).name == self.split
        return frozenset(self.stems) if same else frozenset()

    def is_of(self, dataset: str) -> bool:
        """Whether they are images of this data set."""
        return Path(dataset).resolve() == Path(self.dataset).resolve()


def position_source(
    given: str | None, evaluated: Evaluated, *, classes: Path | None, remark: Callable[[str], None]
) -> Dataset | None:
    """The images to learn from, without those that are evaluated.

    Args:
        given: DATASET or DATASET:SPLIT; None: the training split of the evaluated data set, where it has one.
        evaluated: what is evaluated.
        classes: a list of its classes, where it needs one.
        remark: reports why a training split that nobody named is not used.

    Returns:
        None where nothing is named and there is nothing else: the evaluated images serve, each without itself.

    Raises:
        DatasetError: what is named is not there, cannot be read, or holds no other image.
    """
    if given is not None:
        source, split = named_split(given)
        return _others(source, split or TRAINING, evaluated, classes=classes if evaluated.is_of(source) else None)
    dataset = evaluated.dataset
    if not is_rendered(dataset) and not has_split(dataset, TRAINING):
        return None
    try:
        return _others(dataset, TRAINING, evaluated, classes=classes)
    except DatasetError as error:
        remark(f"positions are learned from the evaluated images, each without itself: {error}")
        return None


def _others(dataset: str, split: str, evaluated: Evaluated, *, classes: Path | None) -> Dataset:
    """At most `IMAGES` of the split, without those that are `evaluated`, checked."""
    whole, left_out = dataset_from_path(dataset, split, classes=classes), evaluated.among(dataset, split)
    others = [number for number, stem in enumerate(whole.stems) if stem not in left_out]
    if not others:
        raise DatasetError(f"{whole.name}: all of its {len(whole)} images are evaluated; none is left to learn from")
    count = min(IMAGES, len(others))
    found = DatasetPart(whole, [others[number * len(others) // count] for number in range(count)])
    if not is_rendered(dataset):
        # What is drawn has no faults, and drawing it takes half a minute.
        found.check()
    return found


def rule_decisions(
    session: Session,
    data: Dataset | LabelledImages,
    plan: EvalPlan,
    source: Dataset | None,
    progress: console.ProgressDisplay,
) -> Decisions | None:
    """The rule's decisions on all images, of which two controls are made; None where these do not run."""
    if plan.controls is None or not session.bundle.manifest.spec.gates:
        return None
    images = len(data) + (0 if source is None else len(source))
    progress.begin("decisions for the controls", images)
    blocks = blocks_of(len(data), data.moments)
    found = decisions_of(session, data, plan.settings, blocks, source=source, advance=progress.advance)
    progress.begin("all ways of running", len(data))
    return found
