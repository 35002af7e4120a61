"""Engines of the registry on a bundle: dense against gated, and parity with the reference by the contract's rule.

The bundle is a ViT-S with random weights, exported like any other. An engine that cannot run here is reported with its
own message.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.engines.base import Backend
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.registry import ENGINES, backend_from_name
from dovit_deploy.engines.tensorrt.package import tensorrt_package
from dovit_deploy.errors import EngineBuildFailed, EnvironmentProblem
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.export.verify import ReferenceRun, reference_runs
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.eager import EagerBackend
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.progress import Unseen
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.trace import TOLERANCE, float_parity, gate_parity, settings_from_images, trace_from_session
from gpu.latency import latency, paired
from gpu.models import CLASSES, random_model, random_pixels, vit_spec
from gpu.parity import HALF_TOLERANCE
from gpu.programs import StartProgram
from gpu.result import EngineRow
from gpu.section import Found, NotDone, TimeBudget, attempted, said

BUNDLE_PIXELS = 512
BUILD_SECONDS = 90.0


def random_bundle(spec: VisionTransformerSpec, folder: Path) -> Bundle:
    """A bundle with random weights, exported and verified like any other."""
    # Imported here, because exporting needs packages that the rest of the proof does without.
    from dovit_deploy.export.pipeline import bundle_from_plan

    cpu = torch.device("cpu")
    checkpoint = Checkpoint(
        spec=spec,
        state=dict(random_model(spec, cpu).state_dict()),
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), assumed=True, stride=None),
        classes=tuple(ClassEntry(name=f"class {number}", color=(number, number, number)) for number in range(CLASSES)),
        thresholds=(1.0,) * len(spec.gates),
        floor=0.0,
        slide_size=None,
        source="random weights",
        source_sha256="0" * 64,
    )
    plan = ExportPlan.resolve(checkpoint, folder / "random.dovit", overwrite=True)
    bundle, _ = bundle_from_plan(plan, images=[("noise", random_pixels(spec, 1, cpu).numpy())], progress=Unseen())
    return bundle


def gpu_backends(
    bundle: Bundle, run: StartProgram = subprocess.run
) -> Iterable[tuple[str, str, Callable[[], Backend]]]:
    """Engine, precision and a function that makes the backend: those of the registry, and the reference on the GPU."""

    def made(name: str, precision: str) -> Backend:
        # Before anything is built: a machine without the package, or whose GPU it does not support, is told no more.
        packages.load(ENGINES[name].packages[0])
        # Engines that can be trusted or not are those that are built beforehand.
        if "trust_engine" in ENGINES[name].options:
            tensorrt_package(name).check_gpu(gpu_device().compute_capability)
            build(bundle, name, precision, run)
        return backend_from_name(name, precision=precision)

    for name, entry in ENGINES.items():
        # graphs.py measures the others.
        if entry.on_gpu:
            for precision in entry.precisions:
                yield name, precision, lambda name=name, precision=precision: made(name, precision)
    yield "torch on the GPU", "fp32", lambda: EagerBackend(device="cuda")


def build(bundle: Bundle, engine: str, precision: str, run: StartProgram = subprocess.run) -> None:
    """Run `dovit build`, as a user would.

    Raises:
        EngineBuildFailed: it failed, with its last line; or it took too long.
    """
    words = [sys.executable, "-m", "dovit_deploy", "build", str(bundle.path), "--engine", engine]
    words += ["--precision", precision, "--quiet"]
    try:
        done = run(words, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineBuildFailed(f"dovit build took more than {BUILD_SECONDS:.0f} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise EngineBuildFailed(lines[-1] if lines else f"dovit build ended with code {done.returncode}")


def engine_rows(
    bundle: Bundle,
    backends: Iterable[tuple[str, str, Callable[[], Backend]]],
    budget: TimeBudget,
    *,
    seconds: float,
) -> Iterator[Found]:
    """One row for each backend that runs here."""
    pixels = random_pixels(bundle.manifest.spec, 1, torch.device("cpu")).numpy()
    with Session(bundle, engine="torch") as reference:
        # Each image's second setting stops about half of its tokens at each gate.
        expected = reference_runs(reference, settings_from_images(reference, [("noise", pixels)])[1:])[0]
    for name, precision, backend in backends:
        what = f"engine {name} {precision}"
        if (missing := budget.lacks(what, 6 * seconds)) is not None:
            yield "undone", missing
        else:
            yield from attempted(what, _engine_row(bundle, backend, expected, name, precision, seconds=seconds))


def _engine_row(
    bundle: Bundle,
    backend: Callable[[], Backend],
    expected: ReferenceRun,
    name: str,
    precision: str,
    *,
    seconds: float,
) -> Iterator[Found]:
    """The row of one backend; what its engine lacks on this machine is not done, with its own words."""
    try:
        with Session(bundle, backend=backend()) as session:
            yield "engines", engine_row(session, expected, name, precision, seconds=seconds)
    except EnvironmentProblem as error:
        raise NotDone(said(error)) from error


def engine_row(session: Session, expected: ReferenceRun, name: str, precision: str, *, seconds: float) -> EngineRow:
    """Latency of the whole session, host arrays in and out, and parity."""
    setting, spec = expected.setting, session.bundle.manifest.spec
    _, report = session.run(setting.pixels, thresholds=setting.thresholds)
    times = paired(
        lambda: session.run(setting.pixels, dense=True),
        lambda: session.run(setting.pixels, thresholds=setting.thresholds),
        seconds=seconds,
        finish=lambda: None,
    )
    cost = cost_model(spec)
    return EngineRow(
        engine=name,
        precision=precision,
        model=f"ViT {spec.width} wide, {spec.size[0]} px",
        dense=latency(times.first),
        staged=latency(times.second),
        predicted=cost.dense().total / cost.actual(report.kept).total,
        speedup=times.ratio,
        parity=tuple(_failures(session, expected, TOLERANCE if precision == "fp32" else HALF_TOLERANCE)),
    )


def _failures(session: Session, expected: ReferenceRun, tolerance: float) -> list[str]:
    """What violates the contract's rule; floats are compared with the reference's decisions replayed."""
    want, setting = expected.trace, expected.setting
    got = trace_from_session(session, setting, replay=want.index)
    extra = session.bundle.manifest.spec.extra_tokens
    gates = [gate_parity(want, got, gate, setting, extra, limit=tolerance) for gate in range(len(want.keep))]
    wrong = [f"gate {number}: {gate.unexplained} unexplained" for number, gate in enumerate(gates) if gate.unexplained]
    floats = [
        float_parity(f"stage{number} tokens", one, other.astype(np.float32), tolerance=tolerance)
        for number, (one, other) in enumerate(zip(want.tokens, got.tokens, strict=True))
    ]
    floats.append(float_parity("logits", want.logits, got.logits, tolerance=tolerance))
    return wrong + [f"{entry.name}: {entry.error:.3g}" for entry in floats if not entry.error <= entry.allowed]


def bundle_spec() -> VisionTransformerSpec:
    """The architecture of the bundle that is measured."""
    return vit_spec(384, 12, 6, BUNDLE_PIXELS)
