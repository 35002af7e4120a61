"""Verification of models without gates: counts and choices exactly, floats within their tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.export.verify import whole_parity, whole_runs
from dovit_deploy.runtime.session import Session
from tests.tiny import tiny_pixels


class Altered:
    """An engine whose outputs are changed before they are returned."""

    def __init__(self, engine, change) -> None:
        self.engine, self.change = engine, change

    def run(self, inputs):
        return self.change(dict(self.engine.run(inputs)))

    def close(self) -> None:
        self.engine.close()


def parity_of(path: Path, graph: str, change):
    with Session(Bundle.open(path)) as reference, Session(Bundle.open(path)) as candidate:
        pixels = tiny_pixels(reference.bundle.manifest.spec.size, seed=1).numpy()
        (expected,) = whole_runs(reference, [("noise", pixels)])
        candidate._engines[graph] = Altered(candidate.engine(graph), change)
        return whole_parity(candidate, expected)


def test_the_same_network_has_no_failures(dense_bundle_path: Path) -> None:
    run = parity_of(dense_bundle_path, "stage0", lambda outputs: outputs)
    assert run.failures == ()
    assert {entry.name for entry in run.floats} == {
        "stage0 logits",
        "stage0 kept",
        "merged logits",
        "merged kept",
        "dense logits",
    }


@pytest.mark.parametrize("graph", ["stage0", "merged", "dense"])
def test_logits_that_differ_are_failures(dense_bundle_path: Path, graph: str) -> None:
    def shifted(outputs):
        return outputs | {"logits": outputs["logits"] + np.float32(0.01 * np.abs(outputs["logits"]).max() + 0.01)}

    (failure,) = parity_of(dense_bundle_path, graph, shifted).failures
    assert failure.startswith(f"{graph} logits")


def test_another_count_is_a_failure(dense_bundle_path: Path) -> None:
    (failure,) = parity_of(
        dense_bundle_path, "merged", lambda outputs: outputs | {"kept": outputs["kept"] + 1}
    ).failures
    assert failure.startswith("merged kept")
