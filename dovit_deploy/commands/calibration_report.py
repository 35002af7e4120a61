"""What does the user read at the end of a calibration? What was run, what was chosen, and what may be relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.commands.console import show_table

if TYPE_CHECKING:
    from dovit_deploy.bundle.calibration import Calibration


def show_calibration(calibration: Calibration, *, verbose: bool, quiet: bool) -> None:
    """Print what was run, what was chosen, and what may be relied on; `verbose`: settings of the search, too."""
    from dovit_deploy.calibrate.calibration_table import (
        HEADERS,
        NUMBERS,
        calibration_lines,
        calibration_rows,
        calibration_title,
    )

    rows = calibration_rows(calibration, search=verbose)
    show_table(calibration_title(calibration), HEADERS, rows, right=NUMBERS)
    console.result(*calibration_lines(calibration))
    if calibration.controls is not None and calibration.controls.left_out is not None:
        console.remark(f"dense at smaller inputs is left out: {calibration.controls.left_out}", quiet=quiet)
