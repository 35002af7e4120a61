"""`dovit doctor`: what works on this machine, what is missing, and the line that fixes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import EnvironmentProblem

if TYPE_CHECKING:
    from dovit_deploy.machine import Machine
    from dovit_deploy.measure.doctor import Check, Examination, PackageState


def doctor(
    json_file: arguments.JsonFile = None, quiet: arguments.Quiet = False, verbose: arguments.Verbose = False
) -> None:
    """Say which engines and encoders work here, what is missing or installed twice, and the line that fixes it."""
    from dovit_deploy.measure.doctor import examination

    targets.claim_report(json_file)
    console.remark("trying engines and encoders ...", quiet=quiet)
    found = examination()
    console.write_json(json_file, _report(found))
    _show(found)
    # After everything was shown: the report is needed most where nothing runs.
    if not found.can_run:
        raise EnvironmentProblem(_why_nothing_runs(found))
    console.next_command(next_line(found), quiet=quiet)


def _report(found: Examination) -> dict[str, object]:
    """The contents of `--json`, whose keys call a fix a "mend"."""
    return {**found.model_dump(mode="json", by_alias=True), "can_run": found.can_run, "mends": list(found.fixes)}


def _show(found: Examination) -> None:
    for line in machine_lines(found.machine, found.version):
        console.result(line)
    checks = [*found.engines, found.images, *found.encoders]
    show_table("tried here", ("", "name", "for", "found"), [check_row(check) for check in checks])
    packages = [package_row(state) for state in found.packages]
    show_table("optional packages", ("", "module", "version", "for", "install with"), packages)
    model = found.default_model
    console.result(f"default model: {model.path} ({model.detail})" if model.works else f"default model: {model.detail}")
    if found.models:
        console.result(f"installed models, by name: {', '.join(found.models)}")
    for line in conflict_lines(found):
        console.result(line)
    for fix in found.fixes:
        console.result(f"to fix: {fix}")


def machine_lines(machine: Machine, version: str) -> tuple[str, ...]:
    """The machine in two lines."""
    memory = "memory unknown"
    if machine.memory_gb is not None and machine.memory_free_gb is not None:
        memory = f"{machine.memory_free_gb:.1f} of {machine.memory_gb:.1f} GB memory free"
    features = f" ({', '.join(machine.features)})" if machine.features else ""
    return (
        f"dovit-deploy {version}, Python {machine.python}, {machine.system}",
        f"{machine.cpu}{features}: {machine.cores} of {machine.cores_total} cores, {memory}",
    )


def check_row(check: Check) -> tuple[str, ...]:
    """A line of the table of what was tried."""
    return ("ok" if check.works else "--", check.name, check.purpose, check.detail)


def package_row(state: PackageState) -> tuple[str, ...]:
    """A line of the table of packages."""
    mark, install = ("ok", "") if state.installed else ("--", state.install)
    return (mark, state.module, state.version or "", state.purpose, install)


def conflict_lines(found: Examination) -> tuple[str, ...]:
    """Which distributions have overwritten one another."""
    return tuple(
        f"conflict: {' and '.join(conflict.distributions)} both unpack into '{conflict.module}'; "
        "the one installed last has overwritten the other"
        for conflict in found.conflicts
    )


def next_line(found: Examination) -> str:
    """The command to run next: what fixes something, else `run`."""
    if found.fixes:
        return found.fixes[0]
    return f"dovit run {arguments.PLACEHOLDER}" + ("" if found.default_model.works else " --bundle NAME.dovit")


def _why_nothing_runs(found: Examination) -> str:
    if any(engine.works for engine in found.engines):
        what = "images cannot be read"
    else:
        what = f"no engine works ({', '.join(engine.name for engine in found.engines)})"
    return f"nothing can run here: {what}; fix it with: {found.fixes[0]}"
