"""Which engines of a bundle may run here? Found in the cache or in the bundle, refused with a reason, or missing.

Engines in the cache were built on this machine. Engines that came with a bundle were built elsewhere and can carry
code, so they run only on request. Whether they were built for a GPU like this one is checked later (`for_gpu`): the
search itself needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.bundle.bundle import ENGINES, WEIGHTS, Bundle
from dovit_deploy.bundle.interface import graph_file
from dovit_deploy.engines.plugins.library import plugin_digest
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.engines.tensorrt.record import EngineKey, build_digest
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet, Origin, read_engines, read_entry
from dovit_deploy.errors import EngineInvalid, EngineMissing
from dovit_deploy.printing import quote


@dataclass(frozen=True)
class EngineSearch:
    """The engines of `bundle` for one package and precision.

    Args:
        trust: also accept engines that came with the bundle.
    """

    bundle: Bundle
    package: TensorRtPackage
    precision: str
    cache: EngineCache
    trust: bool = False

    @property
    def build_line(self) -> str:
        """The command that builds these engines."""
        path = quote(str(self.bundle.path))
        return f"dovit build {path} --engine {self.package.engine} --precision {self.precision}"

    def found(self) -> list[EngineSet]:
        """The engines that fit, best first: those of the cache, then those of the bundle, each newest first.

        Raises:
            EngineMissing: none were built.
            EngineInvalid: those that exist do not fit, are damaged, or are not trusted.
        """
        reasons: list[str] = []
        fitting: list[EngineSet] = []
        for folder, origin in self._folders():
            try:
                entry = read_entry(folder)
                if not self._concerns(entry.key, origin):
                    continue
                reason = self._reason_against(entry.key)
                if reason is None:
                    # Sizes only: hashing every candidate would take seconds, and `checked_plan` hashes what will run.
                    fitting.append(read_engines(folder, origin=origin))
                else:
                    reasons.append(f"the engines in {folder} {reason}")
            except EngineInvalid as error:
                # A damaged folder in the cache may be of any bundle; it matters only if it is of this one.
                if origin == "bundle" or self._is_ours(folder):
                    # Without the error's own remedy: `_ordered` adds a command line with the real path.
                    reasons.append(str(error).partition("; ")[0])
        return self._ordered(fitting, reasons)

    def for_gpu(self, found: list[EngineSet], compute_capability: str) -> EngineSet:
        """The first of the engines `found` that run on a GPU of this compute capability.

        Raises:
            ProviderMissing: see `TensorRtPackage.check_gpu`.
            EngineInvalid: none do.
        """
        self.package.check_gpu(compute_capability)
        for engines in found:
            # All of them: a session takes every stage from one set.
            built = engines.compute_capabilities
            if all(self.package.runs_on(capabilities, compute_capability) for capabilities in built):
                return engines
        best, flag = found[0], self._capability_flag(compute_capability)
        raise EngineInvalid(
            f"the engines in {best.folder} were built for compute capability "
            f"{', '.join(best.compute_capabilities[0])}, this GPU has {compute_capability}; "
            f"build engines for it: {self.build_line}{flag}"
        )

    def _capability_flag(self, name: str) -> str:
        known = self.package.capabilities.compute_capabilities
        return f" --compute-capability {name}" if name in known else ""

    def _folders(self) -> Iterator[tuple[Path, Origin]]:
        # The cache first, so that a reason against the bundle's own engines is the one reported (`reasons[-1]`).
        for folder in self.cache.folders():
            yield folder, "cache"
        inside = self.bundle.path / ENGINES
        for folder in sorted(path for path in inside.iterdir() if path.is_dir()) if inside.is_dir() else ():
            yield folder, "bundle"

    def _concerns(self, key: EngineKey, origin: Origin) -> bool:
        """Whether engines are candidates at all: the cache rightly holds those of other bundles, a bundle does not."""
        if (key.engine, key.precision) != (self.package.engine, self.precision):
            return False
        return origin == "bundle" or self._same_graphs(key)

    def _is_ours(self, folder: Path) -> bool:
        """Whether a damaged folder of the cache was built from this bundle, as far as it can be read."""
        try:
            return self._concerns(read_entry(folder).key, "cache")
        except EngineInvalid:
            return False

    def _same_graphs(self, key: EngineKey) -> bool:
        files = self.bundle.manifest.files
        graphs = {name: files[graph_file(name)].sha256 for name in key.graphs if graph_file(name) in files}
        return key.weights == files[WEIGHTS].sha256 and key.graphs == graphs

    def _reason_against(self, key: EngineKey) -> str | None:
        """Why engines of this key do not fit, as the end of a sentence; None if they do."""
        if not self._same_graphs(key):
            return "were built from another bundle's graphs or weights"
        return why_outdated(key, self.package.version)

    def _ordered(self, fitting: list[EngineSet], reasons: list[str]) -> list[EngineSet]:
        newest = sorted(fitting, key=lambda engines: engines.entry.built_at, reverse=True)
        own = [engines for engines in newest if engines.origin == "cache"]
        carried = [engines for engines in newest if engines.origin == "bundle"]
        # Those of the cache come first even if they are older: they are known to be this user's.
        if own or (carried and self.trust):
            return own + carried if self.trust else own
        if carried:
            raise EngineInvalid(
                f"the engines in {carried[0].folder} came with the bundle and could run anything; build your own: "
                f"{self.build_line}, or, if you trust whoever built them, add --trust-engine"
            )
        if reasons:
            raise EngineInvalid(f"{reasons[-1]}; build them again with: {self.build_line}")
        raise EngineMissing(
            f"{self.bundle.path.name} has no engines for {self.package.engine} {self.package.version} in "
            f"{self.precision}; build them with: {self.build_line}"
        )


def why_outdated(key: EngineKey, version: str | None) -> str | None:
    """Why engines of this key will never run here again, to follow "the engines"; None if they may.

    Args:
        version: of the installed package. None: it is not installed, which is no reason: another environment of the
            same user, with the same cache, may have it.
    """
    if version is not None and key.package_version != version:
        return f"were built by {key.engine} {key.package_version}; {version} is installed"
    if key.forms != build_digest():
        return "were built by another version of dovit-deploy"
    if key.plugins and key.plugin_code != plugin_digest():
        return "were built with other plugins than those in use now"
    return None
