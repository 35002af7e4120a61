"""What do the flags of `run`, which `batch` has too, come to for one bundle and source?"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.credentials import masked
from dovit_deploy.engines.registry import AUTO, engine_entry
from dovit_deploy.errors import PackageMissing, UsageError

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.runtime.audit import AuditPlan, DriftAction
    from dovit_deploy.runtime.auto import Chosen, Wanted
    from dovit_deploy.runtime.run_page import PagePlan
    from dovit_deploy.runtime.settings import RunSettings, Thresholds
    from dovit_deploy.sources.ahead import FramesAhead
    from dovit_deploy.sources.source import Source


def opened_bundle(path: Path, classes: Path | None) -> Bundle:
    """The bundle with the names of `--classes`."""
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.class_files import classes_from_file
    from dovit_deploy.bundle.manifest import renamed

    bundle = Bundle.open(path)
    if classes is None:
        return bundle
    return dataclasses.replace(bundle, manifest=renamed(bundle.manifest, classes_from_file(classes)))


def kinds_of(named: tuple[str, ...] | None, manifest: Manifest, *, video: bool, quiet: bool) -> tuple[str, ...]:
    """What is written, each kind once: what `--save` names, or the default of the task and source.

    Raises:
        PackageMissing: a report is named, and what makes it is not installed.
        UsageError: a kind that the bundle cannot give.
    """
    from dovit_deploy import packages
    from dovit_deploy.runtime.cityscapes import label_ids
    from dovit_deploy.runtime.outputs import REPORT
    from dovit_deploy.runtime.tasks import task_from_manifest

    task = task_from_manifest(manifest)
    if named is not None:
        kinds = task.checked(tuple(dict.fromkeys(named)), name=manifest.name)
        if REPORT in kinds:
            packages.load("jinja2")
        if "cityscapes" in kinds:
            label_ids([entry.name for entry in manifest.classes])
        return kinds
    kinds = task.video_default if video else task.images_default
    try:
        packages.load("jinja2")
    except PackageMissing as error:
        console.remark(f"note: no report.html: {error}", quiet=quiet)
        return tuple(kind for kind in kinds if kind != REPORT)
    return kinds


def painted_and_page(kinds: tuple[str, ...], source: str) -> tuple[tuple[str, ...], PagePlan | None]:
    """What is painted of each frame, and what the page says of the run, if there is one."""
    from dovit_deploy.runtime.outputs import REPORT
    from dovit_deploy.runtime.run_page import PagePlan

    if REPORT not in kinds:
        return kinds, None
    return tuple(kind for kind in kinds if kind != REPORT), PagePlan(masked(source), console.this_command())


def settings_of(manifest: Manifest, thresholds: Thresholds | None, *, dense: bool, deadline: bool) -> RunSettings:
    """What the flags say of which tokens stop; a deadline only whether the model can have one."""
    from dovit_deploy.runtime.deadline import refuse_fixed_counts
    from dovit_deploy.runtime.settings import RunSettings

    if deadline:
        refuse_fixed_counts(manifest)
    return RunSettings.resolve(manifest, thresholds=thresholds, dense=dense)


def checked_action(
    audit: int | None, on_drift: str | None, *, dense: bool, threshold: str | None, deadline_ms: float | None
) -> DriftAction | None:
    """What is done about drift, None where nothing is audited; raises UsageError for flags that contradict."""
    if dense and threshold is not None:
        raise UsageError("--dense stops nothing, so --threshold has no meaning; give one of them")
    if dense and deadline_ms is not None:
        raise UsageError("--dense stops nothing, so --deadline-ms cannot be kept; give one of them")
    # Written so that NaN is refused, too.
    if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
        raise UsageError(f"--deadline-ms {deadline_ms:g}: a finite number of milliseconds above 0 is needed")
    return _action(audit, on_drift, dense=dense, deadline=deadline_ms is not None)


def _action(audit: int | None, on_drift: str | None, *, dense: bool, deadline: bool) -> DriftAction | None:
    """What is done about drift; None: nothing is audited."""
    from dovit_deploy.runtime.audit import DRIFT_ACTIONS

    if audit is None:
        if on_drift is not None:
            raise UsageError("--on-drift says what an audit does; give --audit N, too")
        return None
    if dense:
        raise UsageError("--dense stops nothing, so --audit has nothing to compare; give one of them")
    action = next((known for known in DRIFT_ACTIONS if known == (on_drift or "warn")), None)
    if action is None:
        raise UsageError(f"--on-drift: '{on_drift}' given; allowed: {', '.join(DRIFT_ACTIONS)}")
    if deadline and action != "warn":
        raise UsageError(f"--deadline-ms stops tokens whatever they cost, so --on-drift {action} cannot be kept")
    return action


def audits_of(
    bundle: Bundle, settings: RunSettings, every: int | None, action: DriftAction | None, *, own: bool, stream: bool
) -> AuditPlan | None:
    """How often which answers are compared with the dense ones; None where none is."""
    from dovit_deploy.runtime.audit import audit_plan

    if every is None or action is None:
        return None
    return audit_plan(bundle, settings, every=every, on_drift=action, own_thresholds=own, stream=stream)


def numbered_threads(threads: int | None, *, deadline: bool) -> int | None:
    """As given; a number where time is predicted."""
    from dovit_deploy.runtime.latencies import numbered

    return numbered(threads) if deadline else threads


def windows_of(manifest: Manifest, source: Source, ahead: FramesAhead) -> int:
    """How many windows slide over an image, by the first that can be read: several may be run at once."""
    from dovit_deploy.runtime.transforms import window_count

    preprocessing, size = manifest.preprocessing, manifest.spec.size
    if source.video is not None:
        return window_count(source.video.size, preprocessing, size)
    first = ahead.first(1) if preprocessing.stride is not None else []
    return window_count((first[0].rgb.shape[0], first[0].rgb.shape[1]), preprocessing, size) if first else 1


def chosen_engine(
    bundle: Bundle, engine: str, wanted: Wanted, *, source: Source, ahead: FramesAhead, quiet: bool
) -> Chosen:
    """The engine named, or the one that is chosen for `--engine auto`."""
    from dovit_deploy.runtime.auto import chosen_session, named_session, slow_precision

    slow = slow_precision(wanted.precision, on_gpu=engine != AUTO and engine_entry(engine).on_gpu)
    if slow is not None:
        console.remark(slow, quiet=quiet)
    if engine != AUTO:
        return wanted.run_in(engine, named_session(bundle, engine, wanted))
    return chosen_session(bundle, source, ahead, wanted, remark=partial(console.remark, quiet=quiet))


def settings_within(deadline_ms: float | None, chosen: Chosen, *, windows: int, quiet: bool) -> RunSettings:
    """The settings of the run, with its deadline, which a latency model of this machine keeps."""
    from dovit_deploy.runtime.latencies import deadline_here
    from dovit_deploy.runtime.workers import rounds_of

    if deadline_ms is None:
        return chosen.settings
    rounds = rounds_of(windows, at_once=chosen.at_once.windows)
    remark = partial(console.remark, quiet=quiet)
    # Timed, so nothing may be drawn by another thread meanwhile.
    with console.progress("getting ready for the deadline", unit="steps", quiet=quiet, timed=True) as shown:
        deadline = deadline_here(chosen.session, deadline_ms, rounds=rounds, remark=remark, advance=shown.advance)
    return dataclasses.replace(chosen.settings, deadline=deadline)
