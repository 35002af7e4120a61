"""What the graphs gain, and what token passing really saves: interleaved pairs, medians of ratios in process CPU time.

    python benchmarks/graphs.py -o benchmarks/results/graphs.json

A ViT-S/16 at 512x512 with random weights (attention and MLP cost the same whatever the weights), one thread. Tokens are
forced to a profile by replaying decisions, so that the ratio of MACs is known exactly:

    dense       our dense graph, fast form, against the export that `torch.onnx.export` gives of a plain ViT
    efficiency  measured speed-up of the staged and the merged run over the one predicted from MACs
    overhead    everything kept, merged and staged, against dense
    gate        a stage without its blocks, less its auxiliary head
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as functional
from report import at_least, output_file, publish

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import GraphInterface, Port, graph_interfaces
from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.export.pipeline import bundle_from_plan
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.export.quantise import QuantisePlan
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.parts import FcnHead, GateSpec, LinearHead, MaskHead
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.network import MiddleStage
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.graphs.forms import FAST
from dovit_deploy.graphs.passes import applied
from dovit_deploy.progress import Unseen
from dovit_deploy.runtime.session import Session

PROFILES = {"p45": (0.70, 0.45, 0.30), "p12": (0.50, 0.25, 0.12)}
Computation = Callable[[], object]


class PlainBlock(torch.nn.Module):
    """A block as everybody writes it: three-dimensional tokens, one qkv projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.fc1, self.fc2 = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class PlainViT(torch.nn.Module):
    """The same network as `spec_of(LinearHead())`, without gates."""

    def __init__(self, spec: VisionTransformerSpec) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, spec.width))
        self.positions = torch.nn.Parameter(torch.zeros(1, spec.tokens, spec.width))
        self.blocks = torch.nn.Sequential(*(PlainBlock(spec.width, spec.heads) for _ in range(spec.depth)))
        self.norm, self.head = torch.nn.LayerNorm(spec.width), torch.nn.Linear(spec.width, spec.classes)
        self.grid = spec.grid

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls, patches], dim=1) + self.positions
        logits = self.head(self.norm(self.blocks(x))[:, 1:])
        return logits.transpose(1, 2).reshape(1, -1, *self.grid)


def spec_of(head: LinearHead | MaskHead, layers: tuple[int, ...], size: int) -> VisionTransformerSpec:
    """ViT-S/16 with FCN gates before `layers`."""
    gates = tuple(GateSpec(layer=layer, head=FcnHead(channels=256)) for layer in layers)
    return VisionTransformerSpec(
        family="dovit",
        size=(size, size),
        width=384,
        depth=12,
        heads=6,
        hidden=1536,
        classes=19,
        gates=gates,
        head=head,
    )


def bundle_of(spec: VisionTransformerSpec, folder: Path, int8: QuantisePlan | None = None) -> Bundle:
    """A bundle with random weights, exported as any other; `int8` is what forms in 8 bits are made with."""
    torch.manual_seed(0)
    model = model_from_spec(spec)
    # Small weights keep activations finite through twelve layers; which values does not matter for time.
    state = {name: torch.randn_like(value) * 0.05 for name, value in model.state_dict().items()}
    norms = [name for name in state if "norm" in name and name.endswith("weight")]
    # A norm with a random scale would blow some channels up.
    state.update({name: torch.ones_like(state[name]) for name in norms})
    checkpoint = Checkpoint(
        spec=spec,
        state=state,
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), assumed=True, stride=None),
        classes=tuple(ClassEntry(name=f"class {n}", color=(n, n, n)) for n in range(spec.classes)),
        thresholds=(1.0,) * len(spec.gates),
        floor=0.0,
        slide_size=None,
        source="random weights",
        source_sha256="0" * 64,
    )
    plan = ExportPlan.resolve(checkpoint, folder, overwrite=True)
    bundle, _ = bundle_from_plan(plan, images=[("noise", pixels_of(spec))], progress=Unseen(), int8=int8)
    return bundle


def pixels_of(spec: VisionTransformerSpec) -> np.ndarray:
    """Noise: only counts matter here, and they are forced."""
    return np.random.default_rng(0).normal(size=(1, 3, *spec.size)).astype(np.float32)


def plain_session(spec: VisionTransformerSpec, folder: Path) -> onnxruntime.InferenceSession:
    """What a user gets from `torch.onnx.export` of a plain ViT."""
    path = folder / "plain.onnx"
    program = torch.onnx.export(
        PlainViT(spec).eval(), (torch.from_numpy(pixels_of(spec)),), dynamo=True, opset_version=20, verbose=False
    )
    program.save(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def profile_ms(path: Path, pixels: np.ndarray, runs: int = 6) -> dict[str, float]:
    """Mean kernel time by operator, largest first, by ONNX Runtime's own profile of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options)
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: pixels})
    events = json.loads(Path(session.end_profiling()).read_text())
    sums: Counter[str] = Counter()
    for event in events:
        if event["name"].endswith("kernel_time"):
            sums[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    return {name: round(value, 1) for name, value in sums.most_common(8)}


def ratios(baseline: Computation, other: Computation, *, repeat: int) -> dict[str, float]:
    """Median of baseline / other over interleaved pairs, order alternating, in CPU time of the process."""
    # The first run of each pays for memory and threads.
    for step in (baseline, other):
        step()
    pairs = []
    for number in range(repeat):
        steps = (baseline, other) if number % 2 == 0 else (other, baseline)
        times = {step: _cpu_seconds(step) for step in steps}
        pairs.append((times[baseline], times[other]))
    values = [first / second for first, second in pairs]
    return {
        "ratio": statistics.median(values),
        # Quartiles, not extremes: one interruption by a neighbour would be an extreme.
        "low": sorted(values)[len(values) // 4],
        "high": sorted(values)[-1 - len(values) // 4],
        "baseline_ms": 1e3 * statistics.median(first for first, _ in pairs),
        "other_ms": 1e3 * statistics.median(second for _, second in pairs),
    }


def _cpu_seconds(step: Computation) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def keep_of(spec: VisionTransformerSpec, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Nested random decisions that keep `shares` of the patches."""
    # One order for all shares, so that each gate keeps a subset of the one before, as decisions must.
    order = np.random.default_rng(1).permutation(spec.patches)
    grids = []
    for share in shares:
        cells = np.zeros(spec.patches, dtype=bool)
        cells[order[: round(share * spec.patches)]] = True
        grids.append(cells.reshape(spec.grid))
    return grids


def measure(size: int, repeat: int) -> dict[str, object]:
    """All figures, for one input size."""
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain_spec = spec_of(LinearHead(), (), size)
        plain, pixels = plain_session(plain_spec, folder), pixels_of(plain_spec)
        ours = Session(bundle_of(plain_spec, folder / "plain.dovit"), threads=1)
        figures["dense_fast_over_plain_export"] = ratios(
            lambda: plain.run(None, {"pixels": pixels}), lambda: ours.run(pixels, dense=True), repeat=repeat
        )
        figures["profile of the plain export, ms by operator"] = profile_ms(folder / "plain.onnx", pixels)
        fast = folder / "plain.dovit" / "dense.ort.onnx"
        figures["profile of the dense fast form, ms by operator"] = profile_ms(fast, pixels)
        for label, head, layers in (
            ("bench model (stages 3/3/3/3, linear head)", LinearHead(), (3, 6, 9)),
            ("DoViT-S (stages 2/3/3/4, mask head)", MaskHead(width=384, layers=2, heads=6), (2, 5, 8)),
        ):
            spec = spec_of(head, layers, size)
            session = Session(bundle_of(spec, folder / f"{len(figures)}.dovit"), threads=1)
            figures[label] = _token_figures(session, spec, pixels, repeat)
        figures["a gate with its partition, ms"] = boundary_ms(spec, folder, repeat)
    return figures


def _token_figures(session: Session, spec: VisionTransformerSpec, pixels: np.ndarray, repeat: int) -> dict[str, object]:
    figures: dict[str, object] = {}
    cost = cost_model(spec)

    def dense() -> object:
        return session.run(pixels, dense=True)

    for name, shares in PROFILES.items():
        keep = keep_of(spec, shares)
        _, report = session.run(pixels, keep=keep)
        predicted = cost.dense().total / cost.actual(report.kept).total
        staged = ratios(dense, lambda keep=keep: session.run(pixels, keep=keep), repeat=repeat)
        figures[name] = {"predicted": predicted, "staged": staged, "efficiency": staged["ratio"] / predicted}
    merged = session.engine("merged")
    feed = {
        "pixels": pixels,
        "thresholds": np.ones((len(spec.gates), spec.classes), np.float32),
        "floor": np.zeros((), np.float32),
    }
    figures["nothing stopped, merged"] = ratios(dense, lambda: merged.run(feed), repeat=repeat)
    figures["nothing stopped, staged"] = ratios(dense, lambda: session.run(pixels, thresholds=1.0), repeat=repeat)
    return figures


def boundary_ms(spec: VisionTransformerSpec, folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """What token passing costs at a gate: aggregate, gather, put back, softmax, compare, partition.

    A stage without its blocks, less its auxiliary head alone, both as graphs of their own, interleaved, in CPU time;
    by share of patches that run.
    """
    model = model_from_spec(spec)
    stage = MiddleStage(model, 1)
    # No blocks between the gates: what remains is the boundary.
    stage.last = stage.first
    tokens = GraphInterface(
        (Port("tokens", "float32", ("kept", spec.width)),), (Port("logits", "float32", ("kept", spec.classes)),)
    )
    whole = _session_of(stage, graph_interfaces(spec)["stage1"], folder / "boundary.onnx")
    head = _session_of(model.gates[1].head, tokens, folder / "head.onnx")
    random = np.random.default_rng(2)
    values = random.normal(size=(spec.tokens, spec.width)).astype(np.float32)
    figures = {}
    for share in (1.0, 0.7, 0.3):
        count = round(share * spec.patches)
        # The class token always runs on and comes first.
        index = np.concatenate([[0], 1 + np.sort(random.permutation(spec.patches)[:count])]).astype(np.int64)
        limits = {"thresholds": np.full(spec.classes, 0.9, np.float32), "floor": np.zeros((), np.float32)}
        feed = {"tokens": values, "index": index, **limits}
        pairs = []
        # A boundary takes a third of a millisecond, so it needs many more runs than a whole model.
        for _ in range(20 * repeat):
            first = _cpu_seconds(lambda feed=feed: whole.run(None, feed))
            pairs.append((first, _cpu_seconds(lambda count=count: head.run(None, {"tokens": values[1 : count + 1]}))))
        # Less the first five, in which the sessions take their memory.
        figures[f"{share:.0%} running"] = {
            "boundary": 1e3 * statistics.median(first - second for first, second in pairs[5:]),
            "auxiliary head": 1e3 * statistics.median(second for _, second in pairs[5:]),
        }
    return figures


def _session_of(module: torch.nn.Module, interface: GraphInterface, path: Path) -> onnxruntime.InferenceSession:
    ir.save(applied(onnx_from_module(module.eval(), interface), FAST).model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=at_least(16), default=512)
    parser.add_argument("--repeat", type=at_least(1), default=15)
    parser.add_argument("-o", "--output", type=output_file)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        "figures": measure(arguments.size, arguments.repeat),
    }
    publish(
        figures,
        command=f"python benchmarks/graphs.py --size {arguments.size} --repeat {arguments.repeat}",
        output=arguments.output,
    )


if __name__ == "__main__":
    main()
