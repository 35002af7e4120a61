"""How do training runs become the bundles that are compared? Each once, in a folder, unless it is there already.

Ours keeps its gates; a rival is exported without: its gates are auxiliary losses of its training, and nobody would
deploy a static network with them. Forms in 8 bits are made as `dovit export --precision fp32,int8 --calibration` makes
them, but of fewer images, and without judging what is lost: the tables judge that on every image.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.calibrate.images import PickedImages, spread
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.checkpoints.own_format import CONFIG, WEIGHTS, OwnConfig
from dovit_deploy.commands.arguments import numbers_within_one
from dovit_deploy.commands.arguments import size as size_from_text
from dovit_deploy.commands.precisions import PrecisionRequest
from dovit_deploy.datasets.scenes import street_images
from dovit_deploy.documents import data_from_json, read_text
from dovit_deploy.errors import CheckError
from dovit_deploy.export.pipeline import bundle_from_plan
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.export.quantise import QuantisePlan
from dovit_deploy.families.spec import Size
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.progress import Unseen
from dovit_deploy.runtime.trace import Image
from dovit_deploy.runtime.transforms import to_input
from dovit_deploy.train.rates import GATE_PARTS

CURVE = "curve.json"
"""Of a run: the last file that a training writes."""

RANGED = 16
"""Images at most that ranges of 8 bits are taken of."""


@dataclass(frozen=True)
class RunExports:
    """The bundles of RUNS/NAME-seedN, for each of which `run` is NAME."""

    runs: Path
    folder: Path
    threshold: str
    """Of ours, as on the command line."""
    size: str | None
    """HxW of all inputs; None: as each was trained."""
    calibration: str | None
    """Images for 8 bits; None: no runtime computes in them."""

    def checkpoint(self, run: str, seed: int) -> Path:
        """Of a run, whether it is there or not."""
        return self.runs / f"{run}-seed{seed}" / "checkpoint"

    def trained_size(self, run: str, seed: int) -> Size:
        """Height and width of the input that a run was trained at."""
        return OwnConfig.model_validate(data_from_json(read_text(self.checkpoint(run, seed) / CONFIG))).spec.size

    def has_ended(self, run: str, seed: int) -> bool:
        """Whether it was trained to its end."""
        checkpoint = self.checkpoint(run, seed)
        return (checkpoint / WEIGHTS).is_file() and (checkpoint.parent / CURVE).is_file()

    def bundle(self, run: str, seed: int, *, size: str | None = None, ours: bool = False) -> Path:
        """The bundle of a run that has ended, exported unless it is there.

        Args:
            run: NAME.
            seed: N.
            size: another input than that of all (HxW).
            ours: it stops tokens, at the threshold.

        Raises:
            CheckError: the bundle that is there was made of other weights, or has not what is needed.
            DovitError: whatever an export refuses.
        """
        checkpoint, at = self.checkpoint(run, seed), size or self.size
        path = self.folder / f"{run}-seed{seed}{'' if at is None else f'-{at}'}.dovit"
        if not path.exists():
            self._export(checkpoint, path, at, ours=ours)
        manifest = Bundle.open(path).manifest
        if manifest.provenance.source_sha256 != file_entry(checkpoint / WEIGHTS).sha256:
            raise CheckError(f"{path} was made of other weights than {checkpoint}; remove it, or give another --work")
        if self.calibration is not None and "int8" not in manifest.precisions:
            raise CheckError(f"{path} was exported without int8; remove it, or give another --work")
        return path

    def _export(self, checkpoint: Path, path: Path, size: str | None, *, ours: bool) -> None:
        begun = process_time()
        thresholds = numbers_within_one(self.threshold, option="--threshold") if ours else None
        trained = checkpoint_from_path(checkpoint, thresholds=thresholds)
        static = trained if ours else without_gates(trained)
        plan = ExportPlan.resolve(static, path, size=size_from_text(size, option="--size"))
        int8 = _quantised(plan.manifest, self.calibration)
        bundle_from_plan(plan, images=_scene(plan.manifest), progress=Unseen(), int8=int8)
        print(f"{path.name}: exported, {process_time() - begun:.0f} s of the processor", file=sys.stderr)


def without_gates(trained: Checkpoint) -> Checkpoint:
    """The network alone, as it answers with nothing stopped."""
    if not trained.spec.gates or not isinstance(trained.spec, VisionTransformerSpec):
        return trained
    given = {**trained.spec.model_dump(), "gates": (), "answer": "feature"}
    state = {name: tensor for name, tensor in trained.state.items() if name.partition(".")[0] not in GATE_PARTS}
    return replace(trained, spec=VisionTransformerSpec.model_validate(given), state=state, thresholds=(), floor=0.0)


def _scene(manifest: Manifest) -> list[Image]:
    """What graphs are verified with."""
    whole = manifest.preprocessing.model_copy(update={"stride": None})
    return [("rendered street scene", to_input(rgb, whole, manifest.spec.size)) for rgb in street_images(1, seed=0)]


def _quantised(manifest: Manifest, calibration: str | None) -> QuantisePlan | None:
    """What forms in 8 bits are made with."""
    if calibration is None:
        return None
    request = PrecisionRequest.from_flags("fp32,int8", calibration, None)
    plan = request.plan(request.images(manifest))
    assert plan is not None and isinstance(plan.images, PickedImages)
    return replace(plan, images=PickedImages(spread(plan.images.numbers, RANGED), plan.images.image))
