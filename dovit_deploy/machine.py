"""What a figure was measured on: processor, cores, system, versions of what computed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

COMPUTING = ("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "opencv-python", "av", "torch")
"""Distributions whose version can change a figure."""


def machine_facts() -> dict[str, str | int]:
    """Processor, number of usable cores, architecture, system and Python version."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "architecture": platform.machine(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
