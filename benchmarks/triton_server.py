"""NVIDIA Triton's server, as the nvidia-pytriton wheel carries it: started on loopback, and stopped by its process id.

pip install --no-deps nvidia-pytriton       # asks for NumPy 1, which only its own wrapper needs: not used here

The wheel holds the server, its Python backend and a stub of that backend for each Python from 3.8 to 3.13. The stub
loads this Python's own libpython, and finds packages through the environment that comes first in PATH.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY_S, STOP_S = 180.0, 30.0
"""Seconds until a server must answer, also on a machine that does much else, and until it must have ended."""
HOST = "127.0.0.1"


def wheel() -> Path | None:
    """The folder `pytriton` of the wheel; None where it is not installed. It is not imported: it asks for more."""
    found = importlib.util.find_spec("pytriton")
    return None if found is None or found.origin is None else Path(found.origin).parent


def stub() -> Path | None:
    """The stub for this Python."""
    folder = wheel()
    if folder is None:
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"


def why_not() -> str | None:
    """Why no server can be started here; None: it can."""
    if stub() is None:
        return "the server is not installed: pip install --no-deps nvidia-pytriton"
    if importlib.util.find_spec("tritonclient") is None:
        return "the client is not installed: pip install 'tritonclient[grpc,http]'"
    path = stub()
    if path is None or not path.is_file():
        return f"the wheel has no stub for Python {sys.version_info.major}.{sys.version_info.minor}"
    linked = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    return f"libraries are missing: {', '.join(missing)}" if missing else None


def backend_folder(folder: Path) -> Path:
    """`--backend-directory`, in `folder`: the wheel keeps the stubs for all Pythons elsewhere."""
    source, python = wheel(), folder / "backends" / "python"
    chosen = stub()
    if source is None or chosen is None:
        raise FileNotFoundError(why_not())
    python.mkdir(parents=True)
    for path in (source / "tritonserver" / "backends" / "python").iterdir():
        if path.is_file():
            (python / path.name).symlink_to(path)
    # Copied: the backend starts it by the folder that it lies in.
    shutil.copy2(chosen, python / chosen.name)
    return python.parent


def environment() -> dict[str, str]:
    """Variables of the server: its libraries, and the environment of this Python first."""
    folder = wheel()
    libraries = "" if folder is None else str(folder.parent / "nvidia_pytriton.libs")
    before = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{before}:{libraries}" if before else libraries,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind((HOST, 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    http: str
    """host:port, as tritonclient takes it."""
    grpc: str
    metrics: str
    """Address of the metrics."""
    log: Path

    def kill(self) -> None:
        """End it as a crash does, with the processes of its models."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def metrics_text(self) -> str:
        """What Prometheus would read."""
        with urllib.request.urlopen(self.metrics, timeout=30) as answer:
            return str(answer.read().decode())


@contextmanager
def running_server(
    repository: Path, scratch: Path, *, flags: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Serve `repository`; the server has ended when the block ends, whatever happens in it.

    Args:
        repository: what `dovit triton` wrote.
        scratch: an empty folder for the backend and the log.
        flags: further ones of the server.
        variables: further ones of its environment.

    Raises:
        RuntimeError: it ended, or did not answer in time; the message has the end of its log.
    """
    backends, log = backend_folder(scratch), scratch / "server.log"
    http, grpc, metrics = free_ports(3)
    folder = wheel()
    words = [
        *(str(Path(str(folder), "tritonserver", "bin", "tritonserver")), f"--model-repository={repository.resolve()}"),
        *(
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={_shared_memory(str(http))}",
        ),
        *(f"--http-address={HOST}", f"--http-port={http}", f"--grpc-address={HOST}", f"--grpc-port={grpc}"),
        *(f"--metrics-address={HOST}", f"--metrics-port={metrics}", "--exit-timeout-secs=10", *flags),
    ]
    with log.open("wb") as output:
        # A group of its own, so that a kill reaches the processes of the models, and Ctrl-C does not.
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            # The stub takes no PYTHONPATH, and looks for packages where it was started first: this checkout is served.
            cwd=Path(__file__).parents[1],
            env=environment() | dict(variables or {}),
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    server = RunningServer(process, f"{HOST}:{http}", f"{HOST}:{grpc}", f"http://{HOST}:{metrics}/metrics", log)
    try:
        _wait_until_live(server)
        yield server
    finally:
        _stop(server)


def _wait_until_live(server: RunningServer) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        # An error of urllib is one of the system's, too.
        with suppress(OSError), urllib.request.urlopen(f"http://{server.http}/v2/health/live", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server does not answer:\n{server.log.read_text(errors='replace')[-3000:]}")


def _stop(server: RunningServer) -> None:
    process = server.process
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    # What is left of its group, as a model's process whose server was killed.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)
    # What a killed server leaves, as large as its tensors were.
    for region in Path("/dev/shm").glob(f"{_shared_memory(server.http)}*"):
        region.unlink(missing_ok=True)


def _shared_memory(http: str) -> str:
    """How the names of a server's regions of shared memory begin."""
    return f"dovit-{http.rpartition(':')[2]}-"


def _end_with_parent() -> None:
    """A test that is killed leaves no server behind."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
