"""RunSettings: what a caller gave, resolved against a bundle, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.runtime.settings import RunSettings
from tests.fakes import fake_manifest

MANIFEST = fake_manifest()
SPEC = MANIFEST.spec


def test_none_is_the_bundles_own() -> None:
    settings = RunSettings.resolve(MANIFEST)
    np.testing.assert_array_equal(settings.thresholds, np.float32(MANIFEST.defaults.thresholds))
    assert (settings.floor, settings.replay, settings.dense) == (MANIFEST.defaults.floor, None, False)


def test_thresholds_are_one_row_per_gate_in_float32() -> None:
    settings = RunSettings.resolve(MANIFEST, thresholds=(0.5, 0.6), floor=0.1)
    assert settings.thresholds.shape == (2, SPEC.classes) and settings.thresholds.dtype == np.float32
    assert (settings.thresholds == np.float32([[0.5], [0.6]])).all() and settings.floor == np.float32(0.1)


def test_a_replay_lists_extra_tokens_and_then_the_cells_in_raster_order() -> None:
    first = np.zeros(SPEC.grid, bool)
    first[0, 1] = first[2, 0] = True
    settings = RunSettings.resolve(MANIFEST, keep=[first, np.zeros(SPEC.grid, bool)])
    assert [list(index) for index in settings.replay] == [[0, 2, 1 + 2 * SPEC.grid[1]], [0]]


def test_a_dense_run_stops_nothing() -> None:
    settings = RunSettings.resolve(MANIFEST, dense=True)
    assert settings.dense and (settings.thresholds == 1).all() and settings.floor == 0


@pytest.mark.parametrize("given", [{"thresholds": 0.5}, {"floor": 0.0}, {"keep": []}])
def test_dense_takes_nothing_beside_it(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="dense means no gates"):
        RunSettings.resolve(MANIFEST, dense=True, **given)


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"floor 1\.5 is outside"):
        RunSettings.resolve(MANIFEST, floor=1.5)
    with pytest.raises(InputError, match="1 grid given, the model has 2 gates"):
        RunSettings.resolve(MANIFEST, keep=[np.ones(SPEC.grid, bool)])
    with pytest.raises(UsageError, match="without gates"):
        RunSettings.resolve(fake_manifest(gates=()), floor=0.1)
