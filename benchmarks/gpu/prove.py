"""Prove what runs on an NVIDIA GPU, in ten minutes: kernels, plugins, memory, stages against dense, engines, parity.

    python benchmarks/gpu/prove.py --minutes 10 -o benchmarks/results/gpu.json --docs docs/benchmarks.md
    python benchmarks/gpu/prove.py --tables benchmarks/results/gpu.json --docs docs/benchmarks.md

`make prove-gpu` installs what is needed and runs the first line; the second writes the tables again. The self-test runs
first, on every machine; without a GPU it is all that runs, and the report says what was not done. Exit code 0: nothing
that was tried is wrong (slow is not wrong); 4: something is. docs/benchmarks.md explains the figures.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
# A script finds the modules of its own folder; those that benchmarks share are in the folder above. And the references
# and promises that are proved here are those of the tests, so this takes a checkout, whose root must be found, too.
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]

import torch
from report import command_text, errors_in_a_line, output_file, publish

from dovit_deploy.engines.plugins.kernels import TokenKernels
from dovit_deploy.errors import DovitError
from gpu.cases import CaseResults, TimeBudget, all_cases, gpu_conditions, run_cases
from gpu.engines import bundle_spec, engine_rows, gpu_backends, random_bundle
from gpu.kernels import bandwidths, kernel_checks
from gpu.programs import memory_outcomes, plugin_outcomes
from gpu.result import Bandwidth, EngineRow, Gpu, GpuReport, Outcome, Undone
from gpu.selftest import one_thread, selftest
from gpu.tables import write_tables

ONLY_ON_A_GPU = (
    "kernels on the GPU and their bandwidth",
    "the C++ plugins' enqueue",
    "device memory through cuda-core and PyCUDA",
    "staged against dense: latency, efficiency, boundaries, break-even",
    "engines of the registry on the GPU",
)
PROGRAM_S, BUNDLE_S, ENGINE_SECONDS = 120.0, 60.0, 1.5


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def gpu_of(device: torch.device) -> Gpu:
    """The GPU as PyTorch describes it."""
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        name=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_gb=round(properties.total_memory / 1e9, 1),
        torch_cuda=str(torch.version.cuda),
    )


def kernels_on(device: torch.device) -> tuple[list[Outcome], float | None, list[Bandwidth], list[Undone]]:
    """The token kernels, compiled for this GPU: outcomes, the bandwidth of a copy in GB/s, their own bandwidths."""
    # The kernels are loaded into the current context: PyTorch's, which its first tensor makes current.
    torch.zeros(1, device=device)
    try:
        kernels = TokenKernels.on_current_device()
    except DovitError as error:
        return [], None, [], [Undone(what="kernels on the GPU", why=str(error))]
    outcomes = kernel_checks(kernels, device, stream=torch.cuda.current_stream(device).cuda_stream)
    ceiling, found = bandwidths(kernels, device)
    return outcomes, ceiling, found, []


def engines_on(budget: TimeBudget) -> tuple[list[EngineRow], list[Undone]]:
    """The registry's engines for GPUs, on a bundle that is exported here."""
    if not budget.allows("engines on a bundle", BUNDLE_S):
        return [], []
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        # Engines of random weights do not belong in the user's cache.
        os.environ["XDG_CACHE_HOME"] = folder
        bundle = random_bundle(bundle_spec(), Path(folder))
        return engine_rows(bundle, gpu_backends(bundle), seconds=ENGINE_SECONDS, allows=budget.allows)


def on_gpu(budget: TimeBudget, device: torch.device) -> dict[str, object]:
    """Everything that needs a GPU, the aims first; as fields of the report."""
    gpu, undone = gpu_of(device), []
    say(f"{gpu.name}: kernels")
    kernels, ceiling, bandwidth, missing = kernels_on(device)
    undone += missing
    programs: dict[str, list[Outcome]] = {}
    headers = os.environ.get("TENSORRT_INCLUDE")
    plugins = functools.partial(plugin_outcomes, gpu.compute_capability, headers=headers)
    for name, prove in (("memory", memory_outcomes), ("plugin", plugins)):
        say(name)
        programs[name], missing = prove(seconds=PROGRAM_S) if budget.allows(name, PROGRAM_S / 2) else ([], [])
        undone += missing
    cases = list(all_cases())
    # The aims and the other single images, then engines, then batches with what is left.
    single, batches = [case for case in cases if case.images == 1], [case for case in cases if case.images > 1]
    conditions = gpu_conditions(device)
    first = run_cases(single, budget, conditions, say)
    say("engines")
    engines, missing = engines_on(budget)
    undone += missing
    second = run_cases(batches, budget, conditions, say)
    return {
        "gpu": gpu,
        "kernels": kernels,
        "copy_gb_per_s": ceiling,
        "bandwidth": bandwidth,
        **programs,
        **_joined(first, second),
        "engines": engines,
        "undone": [*undone, *budget.undone],
    }


def _joined(first: CaseResults, second: CaseResults) -> dict[str, object]:
    """Rows of both, as fields of the report."""
    return {name: [*getattr(first, name), *getattr(second, name)] for name in ("parity", "staged", "boundaries")}


def proved(minutes: float, command: str, output: Path | None) -> GpuReport:
    """Run the self-test and, where there is a GPU, everything else; publish the result."""
    budget = TimeBudget.minutes(minutes)
    say("self-test on the CPU")
    with one_thread():
        outcomes, undone = selftest()
    for outcome in outcomes:
        say(f"  {'ok' if outcome.ok else 'WRONG'}  {outcome.name}: {outcome.detail}")
    fields: dict[str, object] = {"gpu": None}
    if torch.cuda.is_available():
        fields = on_gpu(budget, torch.device("cuda"))
    else:
        reason = f"PyTorch {torch.__version__} sees no GPU"
        undone += [Undone(what=what, why=reason) for what in ONLY_ON_A_GPU]
    undone += fields.pop("undone", [])  # type: ignore[arg-type, operator]
    # Placeholders: `publish` finds these facts itself when it writes the result.
    facts = {"command": command, "date": "", "machine": {}, "versions": {}, "minutes": minutes}
    report = GpuReport.model_validate({**facts, "selftest": outcomes, "undone": undone, **fields})
    skipped = ("command", "date", "machine", "versions")
    figures = {name: value for name, value in report.model_dump(mode="json").items() if name not in skipped}
    return GpuReport.model_validate(publish(figures, command=command, output=output))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--minutes", type=float, default=10, help="leave out what does not fit, and report it")
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result; run nothing")
    result.add_argument("--docs", type=Path, help="the page with the marks of the tables")
    return result


@errors_in_a_line()
def main(words: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = list(sys.argv[1:] if words is None else words)
    arguments = parser().parse_args(given)
    if arguments.tables is not None:
        report = GpuReport.model_validate_json(arguments.tables.read_text())
    else:
        report = proved(arguments.minutes, command_text("gpu/prove.py", given), arguments.output)
    if arguments.docs is not None:
        write_tables(report, arguments.docs)
    for undone in report.undone:
        say(f"not done: {undone.what}: {undone.why}")
    for failure in report.failures:
        say(f"WRONG: {failure}")
    return 4 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
