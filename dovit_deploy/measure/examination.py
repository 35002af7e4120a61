"""Examination: everything `doctor` finds out about this machine, and what mends what is wrong."""

from __future__ import annotations

from dovit_deploy import __version__
from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.default_bundle import default_bundle
from dovit_deploy.engines.registry import ENGINES, EngineEntry
from dovit_deploy.errors import DovitError
from dovit_deploy.measure.installation import (
    Conflict,
    PackageState,
    conflicts,
    installed_versions,
    package_states,
)
from dovit_deploy.measure.machine import Machine, this_machine
from dovit_deploy.measure.probing import Finding, findings

ENCODERS = {"h264": ("H.264 with sound", ("av", "cv2")), "mp4v": ("MPEG-4 without sound", ("cv2",))}
"""What each is for, and the packages that it takes; the first that works is used."""
NO_DRIVER, DRIVER_CHECK = "NVIDIA driver", "nvidia-smi"
"""What a reason names where no package is at fault, and the line that shows whether the driver works."""


class Check(Noun):
    """Something that was tried for real."""

    name: str
    purpose: str
    works: bool
    detail: str
    mend: str | None
    """The line to run where it does not work; None where it does."""


class DefaultModel(Noun):
    """The model that is taken when none is named."""

    path: str | None
    works: bool
    detail: str
    """Its licence line, or what is wrong and what mends it."""


class Examination(Noun):
    """The contents of `doctor --json`."""

    version: str
    machine: Machine
    engines: tuple[Check, ...]
    images: Check
    encoders: tuple[Check, ...]
    """The first that works is used."""
    conflicts: tuple[Conflict, ...]
    packages: tuple[PackageState, ...]
    default_model: DefaultModel

    @property
    def can_run(self) -> bool:
        """Whether some engine computes and pictures can be read."""
        return self.images.works and any(engine.works for engine in self.engines)

    @property
    def mends(self) -> tuple[str, ...]:
        """The lines to run, most urgent first; a doubled package explains what else is broken, so it comes first."""
        lines = [conflict.mend for conflict in self.conflicts]
        lines += [check.mend for check in (self.engines[0], self.images, self.encoders[0]) if check.mend is not None]
        return tuple(dict.fromkeys(lines))


def examination() -> Examination:
    """Examine this machine; engines and encoders are tried in processes of their own."""
    found = findings((*ENGINES, "images", *ENCODERS))
    packages = package_states()
    return Examination(
        version=__version__,
        machine=this_machine(),
        engines=tuple(
            _check(found[name], entry.purpose, packages, modules=_modules(entry), install=entry.install)
            for name, entry in ENGINES.items()
        ),
        images=_check(found["images"], "reading and resizing images", packages, modules=("cv2", "PIL")),
        encoders=tuple(
            _check(found[name], purpose, packages, modules=modules) for name, (purpose, modules) in ENCODERS.items()
        ),
        conflicts=conflicts(installed_versions()),
        packages=packages,
        default_model=_default_model(),
    )


def _check(
    found: Finding,
    purpose: str,
    packages: tuple[PackageState, ...],
    *,
    modules: tuple[str, ...],
    install: str | None = None,
) -> Check:
    """A finding with the line that mends it; `modules` are what it takes, `install` is a line of its own."""
    states = [state for state in packages if state.module in modules]
    missing = any(not state.installed for state in states)
    mend = None if found.works else install or _culprit(found, states).mend
    if mend is not None and not missing and NO_DRIVER in found.detail:
        mend = DRIVER_CHECK
    return Check(name=found.name, purpose=purpose, works=found.works, detail=found.detail, mend=mend)


def _modules(entry: EngineEntry) -> tuple[str, ...]:
    """The packages that an engine takes."""
    return (entry.package, "cuda.bindings.driver") if "cuda_memory" in entry.options else (entry.package,)


def _culprit(found: Finding, states: list[PackageState]) -> PackageState:
    """What to mend first: what is missing, else what the reason names, else the first."""
    missing = [state for state in states if not state.installed]
    named = [state for state in states if f"'{state.module}'" in found.detail]
    return (*missing, *named, *states)[0]


def _default_model() -> DefaultModel:
    path = None
    try:
        place, licence = default_bundle()
        path = str(place)
        Bundle.open(place)
    except (DovitError, ImportError, AttributeError) as error:
        return DefaultModel(path=path, works=False, detail=str(error))
    return DefaultModel(path=path, works=True, detail=licence)
