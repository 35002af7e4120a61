"""What should running tokens see of tokens that are kept from the frame before? A frozen network on consecutive frames.

    python benchmarks/reuse_context.py road-tiny FOLDER VIDEO parked -o benchmarks/results/reuse_context.json

The tokens whose patches have changed least since they last ran keep feature and decision: of those that had stopped
(`stopped`), or of all (`any`). The others run, and every token does every `--refresh` frames, in a rolling pattern.
`parked` and `driving` are rendered streets. Compared is how much of the token grid has the class that the network
without reuse gives the same frame, at equal shares of tokens kept, with what is left of its MACs:

    absent   kept tokens are in no attention; behind their gate they are in the class token's mean, as ever
    pooled   they are in that mean from the first layer on
    frozen   layers up to their gate also attend to the keys and values that these layers made of them when they ran

and, as what is simpler, at every second, fourth and eighth frame that runs, which is 1/2, 1/4 and 1/8 of the MACs:

    hold     the frames between take the answer of the last one that ran
    warp     the same, moved along with the image
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import command_text, output_file, publish
from torch import Tensor

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.layers import Block
from dovit_deploy.families.registry import model_from_spec, state_from_bundle
from dovit_deploy.families.tokens import aggregate, aggregate_limit, put_back, take
from dovit_deploy.families.vit.network import TokenGate, VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime.between import Motion
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.transforms import whole_input
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, Frame
from dovit_scenes.render import street_frames

FORMS = ("absent", "pooled", "frozen")
WHICH = ("stopped", "any")
"""Of which tokens some are kept."""
RENDERED = {"parked": 0.0, "driving": 1.0}


@dataclass(frozen=True)
class Computed:
    """What is known of the tokens of one frame, each from when it last ran; N patches, E extra tokens."""

    tokens: Tensor
    """(E + N, C) at their last value."""
    exits: Tensor
    """(N,) int64: the gate at which a patch stopped; the number of gates: it ran to the end."""
    keys: Tensor
    """(layers, N, C) of each layer that it passed."""
    values: Tensor
    patches: Tensor
    """(N, 3 * patch^2): the pixels that it was computed of."""


@dataclass(frozen=True)
class ReusedRun:
    """One frame, with some tokens kept."""

    computed: Computed
    classes: Tensor
    """(h, w) int64, on the grid of the head."""
    macs: int
    kept: float
    """The share of the patches that did not run."""


class Network:
    """The stages of a bundle's network, run so that some patches take part without being computed."""

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.spec
        dovit = isinstance(spec, VisionTransformerSpec) and spec.gates
        if not dovit or spec.carried or spec.rotary:
            raise SystemExit(f"{bundle.manifest.name}: a DoViT is needed whose stages pass on nothing but tokens")
        assert isinstance(spec, VisionTransformerSpec)
        self.spec, self.cost = spec, cost_model(spec)
        self.model: VisionTransformer = model_from_spec(spec, state_from_bundle(bundle))
        settings = RunSettings.resolve(bundle.manifest)
        self.thresholds, self.floor = torch.from_numpy(settings.thresholds), torch.tensor(settings.floor)
        self.limit = aggregate_limit(spec.aggregate_rate, spec.tokens)

    def patches(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (N, 3 * patch^2), padded as the stem pads."""
        (rows, columns), side = self.spec.grid, self.spec.patch
        whole = torch.zeros(3, rows * side, columns * side)
        whole[:, : pixels.shape[2], : pixels.shape[3]] = pixels[0]
        return whole.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)

    def run(self, pixels: Tensor, form: str, before: Computed | None, kept: Tensor) -> ReusedRun:
        """One frame; patches that are `kept` (N,) bool are as they were `before`."""
        spec, gates, extra = self.spec, len(self.spec.gates), self.spec.extra_tokens
        tokens, exits = self.model.embed(pixels), torch.full((spec.patches,), gates)
        shape = (spec.depth, spec.patches, spec.width)
        keys, values, patches = torch.zeros(shape), torch.zeros(shape), self.patches(pixels)
        if before is not None:
            exits = torch.where(kept, before.exits, exits)
            tokens = torch.cat([tokens[:extra], torch.where(kept[:, None], before.tokens[extra:], tokens[extra:])])
            keys, values = before.keys.clone(), before.values.clone()
            patches = torch.where(kept[:, None], before.patches, patches)
        counts, seen = list[int](), 0
        first = torch.arange(extra)
        for stage, (begin, end) in enumerate(spec.stage_layers):
            index = torch.cat([first, extra + torch.nonzero(~kept & (exits == gates))[:, 0]])
            # What has passed this stage before is not behind its gate yet.
            ahead = kept & (exits >= stage)
            behind = exits < stage if form != "pooled" else (exits < stage) | kept
            present = torch.cat([first, extra + torch.nonzero(~behind)[:, 0]])
            running = torch.cat([aggregate(tokens, present, self.limit), take(tokens, index[1:])])
            context = torch.nonzero(ahead)[:, 0] if form == "frozen" else first[:0]
            own = index[extra:] - extra
            for layer in range(begin, end):
                running, key, value = self._block(layer, running, keys[layer, context], values[layer, context])
                keys[layer, own], values[layer, own] = key[extra:], value[extra:]
            counts.append(len(index))
            seen += 2 * len(index) * len(context) * spec.width * (end - begin)
            tokens = put_back(tokens, index, running)
            if stage < gates:
                exits = self._stopped(stage, tokens, index, exits)
        classes = self.model.decode(tokens).argmax(1)[0]
        after = Computed(tokens, exits, keys, values, patches)
        return ReusedRun(after, classes, self.cost.actual(counts).total + seen, float(kept.float().mean()))

    def _block(self, layer: int, running: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`running` (n, C) after `layer`, which also attends to `keys` and `values` (m, C), and its own of these."""
        block = self.model.blocks[layer]
        assert isinstance(block, Block)
        made = list[Tensor]()

        def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            made.extend((key, value))
            return self.model.attend_at()(query, torch.cat([key, keys]), torch.cat([value, values]), heads)

        after = block(running, attend)
        return after, made[0], made[1]

    def _stopped(self, stage: int, tokens: Tensor, index: Tensor, exits: Tensor) -> Tensor:
        """`exits` after the gate of `stage`, of rows `index` (E + n,) of `tokens`."""
        gate, extra = self.model.gates[stage], self.spec.extra_tokens
        assert isinstance(gate, TokenGate)
        decision = gate(tokens, index, self.thresholds[stage], self.floor)
        goes_on = torch.zeros(self.spec.tokens, dtype=torch.bool)
        goes_on[decision.order[: int(decision.count)]] = True
        own = index[extra:] - extra
        return exits.index_copy(0, own, torch.where(goes_on[index[extra:]], exits[own], stage))


def to_keep(computed: Computed, patches: Tensor, share: float, barred: Tensor) -> Tensor:
    """(N,) bool: of the patches that are not `barred` (N,), those that have changed least since they ran."""
    count = len(patches)
    change = (patches - computed.patches).square().mean(1)
    change[barred] = float("inf")
    least = change.argsort(stable=True)[: round(share * count)]
    kept = torch.zeros(count, dtype=torch.bool)
    kept[least[change[least] < float("inf")]] = True
    return kept


def frames_of(source: str, count: int, size: tuple[int, int], seed: int) -> Iterator[RGB]:
    """The first frames of what the user named."""
    if source in RENDERED:
        yield from (frame.rgb for frame in street_frames(count, seed=seed, size=size, speed=RENDERED[source]))
        return
    with open_source(source, max_frames=count) as frames:
        yield from (frame.rgb for frame in frames if isinstance(frame, Frame))


def measured(
    network: Network, bundle: Bundle, frames: Sequence[RGB], shares: Sequence[float], refresh: int
) -> Iterator[dict[str, object]]:
    """A row for each share, form and which tokens are kept."""
    inputs = [torch.from_numpy(whole_input(rgb, bundle.manifest)) for rgb in frames]
    nothing = torch.zeros(network.spec.patches, dtype=torch.bool)
    alone = [network.run(pixels, "absent", None, nothing) for pixels in inputs]
    yield from rivals(network, [run.classes for run in alone], frames)
    gates, places = len(network.spec.gates), torch.arange(network.spec.patches)
    for share, which, form in itertools.product(shares, WHICH, FORMS):
        before, found = alone[0].computed, list[tuple[float, float, float]]()
        for number, (pixels, own) in enumerate(zip(inputs[1:], alone[1:], strict=True), start=1):
            due = places % refresh == number % refresh
            barred = due | (before.exits == gates) if which == "stopped" else due
            kept = to_keep(before, network.patches(pixels), share, barred)
            ran = network.run(pixels, form, before, kept)
            before = ran.computed
            same = (ran.classes == own.classes).float().mean()
            found.append((float(same), ran.macs / own.macs, ran.kept))
        same, macs, kept_share = np.mean(found, axis=0)
        measures = {"kept": float(kept_share), "agreement": float(same), "macs": float(macs)}
        yield {"which": which, "form": form, "share": share, **measures}


def rivals(network: Network, answers: Sequence[Tensor], frames: Sequence[RGB]) -> Iterator[dict[str, object]]:
    """A row for each way of filling in frames between those that run, and each step between those."""
    rows, columns = answers[0].shape
    # Of a cell of the head's grid, in pixels.
    side = network.spec.patch * network.spec.grid[0] // rows
    resized = [np.asarray(packages.opencv().resize(rgb, network.spec.size[::-1])) for rgb in frames]
    for every, by in itertools.product((2, 4, 8), ("hold", "warp")):
        same = list[float]()
        for number, (own, rgb) in enumerate(zip(answers, resized, strict=True)):
            if number % every == 0:
                held = own
                wide = np.kron(own.numpy(), np.ones((side, side))).astype(np.uint8)
                motion = Motion(rgb, wide[: rgb.shape[0], : rgb.shape[1]])
            elif by == "warp":
                moved = np.pad(motion.follow(rgb), ((0, network.spec.patch),) * 2, mode="edge")
                centres = moved[side // 2 :: side, side // 2 :: side][:rows, :columns]
                held = torch.from_numpy(centres.astype(int))
            same.append(float((held == own).float().mean()))
        # The first frame of each step runs, as often as in a long clip.
        agreement = (1 + (every - 1) * np.mean([one for number, one in enumerate(same) if number % every])) / every
        yield {"which": "frames", "form": by, "every": every, "agreement": float(agreement), "macs": 1 / every}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="reuse_context.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sources", nargs="+", help=f"folders and videos; rendered: {', '.join(RENDERED)}")
    parser.add_argument("--frames", type=int, default=12, help="of each source (default 12)")
    parser.add_argument("--refresh", type=int, default=8, help="frames until a token runs anew (default 8)")
    parser.add_argument("--shares", default="0.3,0.6", help="of tokens to keep, comma-separated (default 0.3,0.6)")
    parser.add_argument("--seed", type=int, default=2, help="of rendered streets")
    parser.add_argument("-o", "--output", type=output_file, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.open(chosen_bundle(given.bundle).path)
    network, rows = Network(bundle), list[dict[str, object]]()
    shares = [float(text) for text in given.shares.split(",")]
    with torch.inference_mode():
        for source in given.sources:
            frames = list(frames_of(source, given.frames, bundle.manifest.spec.size, given.seed))
            for row in measured(network, bundle, frames, shares, given.refresh):
                rows.append({"source": Path(source).name, **row})
                print(rows[-1], flush=True)
    figures = {"bundle": bundle.path.name, "frames": given.frames, "refresh": given.refresh, "rows": rows}
    publish(figures, command=command_text("reuse_context.py", sys.argv[1:]), output=given.output)


if __name__ == "__main__":
    main()
