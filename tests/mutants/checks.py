"""The checks that mutants must fail: few, named, each ending in AssertionError when the package is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle, file_entry
from dovit_deploy.bundle.manifest import ClassEntry, GateDefaults, Manifest, Preprocessing, Provenance
from dovit_deploy.families import folding, registry
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.eager import EagerBackend
from dovit_deploy.families.parts import PositionMode
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.families.vit.test_against_naive import assert_agree
from tests.mutants import backbone_checks, evovit_checks, stvit_checks
from tests.mutants.cases import CASES, Case, case
from tests.naive import naive_positions
from tests.naive_cost import naive_cost
from tests.naive_parts import turning_angles
from tests.staged_loop import run_staged
from tests.tiny import tiny_pixels, tiny_spec, tiny_state

Check = Callable[[], None]


def agrees_with_naive(name: str) -> None:
    """Order, counts, confidences, labels and logits of the staged network are those of the naive reference."""
    chosen = case(name)
    found = run_staged(
        registry.model_from_spec(chosen.spec, chosen.state),
        chosen.pixels,
        thresholds=torch.from_numpy(chosen.thresholds).float(),
        floor=chosen.floor,
    )
    assert_agree(chosen.spec, found, chosen.expected, tolerance=2e-5)


def positions_follow_the_rule() -> None:
    """Position embeddings are resized as families.md says: when, how, and with which sample points."""
    modes: tuple[PositionMode, ...] = ("bicubic", "bilinear", "scale", "size", "antialias")
    for mode in modes:
        spec = tiny_spec(size=(64, 64), position_mode=mode, extra_tokens=2)
        state = tiny_state(spec, 1)
        # Same number of tokens in another shape; larger; smaller; not whole patches.
        for size in [(32, 128), (96, 128), (48, 32), (70, 50)]:
            found = registry.state_at_size(state, spec, size)["positions"].double().numpy()
            expected = naive_positions(state["positions"].double().numpy(), spec, size)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def rotations_follow_the_rule() -> None:
    """At another size the tables are made of the same periods, whatever they are, for the new grid."""
    spec = tiny_spec(size=(64, 96), extra_tokens=2, rotary=True)
    state = tiny_state(spec, 1)
    for size in [(64, 96), (32, 144), (70, 50)]:
        target = registry.spec_at_size(spec, size)
        found = registry.state_at_size(state, spec, size)
        periods = state["rotary.periods"].double().numpy()
        angles = np.array([turning_angles(periods, target.grid, position) for position in range(target.patches)])
        angles = np.concatenate([np.zeros((spec.extra_tokens, angles.shape[1])), angles])
        for name, expected in (("rotary.cosines", np.cos(angles)), ("rotary.sines", np.sin(angles))):
            np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=0, atol=1e-5)


def cost_is_what_the_naive_count_gives() -> None:
    """Multiply-adds of every kind of head and stem, dense and with tokens stopped."""
    for spec in (
        tiny_spec(head="mask", gate="fcn", stem="patch"),
        tiny_spec(head="linear", gate="linear", stem="conv", extra_tokens=2),
        tiny_spec(head="setr", gate="setr", stem="patch", size=(70, 100)),
        tiny_spec(head="pup", gate="fcn", stem="conv"),
        tiny_spec(head="light", gate="linear", answer="lens"),
        tiny_spec(head="query", gate="linear", gates=(1, 2), depth=5),
        tiny_spec(head="linear", gate="linear", taps=(1, 2)),
        tiny_spec(head="fcn", gate="linear", taps=(1, 2), answer="gate"),
        tiny_spec(head="linear", gate="linear", taps=(1, 2), answer="lens", tap_answer="lens"),
        tiny_spec(head="linear", gate="linear", answer="gate", context="pooled"),
        tiny_spec(mlp="swiglu", extra_tokens=5),
    ):
        kept = [spec.tokens, spec.tokens - 7, spec.extra_tokens]
        cost, dense = cost_model(spec), [spec.tokens] * 3
        for found, expected in [
            (cost.actual(kept), naive_cost(spec, kept)),
            (cost.dense(), naive_cost(spec, dense, gates=False)),
        ]:
            assert found.stem == expected.stem
            assert found.layers == expected.layers
            assert found.gates == expected.gates
            assert found.head == expected.head


def folding_uses_the_published_epsilon() -> None:
    """A folded batch norm of tiny variance is x / sqrt(variance + 1e-5)."""
    state = {
        "part.projection.weight": torch.eye(2),
        "part.norm.weight": torch.ones(2),
        "part.norm.bias": torch.zeros(2),
        "part.norm.running_mean": torch.zeros(2),
        "part.norm.running_var": torch.tensor([1e-5, 3e-5]),
    }
    found = folding.folded(state)["part.weight"].diagonal()
    assert torch.allclose(found, torch.tensor([2e-5, 4e-5]).rsqrt(), rtol=1e-5)


def a_batch_gives_each_image_what_it_gives_alone() -> None:
    """Two images of different difficulty through one session."""
    chosen = case("mask")
    pixels = np.concatenate([chosen.pixels.numpy(), 0.2 * tiny_pixels(chosen.spec.size, 77).numpy()])
    with tempfile.TemporaryDirectory() as folder, _session(chosen, Path(folder)) as session:
        together, reports = session.run(pixels)
        settings = RunSettings.resolve(session.bundle.manifest)
        alone = [session.run_one(pixels[number : number + 1], settings) for number in range(2)]
    assert isinstance(reports, list)
    if alone[0][1].kept == alone[1][1].kept:
        raise ValueError("images that stop alike prove nothing")
    for number, (logits, report) in enumerate(alone):
        assert reports[number].kept == report.kept
        assert np.array_equal(together[number], logits[0])


def the_session_runs_what_the_naive_reference_runs() -> None:
    """Counts and logits of the runtime's loop, in the reference engine."""
    # All but the first pass more than tokens from stage to stage.
    for chosen in map(case, ("mask", "lens", "tapped", "gate_answers", "tap_lenses", "pooled")):
        with tempfile.TemporaryDirectory() as folder, _session(chosen, Path(folder)) as session:
            logits, report = session.run(chosen.pixels.numpy())
        assert not isinstance(report, list)
        assert list(report.kept) == chosen.expected.kept
        assert np.abs(logits[0] - chosen.expected.logits).max() < 1e-4 * np.abs(chosen.expected.logits).max()


def _session(chosen: Case, folder: Path) -> Session:
    """A session of the reference engine on a bundle that holds the weights and nothing else."""
    spec = chosen.spec
    save_file(chosen.state, folder / WEIGHTS)
    manifest = Manifest(
        name="tiny",
        spec=spec,
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), assumed=True, stride=None),
        classes=tuple(ClassEntry(name=str(number), color=(0, 0, 0)) for number in range(spec.classes)),
        defaults=GateDefaults(thresholds=tuple(tuple(row) for row in chosen.thresholds.tolist()), floor=chosen.floor),
        counts=(),
        provenance=Provenance(tool="tests", source="none", source_sha256="0" * 64),
        files={WEIGHTS: file_entry(folder / WEIGHTS)},
    )
    return Session(Bundle(folder, manifest), backend=EagerBackend())


CHECKS: dict[str, Check] = {
    **{name: partial(agrees_with_naive, name) for name in CASES},
    "positions": positions_follow_the_rule,
    "rotations": rotations_follow_the_rule,
    "cost": cost_is_what_the_naive_count_gives,
    "folding": folding_uses_the_published_epsilon,
    "batch": a_batch_gives_each_image_what_it_gives_alone,
    "session": the_session_runs_what_the_naive_reference_runs,
    **backbone_checks.CHECKS,
    **evovit_checks.CHECKS,
    **stvit_checks.CHECKS,
}
