"""Golden cases of the official code: where they lie, their tensors, and what counts as equal to them.

A case is `NAME.json` (configuration, results), `NAME.weights.safetensors` (official keys) and `NAME.io.safetensors`
(input, intermediates, outputs). Tests that use them skip, with the reason, where the folder is absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.paths import SHARED

ROOT = SHARED / "fixtures"
TOLERANCE = 1e-4
"""Times max(1, absmax of the reference)."""
HANDFUL = {
    "dovit": [
        "seg_w48_diff002_150c",
        "seg_w64_128x192_posresize_nofinal_tuple",
    ],
    "evovit": ["evo_levit_mini"],
    "stvit": ["stvit_r_swin_t_w16", "stvit_deit_composed_w48"],
    "segmenter": ["segmenter_w64_mask_resize", "segmenter_w64_linear_distilled", "setr_naive_w64_160"],
}
"""What the default test run compares; the rest carries the mark `exhaustive`."""


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    config: Path
    """The json; it serves as `--config` as it is."""
    weights: Path
    io: Path

    @property
    def facts(self) -> dict[str, Any]:
        """The json's contents."""
        contents: dict[str, Any] = json.loads(self.config.read_text())
        return contents


def cases(folder: str) -> list[Case]:
    """Every case in `folder` (dovit, segmenter, ...), sorted by name; none where the fixtures are absent."""
    return [
        Case(path.stem, path, path.with_suffix(".weights.safetensors"), path.with_suffix(".io.safetensors"))
        for path in sorted((ROOT / folder).glob("*.json"))
    ]


def case_parameters(folder: str, *, every: bool = False) -> list[Any]:
    """For `pytest.mark.parametrize("case", ...)`: the handful plain, the rest marked exhaustive, or one skip.

    `every` leaves the mark out, where a comparison is quick.
    """
    found = cases(folder)
    if not found:
        absent = pytest.mark.skip(reason=f"no golden fixtures in {ROOT / folder}")
        return [pytest.param(None, id="absent", marks=absent)]
    handful = [case.name for case in found] if every else HANDFUL[folder]
    return [
        pytest.param(case, id=case.name, marks=() if case.name in handful else pytest.mark.exhaustive) for case in found
    ]


def load(case: Case) -> dict[str, Tensor]:
    """The tensors of `case.io`: floats in fp32, integers as stored; `.numpy()` makes them arrays."""
    tensors = load_file(case.io)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def tolerance(reference: Tensor) -> float:
    """Largest allowed absolute difference from `reference`."""
    return TOLERANCE * max(1.0, float(reference.abs().max()))


def stored(io: dict[str, Tensor], name: str) -> tuple[Tensor, str] | None:
    """The reference called `name` and the suffix it is stored under ("", "every3", "first4", "strided"), if any."""
    for key, tensor in io.items():
        match = re.fullmatch(re.escape(name) + r"(?:\.(every\d+|first\d+|strided))?", key)
        if match:
            return tensor, match.group(1) or ""
    return None


def thinned(full: Tensor, suffix: str, name: str) -> Tensor:
    """`full` reduced as the fixture stores it under `suffix`; "strided" is every 8th pixel of the image."""
    number = int(re.sub(r"\D", "", suffix) or 8)
    if not suffix:
        return full
    if suffix.startswith("first"):
        return full[:, :number]
    if name.endswith("embed"):
        return full[:, ::number]
    return full[..., ::number, ::number]


def compare(io: dict[str, Tensor], name: str, value: Tensor) -> bool:
    """Assert that `value` equals the reference `name` within tolerance; False if none is stored."""
    found = stored(io, name)
    if found is None:
        return False
    reference, suffix = found
    mine = thinned(value, suffix, name).reshape(reference.shape)
    difference = float((mine - reference).abs().max())
    assert difference <= tolerance(reference), f"{name}: off by {difference:.2e}, allowed {tolerance(reference):.2e}"
    return True
