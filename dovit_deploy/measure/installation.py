"""What is installed here: optional packages, and distributions that overwrite one another's files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.packages import OPTIONAL


@dataclass(frozen=True)
class Rivals:
    """Distributions that unpack into one folder; of several, the one installed last wins, file by file."""

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


class Conflict(Noun):
    """Several distributions of one module."""

    module: str
    distributions: tuple[str, ...]
    """With their versions, as in "onnxruntime 1.20.1"."""
    mend: str
    """The line that leaves one of them, whole."""


class PackageState(Noun):
    """An optional package."""

    module: str
    purpose: str
    installed: bool
    distributions: tuple[str, ...]
    """What provides it."""
    version: str | None
    """None where it is not installed, or does not say."""
    install: str
    """The line that installs it."""

    @property
    def mend(self) -> str:
        """The line that mends it when it does not work: install it, or install it anew."""
        if not self.installed or not self.distributions:
            return self.install
        name = self.distributions[0]
        if self.module == "cv2" and not name.endswith("-headless"):
            # It needs the system's window libraries, which servers lack.
            return f"pip uninstall -y {name} && pip install {name}-headless"
        return f"pip install --force-reinstall --no-deps {name}"


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by its normalised name."""
    versions = {}
    for distribution in importlib.metadata.distributions():
        # Broken metadata has no name; Python then gives None, whatever its types say.
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
        present = [name for name in rivals.distributions if name in installed]
        if len(present) > 1:
            found.append(
                Conflict(
                    module=rivals.module,
                    distributions=tuple(f"{name} {installed[name]}" for name in present),
                    mend=f"pip uninstall -y {' '.join(reversed(present))} && pip install {present[0]}",
                )
            )
    return tuple(found)


def package_states(modules: Iterable[str] = tuple(OPTIONAL)) -> tuple[PackageState, ...]:
    """State of the optional packages, found without importing them."""
    providers = importlib.metadata.packages_distributions()
    return tuple(_state(module, providers.get(module, [])) for module in modules)


def _state(module: str, distributions: list[str]) -> PackageState:
    package = OPTIONAL[module]
    installed = _is_there(module)
    return PackageState(
        module=module,
        purpose=package.purpose,
        installed=installed,
        distributions=tuple(distributions) if installed else (),
        version=importlib.metadata.version(distributions[0]) if installed and distributions else None,
        install=package.install,
    )


def _is_there(module: str) -> bool:
    """`module`, perhaps inside a package, can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # A package above it is missing.
        return False
