"""Which cells are there? Cases, ways and numbers of threads and streams, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dovit_deploy.engines.registry import ENGINES
from on_cpu.result import BASELINE, DEFAULT, OWN, CpuCase, CpuCell, CpuWay

MODELS = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}
"""Of the bench model: width and heads."""
SIZES = ((512, 512), (512, 1024), (768, 768))
PROFILES = ("p45", "p12")
"""Of the bench model: tokens are forced, see graphs.py."""
ALONE, TWO_THREADS, TWO_STREAMS = (1, 1), (2, 1), (1, 2)
"""Threads and streams."""
REFERENCE = "torch"
"""Named among the engines, but not made to be fast."""
APART = ("nncf", "merging", "eager", "compiled")
"""Peers that get a process of their own."""

EXPORTED = (CpuWay(runs="plain", engine="onnxruntime", precision="fp32"),)
IN_OPENVINO = tuple(CpuWay(runs="plain", engine="openvino", precision=precision) for precision in ("fp32", "bf16"))
QUANTISED = (CpuWay(runs="nncf", engine="openvino", precision="int8"),)
IN_PYTORCH = tuple(CpuWay(runs=runs, engine="torch", precision="fp32") for runs in ("eager", "compiled"))


def own_ways(profiles: Sequence[str]) -> Iterator[CpuWay]:
    """This project's sessions on the CPU: every engine and precision, dense and with each profile."""
    for engine, entry in ENGINES.items():
        if entry.on_gpu or engine == REFERENCE:
            continue
        for precision in entry.precisions:
            yield CpuWay(runs="dense", engine=engine, precision=precision)
            for profile in profiles:
                yield CpuWay(runs="tokens", engine=engine, precision=precision, profile=profile)


def merging(profile: str) -> CpuWay:
    """Tokens merged until as many MACs are saved."""
    return CpuWay(runs="merging", engine="onnxruntime", precision="fp32", profile=profile)


def default_cells(size: tuple[int, int], *, gates: bool = True) -> list[CpuCell]:
    """The default model: all ways alone, our own also on two cores."""
    case, profiles = CpuCase(model=DEFAULT, size=size), (OWN,) if gates else ()
    peers = (*EXPORTED, *QUANTISED, *IN_PYTORCH, *(merging(profile) for profile in profiles))
    cells = [CpuCell(case=case, way=way) for way in (*own_ways(profiles), *peers)]
    for threads, streams in (TWO_THREADS, TWO_STREAMS):
        cells += [CpuCell(case=case, way=way, threads=threads, streams=streams) for way in own_ways(profiles)]
    return cells


def bench_cells(model: str, size: tuple[int, int]) -> list[CpuCell]:
    """A size of the bench model, one thread; all peers beside S at its first size alone.

    Elsewhere OpenVINO's dense fp32 and bf16 are those of our own dense graph, which is as fast as the plain export.
    """
    peers: tuple[CpuWay, ...] = (*EXPORTED, *QUANTISED)
    if model == "S" and size == SIZES[0]:
        peers += (*IN_OPENVINO, *IN_PYTORCH, merging(PROFILES[0]))
    return [CpuCell(case=CpuCase(model=model, size=size), way=way) for way in (*own_ways(PROFILES), *peers)]


def all_cells(size: tuple[int, int], *, gates: bool = True) -> list[CpuCell]:
    """Everything: what the first tables show comes first."""
    cases = [(model, pixels) for pixels in SIZES for model in ("S", "Ti", "B")]
    return default_cells(size, gates=gates) + [cell for case in cases for cell in bench_cells(*case)]


def quick_cells(size: tuple[int, int], *, gates: bool = True) -> list[CpuCell]:
    """What a first impression takes: our own ways of the default model alone, and the plain export."""
    ways = ("dense", "tokens", "plain")
    return [
        cell
        for cell in default_cells(size, gates=gates)
        if cell.way.runs in ways and (cell.threads, cell.streams) == ALONE
    ]


def measured_together(cells: Sequence[CpuCell]) -> list[list[CpuCell]]:
    """The cells that one process measures in the same rounds: what one engine runs on a case.

    The baseline is the slowest of them: measured again for each way it would take most of the time. Peers that load
    PyTorch stay apart: it has crashed beside OpenVINO, and would weigh on the others.
    """
    groups: dict[tuple[object, ...], list[CpuCell]] = {}
    for cell in cells:
        apart = cell.way.runs if cell.way.runs in APART else ""
        key = (cell.case, cell.threads, cell.streams, cell.way.engine, apart)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def is_baseline(cell: CpuCell) -> bool:
    """Whether all others of its case are compared with it."""
    return (cell.way.runs, cell.way.engine, cell.way.precision) == BASELINE
