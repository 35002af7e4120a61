"""Benchmarks are scripts: their folder is the first place of imports when they run, and is found here too."""

from __future__ import annotations

import sys

from tests.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
