"""What this machine brings that decides how fast, and whether, a model runs: instruction sets and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.machine import machine_facts

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


class Machine(Noun):
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
