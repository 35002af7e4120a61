"""What every benchmark's result says beside its figures: the command, the date, the machine, the versions."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dovit_deploy.machine import machine_facts, package_versions


def publish(figures: dict[str, object], *, command: str, output: Path | None) -> dict[str, object]:
    """Print the report as JSON, write it to `output` too where that is given, and return it."""
    report: dict[str, object] = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_facts(),
        "versions": package_versions(),
        **figures,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
    return report
