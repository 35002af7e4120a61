"""`dovit eval BUNDLE DATASET`: how right the deployed bundle is, dense against dynamic, with controls and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import console, options, parse
from dovit_deploy.commands.eval_request import EvalRequest
from dovit_deploy.errors import InputError

if TYPE_CHECKING:
    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.runtime.session import Session

    Measure = Callable[[Session, Sequence[Session]], None]
    Evaluation = Callable[[Bundle, EvalRequest], Measure]
    """Opens and checks the data set before an engine is loaded."""


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="NAME.dovit.")],
    dataset: Annotated[str, typer.Argument(help="Folder of a data set; 'scenes': rendered street scenes.")],
    split: Annotated[
        str, typer.Option(metavar="NAME[:[-]PREFIX]", help="Split; with PREFIX only images whose names start so.")
    ] = "val",
    engine: options.EngineName = "onnxruntime",
    precision: options.Precision = None,
    threshold: options.Threshold = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also random, first-gate and oracle stopping, and smaller inputs.")
    ] = False,
    threads: options.Threads = None,
    cuda_memory: options.CudaMemory = None,
    trust_engine: options.TrustEngine = False,
    json_file: options.JsonFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure the accuracy of the deployed bundle on labelled images, dense against dynamic.

    Metrics are percent over the whole set, of label maps from one confusion matrix in which void counts nowhere. The
    drop's interval is a paired bootstrap, of blocks of neighbouring images for label maps. Random and oracle stopping
    (models with gates) stop as many tokens of each image at each gate as the rule does: drawn, or those first whose
    gate says what the dense model will. Layouts: classes.json with images/ and labels/, SegNet's CamVid, Cityscapes,
    ADE20K; for classifiers SPLIT/CLASS/image, as ImageNet's.
    """
    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.runtime.gate_inputs import thresholds_from
    from dovit_deploy.runtime.session import Session

    values, wanted = parse.thresholds(threshold), EngineOptions(cuda_memory, trust_engine)
    console.check_writable(json_file)
    opened = Bundle.open(bundle)
    limits = thresholds_from(None, opened.manifest)
    if values is not None:
        limits = thresholds_from(values[0] if len(values) == 1 else values, opened.manifest)
    request = EvalRequest(dataset, split, limits, values is not None, controls, json_file, quiet, verbose)
    measure = _evaluation(opened.manifest)(opened, request)
    with (
        Session(opened, engine=engine, precision=precision, threads=threads, options=wanted) as session,
        _smaller(opened, wanted=controls, threads=threads, quiet=quiet) as smaller,
    ):
        measure(session, smaller)


def _evaluation(manifest: Manifest) -> Evaluation:
    """What opens the data set of this task and measures; raises InputError where there is nothing to be right about."""
    from dovit_deploy.commands.evaluate_classifier import classifier_evaluation
    from dovit_deploy.commands.evaluate_segmentation import segmentation_evaluation

    evaluations: dict[str, Evaluation] = {
        "segmentation": segmentation_evaluation,
        "classification": classifier_evaluation,
    }
    if manifest.task not in evaluations:
        raise InputError(f"{manifest.name} is a backbone without a head (task {manifest.task}): it has no accuracy")
    return evaluations[manifest.task]


# The verb's name; a function defined as `eval` would hide Python's own.
evaluate.__name__ = "eval"


def _smaller(
    bundle: Bundle, *, wanted: bool, threads: int | None, quiet: bool
) -> AbstractContextManager[tuple[Session, ...]]:
    """Sessions at smaller inputs where `--controls` wants them and they can be had."""
    from dovit_deploy.commands.smaller_input import reason_against, smaller_sessions

    if not wanted:
        return nullcontext(())
    reason = reason_against(bundle)
    if reason is not None:
        console.remark(f"dense at smaller inputs is left out: {reason}", quiet=quiet)
        return nullcontext(())
    return smaller_sessions(bundle, threads=threads)
