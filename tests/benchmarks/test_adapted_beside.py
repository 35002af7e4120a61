"""Two adapted bundles side by side: which images, and what is read off at equal MACs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapted_beside import curves, gains, held_out, rows_of
from PIL import Image

from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.session import Session


def test_what_adapt_took_is_left_out(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").touch()
    assert [path.stem for path in held_out(tmp_path, 3, 9)] == ["1", "2", "3", "5", "6", "7"]
    assert len(held_out(tmp_path, 3, 2)) == 2
    with pytest.raises(UsageError, match="none is left"):
        held_out(tmp_path, 9, 2)


def test_gains_are_read_off_at_equal_macs() -> None:
    # One image, whose first curve falls from 1 at -0.02 to 0.9 at 0.18; 0.97 at 0.08 is 0.02 above it.
    found = np.array([[[[0.18, 0.9]], [[0.08, 0.97]]]] * 8)
    beside, more = gains(found, -0.02)
    assert beside[0, 0] == pytest.approx(0.95) and more[0, 0] == pytest.approx(0.02)
    (row,) = rows_of(found, [0.9], -0.02)
    assert row["gain"] == pytest.approx(0.02) and row["first_there"] == pytest.approx(0.95)


def test_a_bundle_beside_itself_gains_nothing(tiny_bundle_path: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    with Session(tiny_bundle_path, threads=1) as one:
        found = curves((one, one), paths, (0.9, 0.6))
    assert (found[:, :, 1, 0] > found[:, :, 0, 0]).all() and (found[..., 1] > 0).all()
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_allclose(gains(found, -1.0)[1], 0, atol=1e-12)
