"""What a figure was measured on: processor, cores, system, versions of what computed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

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
