"""What the dense network makes of the images: tokens at each gate, tokens at the end, and its answer, seen once.

A window of an image gives one row per patch. Rows are kept in memory up to `IN_MEMORY`, and beyond it in files of the
working folder, which are mapped: a fit reads them as if they were in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.families.parts import QueryHead
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.files import reported_writes
from dovit_deploy.runtime.results import Answer, Pixels, RunTiming, TokenReport
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.source import RGB
from dovit_deploy.train.target import answered_shares

TOKENS, TOKENS_OF_LAYERS = 131_072, 32_768
"""Kept of all images together where each is one window, of every window as many, drawn; and where they are kept as they
enter each layer."""
IN_MEMORY = 2**29
"""Bytes of tokens that are kept in memory."""


@dataclass(frozen=True)
class SeenTokens:
    """Tokens of the images, as the dense network gives them; M rows of the same tokens in each."""

    reached: tuple[Tensor, ...]
    """(M, C) at each gate."""
    last: Tensor
    """(M, C) where what stopped joins again: behind the last layer, before the last norm, or where queries join."""
    answers: Tensor
    """(M, K): how much of each class the final answer sees in the patch; sums to 1."""
    windows: tuple[int, ...]
    """Rows of each window, in their order."""
    tapped: dict[int, Tensor] = field(default_factory=dict)
    """(M, C) at each tap of the decode head that sees lenses."""
    entering: dict[int, Tensor] = field(default_factory=dict)
    """(M, C) as they enter each layer that sees pooled keys; those at gates are `reached`."""


class FeatureCache:
    """Rows of several columns that grow together: in memory first, then in files of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.windows = folder, list[int]()
        self._parts: list[list[Tensor]] = []
        self._bytes = 0
        self._spilled = False

    def append(self, columns: Iterable[Tensor]) -> None:
        """Rows of one window: (m, ...) of each column, float32.

        Raises:
            OutputFailed: the disk refuses them.
        """
        columns = list(columns)
        self.windows.append(len(columns[0]))
        self._parts = self._parts or [[] for _ in columns]
        for part, column in zip(self._parts, columns, strict=True):
            part.append(column)
        self._bytes += sum(4 * column.numel() for column in columns)
        if self._bytes > IN_MEMORY:
            self._spill()

    def columns(self) -> list[Tensor]:
        """All rows of each column; at least one window was appended.

        Raises:
            OutputFailed: the disk refuses the last of them.
        """
        if not self._spilled:
            return [torch.cat(part) for part in self._parts]
        shapes = [part[0].shape[1:] for part in self._parts]
        self._spill()
        return [
            # Never written through: a private copy of a page would be made first.
            torch.from_numpy(np.memmap(self._file(number), np.float32, mode="c")).reshape(sum(self.windows), *shape)
            for number, shape in enumerate(shapes)
        ]

    def _spill(self) -> None:
        self._spilled = True
        with reported_writes(self.folder):
            for number, part in enumerate(self._parts):
                with self._file(number).open("ab") as file:
                    for column in part:
                        # `tofile` would not say why the disk refuses it.
                        file.write(column.contiguous().numpy().data)
                # One row stays as an example of the shape, and is not written again.
                part[:] = [part[-1][:0]]
        self._bytes = 0

    def _file(self, number: int) -> Path:
        return self.folder / f"column{number}.f32"


class DensePass:
    """A `RunsOne` that runs the dense network in PyTorch and keeps what it makes of the patches.

    Args:
        model: with gates and lenses, which are not looked at.
        bundle: whose manifest says how images become pixels; none of its files is read.
        cache: takes the rows.
        most: rows kept of a window; drawn where it has more.
    """

    def __init__(self, model: VisionTransformer, bundle: Bundle, cache: FeatureCache, *, most: int) -> None:
        self.model, self.bundle, self.cache, self.most = model, bundle, cache, most
        self.draw = np.random.default_rng(0)

    @torch.no_grad()
    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Answer, TokenReport]:
        """Logits (1, K, h, w) of one window with nothing stopped; its report is a placeholder."""
        del settings
        model, spec = self.model, self.model.spec
        tokens = model.embed(torch.from_numpy(pixels))
        behind, tapped, entering = list[Tensor](), dict[int, Tensor](), list[Tensor]()
        between = between_gates(spec)
        for layers in spec.stage_layers:
            for piece in itertools.pairwise([layers[0], *(one for one in between if one in range(*layers)), layers[1]]):
                tokens, more = model.run_layers(tokens, piece, model.attend_at())
                tapped |= more
                entering += [tokens[spec.extra_tokens :]] if piece[1] in between else []
            behind.append(tokens[spec.extra_tokens :])
        logits = model.decode(tokens, [*tapped.values()])
        seen = [tapped[tap][spec.extra_tokens :] for tap in lensed_taps(spec)] + entering
        rows = torch.from_numpy(np.sort(self.draw.permutation(spec.patches)[: self.most]))
        self.cache.append(column[rows].float() for column in (*seen, *behind, patch_answers(logits, spec)))
        report = TokenReport((spec.tokens,) * len(behind), 1.0, 1.0, (), (), RunTiming(0.0, ()))
        return np.asarray(logits.numpy(), dtype=np.float32), report


def lensed_taps(spec: VisionTransformerSpec) -> tuple[int, ...]:
    """The taps that see a lens of some gate."""
    return tuple(sorted({tap for gate in spec.gates for tap in spec.lensed_taps(gate)}))


def between_gates(spec: VisionTransformerSpec) -> tuple[int, ...]:
    """The layers behind the first gate that see pooled keys, and before which no gate stands."""
    if not spec.pooled_keys:
        return ()
    gates = {gate.layer for gate in spec.gates}
    return tuple(layer for layer in range(spec.gates[0].layer, spec.rejoin) if layer not in gates)


def patch_answers(logits: Tensor, spec: VisionTransformerSpec) -> Tensor:
    """How much of each class the dense answer sees in every patch: logits (1, K, h, w) -> (N, K), sums of 1."""
    return answered_shares(logits, spec.grid, queries=isinstance(spec.head, QueryHead))[0]


def seen_from_images(
    model: VisionTransformer,
    bundle: Bundle,
    images: Iterable[RGB],
    *,
    count: int,
    folder: Path,
    advance: Callable[[], None],
) -> SeenTokens:
    """Run `images`, `count` of them, once through the dense network.

    Args:
        model, bundle: as `DensePass` takes them.
        images: (H, W, 3) uint8 each, decoded when its turn comes.
        count: how many there are.
        folder: what does not fit into memory is kept there, and must stay while the result is used.
        advance: called after each.

    Raises:
        OutputFailed: the disk refuses what does not fit into memory.
    """
    cache = FeatureCache(folder)
    tokens = TOKENS_OF_LAYERS if model.spec.pooled_keys else TOKENS
    predictor = Predictor(DensePass(model, bundle, cache, most=max(1, tokens // count)))
    settings = RunSettings.resolve(bundle.manifest)
    for rgb in images:
        predictor.run(rgb, settings)
        advance()
    *before, last, answers = cache.columns()
    columns = iter(before)
    tapped = {tap: next(columns) for tap in lensed_taps(model.spec)}
    entering = {layer: next(columns) for layer in between_gates(model.spec)}
    reached = tuple(columns)
    entering |= {gate.layer: at for gate, at in zip(model.spec.gates, reached, strict=True) if model.spec.pooled_keys}
    # Fitted, and said to be, from the first layer to the last.
    rising = dict(sorted(entering.items()))
    return SeenTokens(reached, last, answers, tuple(cache.windows), tapped, rising)
