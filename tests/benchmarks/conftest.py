"""Benchmarks are scripts: their folder is the first place of imports when they run, and is found here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
