"""`python -m dovit_deploy.train DATASET -o RUN_DIR --minutes M`: train the default network on a folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from dovit_deploy.errors import DovitError, Interrupted
from dovit_deploy.measure.datasets import SegmentationFolder
from dovit_deploy.train.config import default_config
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.result import UNMEASURED_THRESHOLD, chosen_threshold, save_result, threshold_curve
from dovit_deploy.train.state import RunFolder, write_atomically

CHECKPOINT, CURVE = "checkpoint", "curve.json"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dovit_deploy.train", description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=50.0, help="processor minutes spent in steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-drop", type=float, default=0.8, help="points of mIoU that stopping tokens may cost")
    parser.add_argument("--license", default="", help="note that travels with the weights")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    """Start or resume the run that `options` describe, and finish it."""
    torch.set_num_threads(options.threads)
    data = SegmentationFolder(options.dataset, "train")
    has_validation = (options.dataset / "val.txt").is_file()
    watched = SegmentationFolder(options.dataset, "val") if has_validation else None
    if options.resume:
        folder, config = RunFolder.open(options.output)
    else:
        size = data.sample(0).label.shape
        config = default_config(size, len(data.classes.names), minutes=options.minutes, seed=options.seed)
        folder = RunFolder.create(options.output, config)
    trainer = Trainer(config, data, watched, folder)
    trainer.resume()
    try:
        trainer.run()
    except KeyboardInterrupt as error:
        # The step under way is lost with all since the last state, which is whole.
        raise Interrupted(f"stopped at step {trainer.step}; the same command with --resume goes on") from error
    finish(trainer, options)


def finish(trainer: Trainer, options: argparse.Namespace) -> None:
    """Choose a threshold on the watched split, and write the checkpoint."""
    threshold = UNMEASURED_THRESHOLD
    if trainer.watched is not None:
        points = threshold_curve(trainer.average, trainer.watched)
        threshold = chosen_threshold(points, options.max_drop)
        content = json.dumps([point.model_dump() for point in points], indent=1) + "\n"
        write_atomically(options.output / CURVE, content.encode())
    save_result(
        options.output / CHECKPOINT,
        trainer.average,
        trainer.data.classes,
        threshold=threshold,
        license_note=options.license,
        overwrite=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        train(parsed(arguments))
    except DovitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
