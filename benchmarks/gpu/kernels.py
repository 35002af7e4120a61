"""The token kernels against the NumPy reference at many sizes, and their bandwidth against a plain copy.

The check takes any device of PyTorch's and a `TokenKernels` for it: on a GPU the real one, in tests the same source
compiled for the CPU. The reference is that of the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.engines.plugins.kernels import TokenKernels
from gpu.result import Bandwidth, Outcome
from tests.engines.plugins.reference import compacted, gathered, scattered

TOTALS = (1, 21, 197, 1025, 2305, 4097)
SHARES = (0.0, 0.3, 1.0)
# Odd widths need the smaller units of a copy, 2 and 4 bytes; masks end at, or just past, a warp (32) and a tile (4096).
WIDTHS = (1, 7, 192, 384, 768, 1024)
MASKS = (0, 1, 33, 1025, 4096, 4097, 16385, 65536)
# Up to a few tiles: on the CPU larger sizes take ten seconds, and no other path.
FEW_TOTALS, FEW_MASKS = TOTALS[:3], MASKS[:6]
BANDWIDTH_TOTALS, BANDWIDTH_WIDTHS = (1025, 2305, 4097), (384, 768, 1024)
CEILING_BYTES = 1 << 28
"""More than the cache of an NVIDIA GPU holds, so that the copy shows the speed of its memory."""
HALF_BYTES = 2
LAUNCHES = 200

Compared = tuple[str, bool]
"""A case, and whether it is equal to the reference."""


def kernel_checks(
    kernels: TokenKernels, device: torch.device, *, stream: int, totals: Sequence[int], masks: Sequence[int]
) -> list[Outcome]:
    """Gather, scatter and compaction of every size, which must be bit-equal to the reference."""
    rows = list(_row_cases(kernels, device, stream, totals))
    cases = list(_mask_cases(kernels, device, stream, masks))
    return [_outcome("gather and scatter", rows), _outcome("compaction", cases)]


def _row_cases(
    kernels: TokenKernels, device: torch.device, stream: int, totals: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    draw = np.random.default_rng(0)
    for total, share, width, dtype in itertools.product(totals, SHARES, WIDTHS, (np.float16, np.float32)):
        tokens = draw.integers(0, 2000, (total, width)).astype(dtype)
        index = draw.permutation(total)[: round(share * total)].astype(np.int64)
        update = draw.integers(0, 2000, (len(index), width)).astype(dtype)
        on_device = [torch.from_numpy(array).to(device) for array in (tokens, index, update)]
        taken, output = torch.zeros_like(on_device[2]), torch.zeros_like(on_device[0])
        source, positions, values = (part.data_ptr() for part in on_device)
        sizes = {"total": total, "kept": len(index), "row_bytes": width * tokens.itemsize, "stream": stream}
        kernels.gather(source, positions, taken.data_ptr(), **sizes)
        kernels.scatter(source, positions, values, output.data_ptr(), **sizes)
        valid, front = torch.tensor(len(index) // 2, device=device), torch.zeros_like(output)
        kernels.scatter(source, positions, values, front.data_ptr(), **sizes, valid=valid.data_ptr())
        name = f"{len(index)} of {total} rows of {width} {dtype.__name__}"
        yield f"gather {name}", np.array_equal(taken.cpu().numpy(), gathered(tokens, index))
        yield f"scatter {name}", np.array_equal(output.cpu().numpy(), scattered(tokens, index, update))
        expected = scattered(tokens, index, update, len(index) // 2)
        yield f"scatter half of {name}", np.array_equal(front.cpu().numpy(), expected)


def _mask_cases(
    kernels: TokenKernels, device: torch.device, stream: int, masks: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    draw = np.random.default_rng(1)
    for total, share, dtype in itertools.product(masks, SHARES, (np.bool_, np.int64)):
        keep = (draw.random(total) < share).astype(dtype)
        mask = torch.from_numpy(keep).to(device)
        order = torch.full((total,), -1, dtype=torch.int64, device=device)
        count = torch.full((1,), -1, dtype=torch.int64, device=device)
        pointers = (mask.data_ptr(), order.data_ptr(), count.data_ptr())
        kernels.compact(*pointers, mask_bytes=keep.itemsize, total=total, stream=stream)
        expected, kept = compacted(keep)
        agrees = np.array_equal(order.cpu().numpy(), expected) and int(count) == int(kept)
        yield f"{total} entries of {dtype.__name__}, {share:.0%} kept", agrees


def _outcome(name: str, cases: list[Compared]) -> Outcome:
    wrong = [case for case, agrees in cases if not agrees]
    detail = f"{len(cases) - len(wrong)} of {len(cases)} cases equal to the reference"
    return Outcome(name=name, ok=not wrong, detail="; ".join([detail, *wrong[:3]]))


def bandwidths(kernels: TokenKernels, device: torch.device) -> tuple[float, list[Bandwidth]]:
    """The copy ceiling in GB/s, and the kernels at half of the tokens of each size in half precision. On a GPU only.

    Tensors of this size fit into the cache, which is faster than memory: each kernel is compared with a copy of as many
    bytes, which fits as well.
    """
    ceiling = 2 * CEILING_BYTES / _seconds(_copy(CEILING_BYTES, device)) / 1e9
    found = []
    for total, width in itertools.product(BANDWIDTH_TOTALS, BANDWIDTH_WIDTHS):
        kept, row_bytes = total // 2, width * HALF_BYTES
        tokens = torch.zeros((total, width), dtype=torch.float16, device=device)
        values = torch.zeros((kept, width), dtype=torch.float16, device=device)
        index = torch.randperm(total, device=device)[:kept].contiguous()
        copy_s = _seconds(_copy(kept * row_bytes, device))
        for name, launch in _launches(kernels, tokens, index, values).items():
            seconds = _seconds(launch)
            found.append(
                Bandwidth(
                    kernel=name,
                    tokens=total,
                    kept=kept,
                    row_bytes=row_bytes,
                    microseconds=1e6 * seconds,
                    # Twice: every row is read and written.
                    gb_per_s=2 * kept * row_bytes / seconds / 1e9,
                    of_copy=copy_s / seconds,
                )
            )
    return ceiling, found


def _launches(kernels: TokenKernels, tokens: Tensor, index: Tensor, values: Tensor) -> dict[str, Callable[[], object]]:
    """One launch of each kernel, on the stream that is current when it is called."""
    source, positions, rows = (part.data_ptr() for part in (tokens, index, values))
    sizes = {"total": len(tokens), "kept": len(index), "row_bytes": tokens.shape[1] * tokens.element_size()}

    def gather() -> None:
        kernels.gather(source, positions, rows, **sizes, stream=torch.cuda.current_stream().cuda_stream)

    def scatter() -> None:
        kernels.scatter(source, positions, rows, source, **sizes, stream=torch.cuda.current_stream().cuda_stream)

    return {"gather": gather, "scatter in place": scatter}


def _copy(nbytes: int, device: torch.device) -> Callable[[], Tensor]:
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _seconds(launch: Callable[[], object]) -> float:
    """Seconds of one launch among many in a row, all in one CUDA graph, so without the host's time for a launch."""
    # A capture needs a stream of its own, and kernels that are loaded already.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    # Once unmeasured, so that clocks and caches are as in a long run.
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end) / LAUNCHES
