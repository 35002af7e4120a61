"""What a figure was measured on: processor, cores, system, versions of what computed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from dovit_deploy.record import Record

COMPUTING = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "opencv-python", "av", "torch"),
    *("tensorrt-rtx-cu13", "tensorrt-cu13", "tensorrt", "cuda-bindings", "pycuda"),
)
"""Distributions whose version can change a figure."""
GPUS = Path("/proc/driver/nvidia/gpus")


def machine_facts() -> dict[str, str | int]:
    """Processor, number of usable cores, architecture, system and Python version; NVIDIA GPUs where there are any."""
    gpus = _gpus()
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
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


def _gpus() -> str:
    """Models of the NVIDIA GPUs, as their driver tells Linux."""
    try:
        texts = [path.read_text(encoding="utf-8") for path in sorted(GPUS.glob("*/information"))]
    except OSError:
        return ""
    lines = [line for text in texts for line in text.splitlines() if line.startswith("Model:")]
    return ", ".join(line.partition(":")[2].strip() for line in lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


# What this machine brings that decides how fast, and whether, a model runs: instruction sets and memory.

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")

FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
"""Instruction sets that change how fast a transformer runs, by their names in /proc/cpuinfo."""


class Machine(Record):
    """A machine; what it does not tell is empty or None."""

    cpu: str
    cores: int
    """Logical cores that this process may use."""
    cores_total: int
    features: tuple[str, ...]
    """Those of `FEATURES` that the processor has."""
    memory_gb: float | None
    """10^9 bytes of main memory."""
    memory_free_gb: float | None
    """10^9 bytes that can be had without swapping."""
    system: str
    python: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    facts = machine_facts()
    memory = memory_from_text(_text(MEMINFO))
    return Machine(
        cpu=str(facts["cpu"]),
        cores=int(facts["cores"]),
        cores_total=os.cpu_count() or 1,
        features=features_from_text(_text(CPUINFO)),
        memory_gb=memory.get("MemTotal"),
        memory_free_gb=memory.get("MemAvailable"),
        system=str(facts["system"]),
        python=str(facts["python"]),
    )


def features_from_text(cpuinfo: str) -> tuple[str, ...]:
    """The `FEATURES` that the first processor of /proc/cpuinfo has."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return tuple(name for name in FEATURES if name in present)


def memory_from_text(meminfo: str) -> dict[str, float]:
    """Entries of /proc/meminfo in 10^9 bytes."""
    entries = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, flags=re.MULTILINE)
    return {name: round(int(kibibytes) * 1024 / 1e9, 2) for name, kibibytes in entries}


def _text(path: Path) -> str:
    """Contents of a file of the Linux kernel; empty elsewhere."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
