"""Fuzz one reader with atheris: `python -m tests.fuzz READER FOLDER --seconds N`.

FOLDER gets the corpus, so that a later run goes on from it, and `findings/`, one file with the input and one with the
traceback for every line of ours that raised what it should not. The process goes on after such a finding; memory, time
and crashes of native code end it (libFuzzer writes the input), and `run_for` starts it again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

LONGEST_INPUT = 1 << 16
SECONDS_PER_INPUT = 10
MEMORY_MB = 4096


def run_for(reader: str, folder: Path, seconds: float) -> int:
    """Fuzz in processes of their own until the time is up; the number of inputs tried."""
    began, tried = time.monotonic(), 0
    while (left := seconds - (time.monotonic() - began)) > 1:
        command = [sys.executable, "-m", "tests.fuzz", reader, str(folder), "--seconds", str(int(left)), "--once"]
        with (folder / "log.txt").open("ab") as log:
            subprocess.run(command, stdout=log, stderr=log, check=False)
        log_text = (folder / "log.txt").read_text(errors="replace")
        tried = sum(int(count) for count in re.findall(r"number_of_executed_units: (\d+)", log_text))
        if "Done " not in log_text:
            time.sleep(1)
    return tried


def findings(folder: Path) -> list[Path]:
    """What was found: tracebacks of ours, and inputs that ended a process."""
    return sorted(path for path in (folder / "findings").iterdir() if path.suffix != ".bin")


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    import atheris

    # Everything of ours that a reader runs is instrumented as it is imported.
    with atheris.instrument_imports(include=["dovit_deploy"]):
        from tests.fuzz.readers import READERS, complaint
    from tests.fuzz.odd_json import odd

    reader = READERS[name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, (form, data) in enumerate(reader.seeds()):
        (corpus / f"seed{number}").write_bytes(reader.input_from(form, data))
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def one(given: bytes) -> None:
        try:
            reader.read(scratch, given)
        except Exception as error:  # noqa: BLE001  whatever it raises is looked at
            reason = complaint(error)
            if reason is not None:
                _note(folder / "findings", given, reason, error)
        finally:
            for path in scratch.iterdir():
                path.unlink()

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        changed = odd(data[1:], seed) if seed % 2 and data else None
        return atheris.Mutate(data, most) if changed is None else (data[:1] + changed)[:most]

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-timeout={SECONDS_PER_INPUT}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={folder / 'findings'}/",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
    atheris.Fuzz()


def _note(folder: Path, given: bytes, reason: str, error: BaseException) -> None:
    """Keep the first input for each line that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "dovit_deploy" in frame.filename] or list(frames)
    where = f"{Path(ours[-1].filename).stem}-{ours[-1].lineno}-{type(error).__name__}"
    if not (folder / f"{where}.txt").exists():
        (folder / f"{where}.bin").write_bytes(given)
        text = "".join(traceback.format_exception(error))
        (folder / f"{where}.txt").write_text(f"{reason}\n{text[:20000]}", errors="backslashreplace")


def main() -> None:
    """Read the arguments and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one reader with atheris.")
    parser.add_argument("reader")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--once", action="store_true", help="In this process, until something ends it.")
    options = parser.parse_args()
    (options.folder / "findings").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.once:
        _fuzz(options.reader, options.folder, options.seconds)
        return
    tried = run_for(options.reader, options.folder, options.seconds)
    found = findings(options.folder)
    sys.stdout.write(f"{options.reader}: {tried} inputs, {len(found)} findings\n")
    for path in found:
        sys.stdout.write(f"  {path}\n")


if __name__ == "__main__":
    main()
