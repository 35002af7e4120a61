"""A long run with another number of tokens at every frame: do memory, mappings and the slowest frames stay flat?

    python benchmarks/soak.py --engine openvino --precision bf16 -o benchmarks/results/soak.json

One session runs 10,000 frames. The first 300 are cold: all gates keep the same tokens, from none to all, so that
what an engine prepares for a size is prepared there. Then each frame keeps a random share of the tokens at each gate.
An engine that prepares something for every count it sees would grow for hours, and be slow whenever a count is new:
resident memory, mapped regions and the 99.9th percentile of a frame's CPU time are taken of ten parts of these frames.
Exit code 4: the last part holds a tenth more memory or mappings than the first, or its slowest take twice as long as
those of the parts before it usually do. On a quiet machine road-tiny takes 7 minutes in int8, 8 in bf16 and 13
in fp32.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from report import command_text, errors_in_a_line, output_file, publish
from rich.console import Console
from rich.progress import track

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.errors import UsageError
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.record import Record
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings

COLD, PARTS = 300, 10
"""Frames before anything is judged, and parts of the rest."""
MORE, SLOWER = 1.1, 2.0
"""What the last part may hold over the first, and how much slower than usual its slowest may be: few, so rough."""


class SoakPart(Record):
    """A part of the run, at its end."""

    frames: int
    """Done so far."""
    resident_mib: float
    mappings: int | None
    """Mapped regions of memory; None where the system does not list them."""
    p50_ms: float
    """Of this part's frames: CPU time of the model step."""
    p999_ms: float


@dataclass(frozen=True)
class Soaked:
    """What was seen: milliseconds of the cold frames and of all others, and the parts that these make."""

    cold_ms: list[float]
    warm_ms: list[float]
    parts: list[SoakPart]

    @property
    def failures(self) -> list[str]:
        """What did not stay flat."""
        first, last = self.parts[0], self.parts[-1]
        found = []
        if last.resident_mib > MORE * first.resident_mib:
            found.append(f"resident memory grew from {first.resident_mib:.0f} to {last.resident_mib:.0f} MiB")
        if first.mappings is not None and last.mappings is not None and last.mappings > MORE * first.mappings:
            found.append(f"mapped regions grew from {first.mappings} to {last.mappings}")
        # Not the first part alone: what is compiled there would excuse anything later.
        usual = median(part.p999_ms for part in self.parts[:-1])
        if last.p999_ms > SLOWER * usual:
            found.append(f"the slowest frames went from {usual:.1f} to {last.p999_ms:.1f} ms")
        return found


def random_keep(spec: ModelSpec, random: np.random.Generator) -> Keep:
    """Nested random decisions: each gate keeps a random number of what the one before kept."""
    order, grids, left = random.permutation(spec.patches), [], spec.patches
    for _ in spec.gates:
        left = int(random.integers(0, left + 1))
        cells = np.zeros(spec.patches, dtype=bool)
        cells[order[:left]] = True
        grids.append(cells.reshape(spec.grid))
    return grids


def even_keep(spec: ModelSpec, random: np.random.Generator, share: float) -> Keep:
    """All gates keep the same random `share` of the patches."""
    cells = np.zeros(spec.patches, dtype=bool)
    cells[random.permutation(spec.patches)[: round(share * spec.patches)]] = True
    return [cells.reshape(spec.grid) for _ in spec.gates]


def soak(session: Session, *, frames: int, cold: int, show: bool = False) -> Soaked:
    """Run `frames` frames, `cold` of them before anything is judged."""
    manifest, random, process = session.bundle.manifest, np.random.default_rng(0), psutil.Process()
    pixels = random.normal(size=(1, 3, *manifest.spec.size)).astype(np.float32)
    ends = [cold + (frames - cold) * part // PARTS for part in range(1, PARTS + 1)]
    parts: list[SoakPart] = []
    times: list[float] = []
    for number in track(range(1, frames + 1), console=Console(stderr=True), disable=not show):
        share = number / cold
        keep = even_keep(manifest.spec, random, share) if share <= 1 else random_keep(manifest.spec, random)
        settings = RunSettings.resolve(manifest, keep=keep)
        start = time.process_time()
        session.run_one(pixels, settings)
        times.append(1e3 * (time.process_time() - start))
        if number in ends:
            begin = parts[-1].frames if parts else cold
            parts.append(part_of_run(number, times[begin:], process))
    return Soaked(times[:cold], times[cold:], parts)


def part_of_run(frames: int, times: list[float], process: psutil.Process) -> SoakPart:
    """What the process holds now, and how long the frames took."""
    return SoakPart(
        frames=frames,
        resident_mib=process.memory_info().rss / 2**20,
        mappings=mapped_regions(),
        p50_ms=float(np.percentile(times, 50)),
        p999_ms=float(np.percentile(times, 99.9)),
    )


def mapped_regions(path: Path = Path("/proc/self/maps")) -> int | None:
    """How many regions of memory this process has mapped; None where the system is not Linux."""
    return path.read_bytes().count(b"\n") if path.exists() else None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--engine", default="openvino")
    result.add_argument("--precision")
    result.add_argument("--frames", type=int, default=10_000)
    result.add_argument("-o", "--output", type=output_file)
    return result


@errors_in_a_line()
def main(words: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if words is None else words
    command_line = parser()
    arguments = command_line.parse_args(given)
    if arguments.frames < COLD + PARTS:
        command_line.error(f"--frames {arguments.frames}: at least {COLD + PARTS} are needed, {COLD} of them warm up")
    found, figures = measured_soak(arguments)
    publish(figures, command=command_text("soak.py", given), output=arguments.output)
    return 4 if found.failures else 0


def measured_soak(arguments: argparse.Namespace) -> tuple[Soaked, dict[str, object]]:
    """What was seen, and the figures of the report.

    Raises:
        DovitError: engine, precision or bundle cannot be used.
    """
    bundle = Bundle.open(arguments.bundle or chosen_bundle(None).path)
    if not bundle.manifest.spec.gates:
        raise UsageError(f"{bundle.path.name} has no gates: its token counts never change")
    with Session(bundle, engine=arguments.engine, precision=arguments.precision, threads=1) as session:
        found = soak(session, frames=arguments.frames, cold=COLD, show=sys.stderr.isatty())
        precision = session.backend.precision
    figures: dict[str, object] = {
        "bundle": bundle.path.name,
        "engine": f"{arguments.engine} {precision}",
        "cold": percentiles(found.cold_ms),
        "warm": percentiles(found.warm_ms),
        "parts": [part.model_dump(mode="json") for part in found.parts],
        "failures": found.failures,
    }
    return found, figures


def percentiles(times: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {f"p{percent}_ms": float(np.percentile(times, percent)) for percent in (50, 99)}


if __name__ == "__main__":
    sys.exit(main())
