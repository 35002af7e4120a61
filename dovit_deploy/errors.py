"""Every error a user can cause, as one tree; each class carries the exit code of the command line.

    DovitError                          1   a bug of ours, when raised bare
    ├── UsageError                      2   arguments: unknown, contradictory, out of range, output exists
    ├── InputError                      3   what was given cannot be read or used
    │   ├── SourceError                     an image, folder, video, camera or stream
    │   ├── ConfigError                     configuration values unknown, unsupported or contradictory
    │   └── DatasetError                    a fault in a data set
    ├── CheckError                      4   a check failed
    │   └── ParityError                     two engines disagree
    ├── EnvironmentProblem              5   this machine lacks something
    │   ├── PackageMissing                  a Python package
    │   ├── EncoderMissing                  a video encoder
    │   ├── ProviderMissing                 a device or execution provider
    │   ├── DeviceFailed                    a GPU refused or aborted what it was given
    │   │   └── DeviceOutOfMemory               it has no memory left
    │   ├── EngineBuildFailed               TensorRT cannot make an engine of a graph
    │   ├── EngineMissing                   no engine was built for a bundle
    │   └── OutputFailed                    the disk refuses what is written
    ├── UntrustedError                  6   not to be trusted
    │   ├── PickleRefused                   a checkpoint that would execute code
    │   ├── CheckpointMismatch              missing, unexpected, misshaped, NaN or Inf entries
    │   │   └── NetworkUnknown                  its entries are those of no supported network
    │   │       └── HeadMissing                     but of a backbone without a decode head
    │   ├── EngineInvalid                   a built engine or its sidecar: altered, foreign, for another machine
    │   └── BundleError                     anything wrong in a bundle
    │       ├── ManifestInvalid                 absent, not JSON, wrong fields, altered
    │       ├── VersionUnknown                  a format this version does not read
    │       ├── FileMissing                     listed, not there
    │       ├── FileUnlisted                    there, not listed
    │       ├── DigestMismatch                  bytes differ from the manifest
    │       ├── PathEscapes                     absolute, "..", or a link out
    │       ├── GraphMismatch                   a graph's inputs or outputs are not what the manifest promises
    │       └── WeightsInvalid                  no safetensors file, or NaN or Inf in it
    ├── PartialFailure                  7   finished, but some inputs failed
    └── Interrupted                   130   the user stopped it

A message is one or two lines: what was given, what is allowed, what fixes it. Each line is an argument of its own, as
in `UsageError("first", "second")`: a line break within one came with a name from outside, and is printed escaped.
"""

from __future__ import annotations

import reprlib

__all__ = [
    "BundleError",
    "CheckError",
    "CheckpointMismatch",
    "ConfigError",
    "DatasetError",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "DigestMismatch",
    "DovitError",
    "EncoderMissing",
    "EngineBuildFailed",
    "EngineInvalid",
    "EngineMissing",
    "EnvironmentProblem",
    "FileMissing",
    "FileUnlisted",
    "GraphMismatch",
    "HeadMissing",
    "InputError",
    "Interrupted",
    "ManifestInvalid",
    "NetworkUnknown",
    "OutputFailed",
    "PackageMissing",
    "ParityError",
    "PartialFailure",
    "PathEscapes",
    "PickleRefused",
    "ProviderMissing",
    "SourceError",
    "UntrustedError",
    "UsageError",
    "VersionUnknown",
    "WeightsInvalid",
]


LONGEST_SHOWN = 200
"""Characters of a value from outside that a message repeats."""


class _Brief(reprlib.Repr):
    """Names and numbers from outside, shortened while they are written: written out they could fill the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, LONGEST_SHOWN - 2, LONGEST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Python itself refuses to print a whole number of thousands of digits."""
        del level
        return repr(x) if x.bit_length() < 200 else f"a whole number of about {int(x.bit_length() * 0.30103)} digits"


_BRIEF = _Brief()


def shown(value: object, *, quoted: bool = False) -> str:
    """A value from outside as a message repeats it: at most 200 characters, its middle left out where it is longer.

    Args:
        value: anything.
        quoted: texts in quotes, too; everything else always appears as Python writes it.
    """
    plain = isinstance(value, str) and not quoted
    text = str(value) if plain else _BRIEF.repr(value)
    half = (LONGEST_SHOWN - 3) // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"


class DovitError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code: int = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the message."""
        return tuple(str(line) for line in self.args)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class UsageError(DovitError):
    """An argument is unknown, out of range or contradicts another; or the output exists."""

    exit_code = 2


class InputError(DovitError):
    """What was given cannot be read or cannot be used."""

    exit_code = 3


class SourceError(InputError):
    """An image, folder, video, camera or stream cannot be opened or decoded."""


class ConfigError(InputError):
    """Configuration values are unknown, unsupported or contradict the weights."""


class DatasetError(InputError):
    """A data set has a fault; the message names the file."""


class CheckError(DovitError):
    """A check failed: parity, gate or budget."""

    exit_code = 4


class ParityError(CheckError):
    """Two engines disagree by more than their numerical error explains."""


class EnvironmentProblem(DovitError):
    """This machine lacks a package, driver, encoder or device."""

    exit_code = 5


class PackageMissing(EnvironmentProblem):
    """A Python package is not installed; the message carries the line that installs it."""


class EncoderMissing(EnvironmentProblem):
    """No encoder for the wanted video codec."""


class ProviderMissing(EnvironmentProblem):
    """A device or execution provider is absent, or would silently fall back to the CPU."""


class DeviceFailed(EnvironmentProblem):
    """A GPU, or its driver, refused or aborted what it was given; the message quotes what it reported."""


class DeviceOutOfMemory(DeviceFailed):
    """A GPU has less memory left than is needed."""


class EngineBuildFailed(EnvironmentProblem):
    """TensorRT refuses a graph, or its builder dies; the message quotes what it reported."""


class EngineMissing(EnvironmentProblem):
    """No engine was built for a bundle; the message carries the line that builds it."""


class OutputFailed(EnvironmentProblem):
    """What is written is refused: a full disk, a quota, a folder or file system that cannot be written."""


class UntrustedError(DovitError):
    """What was given must not be trusted."""

    exit_code = 6


class PickleRefused(UntrustedError):
    """A checkpoint holds pickled objects beyond tensors and plain containers."""


class CheckpointMismatch(UntrustedError):
    """A checkpoint has missing, unexpected, misshaped, NaN or Inf entries."""


class NetworkUnknown(CheckpointMismatch):
    """The entries of a checkpoint are those of no supported network, or show too little of it."""


class HeadMissing(NetworkUnknown):
    """A checkpoint is a backbone without a decode head."""


class EngineInvalid(UntrustedError):
    """A built engine or its sidecar is altered, incomplete, or not made for this bundle, package or device."""


class BundleError(UntrustedError):
    """A bundle breaks a rule of `docs/bundle-format.md`."""


class ManifestInvalid(BundleError):
    """`manifest.json` is absent, not JSON, has wrong fields, or was altered."""


class VersionUnknown(BundleError):
    """The bundle's format version is not one that this version reads."""


class FileMissing(BundleError):
    """A file that the manifest lists is not there."""


class FileUnlisted(BundleError):
    """The bundle holds a file that the manifest does not list."""


class DigestMismatch(BundleError):
    """A file's bytes differ from those that the manifest's digest was computed from."""


class PathEscapes(BundleError):
    """A path in the bundle is absolute, climbs with "..", or is a link out of it."""


class GraphMismatch(BundleError):
    """A graph's inputs or outputs are not what the manifest promises."""


class WeightsInvalid(BundleError):
    """`weights.safetensors` is no safetensors file, contradicts itself, or holds NaN or Inf."""


class PartialFailure(DovitError):
    """The work finished, but some inputs failed."""

    exit_code = 7


class Interrupted(DovitError):
    """The user stopped the command; what was done until then is kept."""

    exit_code = 130
