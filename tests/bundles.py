"""Bundles for tests: tiny checkpoints exported for real, and golden cases exported at a wanted size."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import safetensors.numpy
from PIL import Image
from torch import Tensor

from dovit_deploy.bundle.bundle import MANIFEST, WEIGHTS, Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, Preprocessing
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.cli import _application, _run
from dovit_deploy.export import pipeline, sensitivity
from dovit_deploy.export.pipeline import bundle_from_plan
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.export.quantise import QuantisePlan
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.graphs.weights import SharedWeights
from dovit_deploy.progress import Unseen
from tests.datasets.labelled_folder import noise
from tests.exporter import gather_operators_once
from tests.golden import Case
from tests.tiny import tiny_pixels, tiny_spec, tiny_state

gather_operators_once()


def tiny_checkpoint(spec: VisionTransformerSpec, *, seed: int = 0, threshold: float = 0.7, stride=None) -> Checkpoint:
    """A checkpoint of `spec` with `tiny_state`'s weights."""
    return Checkpoint(
        spec=spec,
        state=tiny_state(spec, seed),
        preprocessing=Preprocessing(
            mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), assumed=False, stride=stride
        ),
        classes=tuple(
            ClassEntry(name=f"class {number}", color=(40 * number % 256, 255 - 30 * number % 256, 90))
            for number in range(spec.classes)
        ),
        thresholds=(threshold,) * len(spec.gates),
        floor=0.0,
        slide_size=None,
        source="tiny.safetensors",
        source_sha256="0" * 64,
    )


def saved_tiny(
    spec: VisionTransformerSpec, folder: Path, *, seed: int = 0, changed: Mapping[str, Tensor] | None = None
) -> Path:
    """`tiny_checkpoint` as a folder of our own format, some of its weights `changed`."""
    one = tiny_checkpoint(spec, seed=seed)
    config = OwnConfig(
        spec=spec, preprocessing=one.preprocessing, classes=one.classes, thresholds=one.thresholds, floor=one.floor
    )
    save_checkpoint(folder, config, {**one.state, **(changed or {})})
    return folder


COMPACT = tiny_spec(width=32, head="linear", gates=(1,), depth=2)
"""Just wide enough to have large weights."""
COMPACT_SEED = 2
"""Of so few pixels none may change its class, and of these weights none does."""


def compact_tiny(output: Path) -> None:
    """Export a tiny model with `--compact` through the command line."""
    given = saved_tiny(COMPACT, output.with_name(f"{output.stem}-given"), seed=COMPACT_SEED)
    assert _run(_application(), ["export", str(given), "--compact", "-o", str(output), "--quiet"]) == 0


def export_tiny(
    spec: VisionTransformerSpec, output: Path, *, seed: int = 0, threshold: float = 0.7, stride=None
) -> tuple[Bundle, ParityReport]:
    """Export a tiny model of `spec` to `output`, verified as always."""
    return export(tiny_checkpoint(spec, seed=seed, threshold=threshold, stride=stride), output)


def exported_by_command(spec: VisionTransformerSpec, output: Path) -> None:
    """A tiny model of `spec` as a checkpoint folder of our own, through `dovit export` in this process."""
    with TemporaryDirectory() as scratch:
        checkpoint, image = saved_tiny(spec, Path(scratch) / "checkpoint"), Path(scratch) / "image.png"
        Image.fromarray(noise(spec.size, classes=spec.classes, seed=0)[0]).save(image)
        words = ["export", str(checkpoint), "-o", str(output), "--parity-images", str(image), "--quiet"]
        assert _run(_application(), words) == 0


def int8_copy(source: Path, output: Path, *, changed: Mapping[str, np.ndarray] | None = None) -> Bundle:
    """The bundle at `source` in fp32 and int8, at `output`: its graphs, over weights of which some may be `changed`."""
    shutil.copytree(source, output)
    weights = safetensors.numpy.load_file(output / WEIGHTS) | dict(changed or {})
    # Names and shapes are the same, and so every tensor lies where the graphs say.
    SharedWeights.write(output / WEIGHTS, weights, {"format": "dovit-weights"})
    manifest = Manifest.from_json((output / MANIFEST).read_bytes())
    images = [noise(manifest.spec.size, classes=5, seed=seed)[0] for seed in range(8)]
    draft = pipeline._listed(Bundle(output, manifest))
    plan = QuantisePlan(images, allowed=100.0)
    made = pipeline._listed(sensitivity.quantised_bundle(draft, plan, progress=Unseen()))
    files = {name: entry for name, entry in made.manifest.files.items() if name != MANIFEST}
    (output / MANIFEST).write_text(made.manifest.model_copy(update={"files": files}).to_json())
    return Bundle.open(output)


def export_case(case: Case, output: Path, *, size: tuple[int, int] | None) -> Bundle:
    """Export a golden case at `size`."""
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    return export(checkpoint, output, size=size)[0]


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    size: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    images: list[Tensor] | None = None,
) -> tuple[Bundle, ParityReport]:
    """Export `checkpoint`, verified on seeded pixels."""
    plan = ExportPlan.resolve(checkpoint, output, size=size, stride=stride)
    pixels = images or [tiny_pixels(plan.manifest.spec.size, seed=5)]
    named = [(f"pixels {number}", np.ascontiguousarray(image.numpy())) for number, image in enumerate(pixels)]
    return bundle_from_plan(plan, images=named, progress=Unseen())


def naming_checkpoint(spec: AnySpec, state: dict[str, Tensor]) -> Checkpoint:
    """A checkpoint of a tiny classifier."""
    return Checkpoint(
        spec=spec,
        state=state,
        preprocessing=Preprocessing(
            mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), assumed=False, stride=None
        ),
        classes=tuple(
            ClassEntry(name=f"class {number}", color=(40 * number, 90, 90)) for number in range(spec.classes)
        ),
        thresholds=(),
        floor=0.0,
        slide_size=None,
        source="tiny.safetensors",
        source_sha256="0" * 64,
    )
