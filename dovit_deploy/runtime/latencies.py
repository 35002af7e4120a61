"""Is there a latency model of this machine? Remembered in the user's cache, else fitted now.

`dovit bench` fits one with care; whoever needs one and finds none fits a short one and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.errors import UsageError
from dovit_deploy.machine import this_machine
from dovit_deploy.printing import plural, quote
from dovit_deploy.runtime.deadline import Deadline, refuse_fixed_counts
from dovit_deploy.runtime.latency import LatencyModel
from dovit_deploy.runtime.latency_fit import SHORT_SECONDS, fit_latency, run_every_size
from dovit_deploy.runtime.remembered import Circumstances, Here, RememberedEntries, RememberedFile
from dovit_deploy.runtime.session import Session

GRAPH_SUFFIXES = (".onnx", ".safetensors")
CLOCK_NAMES = {"cpu": "CPU time", "wall": "wall time"}


class TimedAs(Circumstances):
    """What a latency model depends on: it holds for this alone."""

    bundle: str
    """`graphs_digest`."""
    engine: str
    precision: str


class LatencyCache(RememberedFile[TimedAs, LatencyModel]):
    """The file of all latency models, `latency.json`.

    Args:
        home: the folder of it; default: the user's cache.
    """

    def __init__(self, home: Path | None = None) -> None:
        lost = "the latency model is not remembered"
        super().__init__("latency.json", RememberedEntries[TimedAs, LatencyModel], lost=lost, home=home)


def timed_as(session: Session) -> TimedAs:
    """What the latency model of `session` depends on."""
    return TimedAs(
        here=Here.now(),
        bundle=graphs_digest(session.bundle),
        engine=session.backend.name,
        precision=session.backend.precision,
        threads=numbered(session.threads),
    )


def numbered(threads: int | None) -> int:
    """How many threads a session gets whose time is predicted: as many as there are cores where nobody says.

    A number, since `dovit bench` measures numbers of threads, and an engine left to itself may take another.
    """
    return threads or this_machine().cores


def has_latency_model(session: Session) -> bool:
    """Whether its time depends on token counts, and is that of the CPU."""
    entry = ENGINES.get(session.backend.name)
    return bool(session.bundle.manifest.spec.gates) and not (entry is not None and entry.on_gpu)


def latency_model_here(
    session: Session,
    *,
    remark: Callable[[str], None],
    cache: LatencyCache | None = None,
    advance: Callable[[], None] | None = None,
) -> LatencyModel:
    """The model of `session`, one that `has_latency_model`.

    Args:
        session: of the bundle, in the engine that is to be predicted.
        remark: takes the line that says what is used.
        cache: of former models; default: the user's.
        advance: called now and then while one is measured.
    """
    cache, situation = cache or LatencyCache(), timed_as(session)
    model = cache.recall(situation)
    if model is not None and len(model.stages) == len(session.bundle.manifest.spec.counts):
        remark(f"latency model of {model.date[:10]}: {accuracy(model)}")
        return model
    name, threads = f"{session.backend.name} {session.backend.precision}", plural(numbered(session.threads), "thread")
    remark(
        f"no latency model of {name} on {threads} yet: a short one is measured; "
        f"{measured_anew(session)} makes a better one"
    )
    model = fit_latency(session, seconds=SHORT_SECONDS, advance=advance)
    cache.remember(situation, model)
    remark(f"latency model: {accuracy(model)}")
    return model


def deadline_here(
    session: Session,
    milliseconds: float,
    *,
    rounds: int,
    remark: Callable[[str], None],
    advance: Callable[[], None] | None = None,
) -> Deadline:
    """A deadline for frames in `session`, which is made ready to keep it from the first frame on.

    Args:
        session: what runs the frames.
        milliseconds: of a frame's model step.
        rounds: of windows that run one after another.
        remark: takes lines about the latency model.
        advance: called now and then while one is measured, and while sizes are compiled.

    Raises:
        UsageError: the model has no gates, or it runs on a GPU; or the deadline cannot be kept.
    """
    manifest = session.bundle.manifest
    refuse_fixed_counts(manifest)
    if not has_latency_model(session):
        raise UsageError(
            f"--deadline-ms is for engines on the CPU, {session.backend.name} is on a GPU; "
            "use --engine onnxruntime or openvino"
        )
    model = latency_model_here(session, remark=remark, advance=advance)
    deadline = Deadline.checked(milliseconds, model, manifest.spec, rounds=rounds, remedy=measured_anew(session))
    most = deadline.cap([manifest.spec.tokens])
    if model.stages[-1].sizes:
        remark(f"{session.backend.name} compiles the sizes in which up to {most} tokens run")
    run_every_size(session, most, advance=advance)
    return deadline


def measured_anew(session: Session) -> str:
    """The command that makes the model of `session` with care."""
    backend, path, threads = session.backend, quote(str(session.bundle.path)), numbered(session.threads)
    return f"dovit bench {path} --engine {backend.name} --precision {backend.precision} --threads {threads}"


def accuracy(model: LatencyModel) -> str:
    """How well it predicts, in a few words."""
    clock = CLOCK_NAMES[model.clock]
    return f"{model.held_out} other patterns of tokens predicted within {model.error:.1%} (median, {clock})"


def graphs_digest(bundle: Bundle) -> str:
    """SHA-256 of graphs and weights: what else is in a bundle, as its thresholds, takes no time."""
    files = bundle.manifest.files.items()
    graphs = sorted((name, entry.sha256) for name, entry in files if name.endswith(GRAPH_SUFFIXES))
    return hashlib.sha256(str(graphs).encode()).hexdigest()
