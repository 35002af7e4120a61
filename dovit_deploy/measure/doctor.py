"""What works on this machine, what is missing or installed twice, and which line fixes it?

Engines and encoders are tried for real (`probe`), each in a process of its own: what crashes or hangs is reported and
does not end the examination.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

import dovit_deploy
from dovit_deploy import __version__, packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import default_bundle, installed_names
from dovit_deploy.engines.registry import engine_entry, engine_names
from dovit_deploy.errors import DovitError, EnvironmentProblem
from dovit_deploy.interruption import signal_name
from dovit_deploy.machine import Machine, this_machine
from dovit_deploy.packages import OPTIONAL
from dovit_deploy.record import Record

ENCODERS = {"h264": ("H.264 with sound", ("av", "cv2")), "mp4v": ("MPEG-4 without sound", ("cv2",))}
"""What each is for, and the packages that it needs; the first that works is used."""
NO_DRIVER, DRIVER_CHECK = "NVIDIA driver", "nvidia-smi"
"""What a probe's error mentions where no package is at fault, and the line that shows whether the driver works."""


class Check(Record):
    """Something that was tried for real."""

    name: str
    purpose: str
    works: bool
    detail: str
    # The JSON keeps the key of earlier versions, for the scripts that read it.
    fix: str | None = Field(serialization_alias="mend")
    """The line to run where it does not work; None where it does."""


class Conflict(Record):
    """Several distributions of one module."""

    module: str
    distributions: tuple[str, ...]
    """With their versions, as in "onnxruntime 1.20.1"."""
    fix: str = Field(serialization_alias="mend")
    """The line that leaves one of them, intact."""


class PackageState(Record):
    """An optional package."""

    module: str
    purpose: str
    installed: bool
    distributions: tuple[str, ...]
    """What provides it."""
    version: str | None
    """None where it is not installed, or states none."""
    install: str
    """The line that installs it."""

    @property
    def fix(self) -> str:
        """The line that fixes it when it does not work: install it, or reinstall it."""
        if not self.installed or not self.distributions:
            return self.install
        name = self.distributions[0]
        if self.module == "cv2" and not name.endswith("-headless"):
            # This one needs the system's window libraries, which servers lack.
            return f"pip uninstall -y {name} && pip install {name}-headless"
        # What the package depends on is left as the user has it.
        return f"pip install --force-reinstall --no-deps {name}"


class DefaultModel(Record):
    """The model that is taken when none is named."""

    path: str | None
    works: bool
    detail: str
    """Its licence line, or what is wrong and what fixes it."""


class Examination(Record):
    """The contents of `doctor --json`."""

    version: str
    machine: Machine
    engines: tuple[Check, ...]
    images: Check
    encoders: tuple[Check, ...]
    """In the order of preference: the first that works is used."""
    conflicts: tuple[Conflict, ...]
    packages: tuple[PackageState, ...]
    default_model: DefaultModel
    models: tuple[str, ...]
    """Names of the installed models."""

    @property
    def can_run(self) -> bool:
        """Whether some engine computes and images can be read."""
        return self.images.works and any(engine.works for engine in self.engines)

    @property
    def fixes(self) -> tuple[str, ...]:
        """The lines to run, most urgent first.

        Conflicts come first, since a package installed twice explains what else is broken. Of engines and encoders
        only the default counts: the others are a choice.
        """
        lines = [conflict.fix for conflict in self.conflicts]
        lines += [check.fix for check in (self.engines[0], self.images, self.encoders[0]) if check.fix is not None]
        return tuple(dict.fromkeys(lines))


def examination() -> Examination:
    """Examine this machine; engines and encoders are tried in processes of their own."""
    engines = engine_names()
    found = findings((*engines, "images", *ENCODERS))
    packages = package_states()
    return Examination(
        version=__version__,
        machine=this_machine(),
        engines=tuple(_engine_check(found[name], packages) for name in engines),
        images=_check(found["images"], "reading and resizing images", packages, modules=("cv2", "PIL")),
        encoders=tuple(
            _check(found[name], purpose, packages, modules=modules) for name, (purpose, modules) in ENCODERS.items()
        ),
        conflicts=conflicts(installed_versions()),
        packages=packages,
        default_model=_default_model(),
        models=installed_names(),
    )


def _engine_check(found: Finding, packages: tuple[PackageState, ...]) -> Check:
    try:
        entry = engine_entry(found.name)
    except EnvironmentProblem as error:
        # One of another distribution, whose own line says what fixes it.
        return Check(name=found.name, purpose="", works=False, detail=str(error), fix=None)
    return _check(found, entry.purpose, packages, modules=entry.packages, install=entry.install)


def _check(
    found: Finding,
    purpose: str,
    packages: tuple[PackageState, ...],
    *,
    modules: tuple[str, ...],
    install: str | None = None,
) -> Check:
    """A finding with the line that fixes it.

    Args:
        found: what the probe found.
        purpose: what is tried is for this.
        packages: state of all optional packages.
        modules: the packages that it needs.
        install: the line that installs it, where that is not the line of one of the packages.
    """
    # A driver is at fault only where every package is there; `install` may be a line that removes another one.
    states = [state for state in packages if state.module in modules]
    missing = any(not state.installed for state in states)
    fix = None if found.works else install or (_culprit(found, states).fix if states else None)
    if fix is not None and not missing and NO_DRIVER in found.detail:
        fix = DRIVER_CHECK
    return Check(name=found.name, purpose=purpose, works=found.works, detail=found.detail, fix=fix)


def _culprit(found: Finding, states: list[PackageState]) -> PackageState:
    """What to fix first: what is missing, else what the reason names, else the first."""
    missing = [state for state in states if not state.installed]
    named = [state for state in states if f"'{state.module}'" in found.detail]
    return (*missing, *named, *states)[0]


def _default_model() -> DefaultModel:
    path = None
    try:
        chosen = default_bundle()
        path = str(chosen.path)
        Bundle.open(chosen.path)
    except DovitError as error:
        return DefaultModel(path=path, works=False, detail=str(error))
    return DefaultModel(path=path, works=True, detail=chosen.licence or "")


# Packages: what is installed, and distributions that overwrite one another's files.


@dataclass(frozen=True)
class Rivals:
    """Distributions that unpack into one folder; the one installed last overwrites the others, file by file."""

    module: str
    distributions: tuple[str, ...]
    """The most capable first: where several are installed, that one is kept."""


RIVALS = (
    Rivals("onnxruntime", ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime")),
    Rivals(
        "cv2",
        (
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
            "opencv-python",
            "opencv-python-headless",
        ),
    ),
)


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by its normalised name."""
    versions = {}
    for distribution in importlib.metadata.distributions():
        # Broken metadata has no name; Python then gives None, contrary to its types.
        name: str | None = distribution.metadata["Name"]
        if name:
            versions[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return versions


def conflicts(installed: dict[str, str]) -> tuple[Conflict, ...]:
    """The rivals of which several are installed.

    Args:
        installed: as `installed_versions` gives it.
    """
    found = []
    for rivals in RIVALS:
        # In the order of RIVALS, so that the one that is kept comes first.
        present = [name for name in rivals.distributions if name in installed]
        if len(present) > 1:
            found.append(
                Conflict(
                    module=rivals.module,
                    distributions=tuple(f"{name} {installed[name]}" for name in present),
                    fix=f"pip uninstall -y {' '.join(reversed(present))} && pip install {present[0]}",
                )
            )
    return tuple(found)


def package_states(modules: Iterable[str] = tuple(OPTIONAL)) -> tuple[PackageState, ...]:
    """State of the optional packages, found without importing them: an import may crash or take seconds."""
    providers = importlib.metadata.packages_distributions()
    return tuple(_state(module, providers.get(module, [])) for module in modules)


def _state(module: str, distributions: list[str]) -> PackageState:
    package = OPTIONAL[module]
    installed = packages.is_there(module)
    return PackageState(
        module=module,
        purpose=package.purpose,
        installed=installed,
        distributions=tuple(distributions) if installed else (),
        version=importlib.metadata.version(distributions[0]) if installed and distributions else None,
        install=package.install,
    )


# Probes, in processes of their own, several at once.

TIME_LIMIT_S = 60.0
"""For one probe; importing PyTorch from a cold disk takes some of it."""

AT_ONCE = 3
"""Probes at a time: most of each is waiting for the disk, and a laptop has few cores."""


class Finding(Record):
    """What one probe found."""

    name: str
    works: bool
    detail: str
    """Versions where it works, the reason where it does not."""


def findings(names: Sequence[str], *, time_limit_s: float = TIME_LIMIT_S) -> dict[str, Finding]:
    """Run the probes called `names`; by name, in that order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda name: finding_of(name, probe_command(name), time_limit_s), names)
        return {finding.name: finding for finding in found}


def probe_command(name: str) -> list[str]:
    """The command that runs the probe called `name`."""
    # -P, and the folder that holds this package last: nothing in the user's folder or beside us may pass for a module.
    parent = str(Path(dovit_deploy.__path__[0]).absolute().parent)
    program = (
        f"import sys; sys.path.append({parent!r}); "
        f"from dovit_deploy.measure.probe import main; sys.exit(main({name!r}))"
    )
    return [sys.executable, "-P", "-c", program]


def finding_of(name: str, command: Sequence[str], time_limit_s: float) -> Finding:
    """Run `command`; the last line that it printed says what was found, or why it failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=time_limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name=name, works=False, detail=f"no answer within {time_limit_s:g} s")
    if done.returncode == 0:
        return Finding(name=name, works=True, detail=_last_line(done.stdout))
    # POSIX reports death by a signal as a negative code.
    if done.returncode < 0:
        return Finding(name=name, works=False, detail=f"crashed with {signal_name(-done.returncode)}")
    return Finding(name=name, works=False, detail=_last_line(done.stderr) or f"left with code {done.returncode}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
