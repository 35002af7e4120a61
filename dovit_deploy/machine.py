"""What was a figure measured on: which processor, cores, memory, GPUs, system, and versions of what computed?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from dovit_deploy.record import Record

COMPUTING = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "opencv-python-headless", "opencv-python", "av", "torch"),
    *("nncf", "tensorrt-rtx-cu13", "tensorrt-cu13", "tensorrt", "cuda-bindings", "pycuda"),
)
"""Distributions whose version can change a figure."""

FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16"),
)
"""Instruction sets that change how fast a transformer runs, by their names in /proc/cpuinfo (x86, then Arm)."""

CPUINFO, MEMINFO, GPUS = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/proc/driver/nvidia/gpus")


class Machine(Record):
    """A machine; what the system does not report is empty or None."""

    cpu: str
    cores: int
    """Logical cores that this process may use."""
    cores_total: int
    features: tuple[str, ...]
    """Those of `FEATURES` that the processor has."""
    memory_gb: float | None
    """10^9 bytes of main memory."""
    memory_free_gb: float | None
    """10^9 bytes that are available without swapping."""
    system: str
    python: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    cpuinfo, memory = _text(CPUINFO), memory_from_text(_text(MEMINFO))
    return Machine(
        cpu=_processor(cpuinfo),
        cores=_usable_cores(),
        cores_total=os.cpu_count() or 1,
        features=features_from_text(cpuinfo),
        memory_gb=memory.get("MemTotal"),
        memory_free_gb=memory.get("MemAvailable"),
        system=platform.platform(terse=True),
        python=platform.python_version(),
    )


def machine_facts() -> dict[str, str | int]:
    """What reports carry of this machine; `gpu` names the NVIDIA GPUs where there are any."""
    gpus = _gpus()
    return {
        "cpu": _processor(_text(CPUINFO)),
        "cores": _usable_cores(),
        "architecture": platform.machine(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **({"gpu": gpus} if gpus else {}),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of what computes for it."""
    versions = {}
    for name in ("dovit-deploy", *COMPUTING):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def features_from_text(cpuinfo: str) -> tuple[str, ...]:
    """The `FEATURES` that the first processor of /proc/cpuinfo has."""
    # x86 calls the line "flags", Arm "Features".
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return tuple(name for name in FEATURES if name in present)


def memory_from_text(meminfo: str) -> dict[str, float]:
    """Entries of /proc/meminfo in 10^9 bytes."""
    entries = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, flags=re.MULTILINE)
    # The kernel writes "kB" and means 1024 bytes.
    return {name: round(int(kibibytes) * 1024 / 1e9, 2) for name, kibibytes in entries}


def _usable_cores() -> int:
    # A container or `taskset` may leave fewer than the machine has; only Linux reports it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor(cpuinfo: str) -> str:
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    # On 64-bit Arm the kernel names no model.
    return name[1].strip() if name else platform.processor() or "unknown"


def _gpus() -> str:
    """Models of the NVIDIA GPUs, as their driver lists them on Linux."""
    texts = [_text(path) for path in sorted(GPUS.glob("*/information"))]
    models = [re.search(r"^Model:\s*(.+)$", text, flags=re.MULTILINE) for text in texts]
    return ", ".join(model[1].strip() for model in models if model)


def _text(path: Path) -> str:
    """Contents of a file of the Linux kernel; empty where it cannot be read, as on other systems."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
