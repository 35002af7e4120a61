"""Benchmarks are scripts: when one runs, its folder comes first in `sys.path`; tests find the modules there, too."""

from __future__ import annotations

import sys

from tests.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
