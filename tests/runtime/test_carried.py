"""What stages pass on beside the tokens, through every engine: a tiny model whose stopped tokens answer through a lens,
under a head that reads three layers, one before all gates.

The bundle comes from a checkpoint of our own by `dovit export`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import FLOOR, KEPT, LOGITS, MERGED, PIXELS, THRESHOLDS, graph_interfaces
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.engines.tensorrt.store import EngineCache
from dovit_deploy.export.verify import gated_parity, reference_runs
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.trace import gate_parity, settings_from_images, trace_from_session
from tests.bundles import int8_copy
from tests.engines.tensorrt.run_fakes import Bench, assert_nothing_is_left, built
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels

ENGINES = ["torch", "onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def bundle(lens_bundle_path: Path) -> Bundle:
    return Bundle.open(lens_bundle_path)


@pytest.fixture(scope="module")
def in_8_bits(lens_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return int8_copy(lens_bundle_path, tmp_path_factory.mktemp("int8") / "lens.dovit")


@pytest.fixture(scope="module", params=ENGINES)
def session(request: pytest.FixtureRequest, bundle: Bundle):
    pytest.importorskip(request.param)
    with Session(bundle, engine=request.param, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(bundle: Bundle):
    with Session(bundle, engine="torch") as opened:
        yield opened


def pixels_of(bundle: Bundle, seed: int = 3) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed=seed).numpy()


def carry_of(path: Path) -> list[str]:
    floats = json.loads((path / "parity.json").read_text())["forms"][1]["runs"][0]["floats"]
    return [entry["name"] for entry in floats if "carry" in entry["name"]]


def test_every_stage_says_what_it_carries_and_the_export_compared_it(bundle: Bundle, dense_bundle_path: Path) -> None:
    graphs = graph_interfaces(bundle.manifest.spec)
    assert graphs["stage0"].inputs == ("pixels", "thresholds", "floor")
    assert graphs["stage0"].outputs[-3:] == ("carry.answers", "carry.tap1", "carry.tap2")
    # What it has no use for passes the middle stage by.
    assert graphs["stage1"].inputs[-4:] == ("thresholds", "floor", "carry.answers", "carry.tap2")
    assert graphs["stage1"].outputs[-2:] == ("carry.answers_out", "carry.tap2_out")
    assert graphs["stage2"].inputs == ("tokens", "index", "carry.answers", "carry.tap1", "carry.tap2")
    assert all("carry" not in name for name in (*graphs["merged"].inputs, *graphs["dense"].inputs))
    first = ["stage0 carry.answers", "stage0 carry.tap1", "stage0 carry.tap2"]
    compared = [*first, "stage1 carry.answers", "stage1 carry.tap2"]
    assert carry_of(bundle.path) == compared
    assert carry_of(dense_bundle_path) == []
    assert bundle.manifest.spec.logits_grid == (8, 10), "twice the token grid"
    # What is carried is no answer: it is compared, and is not what an answer is off by.
    report = ParityReport.model_validate_json((bundle.path / "parity.json").read_text())
    logits = [entry.error for form in report.forms for run in form.runs for entry in run.floats if entry.name == LOGITS]
    assert report.answers_error == max(logits)


def test_engines_agree_by_the_contracts_rule(session: Session, reference: Session) -> None:
    if session.backend.name == "torch":
        pytest.skip("the reference itself has no merged graph")
    bundle = session.bundle
    runs = reference_runs(reference, settings_from_images(reference, [("image", pixels_of(bundle))]))
    assert any(2 < len(index) < bundle.manifest.spec.tokens for run in runs for index in run.trace.index)
    for expected in runs:
        assert gated_parity(session, expected).failures == ()


def test_with_nothing_stopped_it_is_dense_bit_for_bit(session: Session) -> None:
    pixels = pixels_of(session.bundle)
    logits, report = session.run(pixels, thresholds=1.0)
    assert set(report.kept) == {session.bundle.manifest.spec.tokens}
    assert np.array_equal(logits, session.run(pixels, dense=True)[0])


def test_everything_may_stop_at_the_first_gate(session: Session, reference: Session) -> None:
    pixels = pixels_of(session.bundle)
    logits, report = session.run(pixels, thresholds=0.0)
    assert report.kept[1:] == (1, 1)
    want, _ = reference.run(pixels, thresholds=0.0)
    np.testing.assert_allclose(logits, want, atol=1e-4)
    # Whatever the later stages do: the answers are those of the first gate.
    with torch.inference_mode():
        model = reference.backend._model(session.bundle)  # type: ignore[attr-defined]
        tokens = model.embed(torch.from_numpy(pixels))
        for block in model.blocks[: model.spec.gates[0].layer]:
            tokens = block(tokens)
        seen = [tokens, model.tap_lenses[0]["2"](tokens)]
        np.testing.assert_allclose(logits, model.decode(model.lenses[0](tokens), seen), atol=1e-4)


def test_replaying_decisions_is_bit_equal_and_may_stop_more(session: Session, reference: Session) -> None:
    pixels = pixels_of(session.bundle)
    logits, report = session.run(pixels)
    assert report.kept[0] > report.kept[1] > report.kept[2] > 1
    again, _ = session.run(pixels, thresholds=1.0, keep=report.keep)
    assert np.array_equal(logits, again)
    # Other decisions than any gate's: every third token stops at the first gate, every second at the last.
    cells = np.arange(report.keep[0].size).reshape(report.keep[0].shape)
    keep = [cells % 3 > 0, (cells % 3 > 0) & (cells % 2 > 0)]
    other, replayed = session.run(pixels, keep=keep)
    want, _ = reference.run(pixels, keep=keep)
    assert replayed.kept[1:] == tuple(1 + int(grid.sum()) for grid in keep)
    np.testing.assert_allclose(other, want, atol=1e-4)
    assert np.abs(other - logits).max() > 1e-2


def test_lenses_are_counted_with_their_gate(session: Session) -> None:
    spec = session.bundle.manifest.spec
    _, report = session.run(pixels_of(session.bundle))
    plain = cost_model(type(spec).model_validate({**spec.model_dump(), "answer": "feature", "tap_answer": "feature"}))
    more = cost_model(spec).actual(report.kept).total - plain.actual(report.kept).total
    # The first gate has two: one tap and the last layer lie behind it.
    assert more == (2 * report.kept[0] + report.kept[1]) * spec.width**2
    assert cost_model(spec).dense() == plain.dense()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_answers_nearly_alike(in_8_bits: Bundle, reference: Session, engine: str) -> None:
    pytest.importorskip(engine)
    pixels, settings = pixels_of(in_8_bits), RunSettings.resolve(in_8_bits.manifest)
    with Session(in_8_bits, engine=engine, precision="int8", threads=1) as session:
        for setting in settings_from_images(reference, [("image", pixels)]):
            trace = trace_from_session(reference, setting)
            replayed = trace_from_session(session, setting, replay=trace.index)
            for gate in range(2):
                assert gate_parity(trace, replayed, gate, setting, 1, limit=1.0).unexplained == 0
            assert 0 < np.abs(trace.logits - replayed.logits).max() < 0.3 * np.abs(trace.logits).max()
        logits, report = session.run(pixels)
        limits = {THRESHOLDS: settings.thresholds, FLOOR: np.asarray(settings.floor)}
        merged = session.engine(MERGED).run({PIXELS: pixels, **limits})
        np.testing.assert_array_equal(merged[KEPT], report.kept)
        # OpenVINO computes what is not in 8 bits in bf16, where the CPU does, and in graphs of other sizes otherwise.
        np.testing.assert_allclose(merged[LOGITS], logits, atol=1e-5 if engine == "onnxruntime" else 0.05)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_form_for_tensorrt_computes_the_same(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    """With padding and plugins; in half precision what is carried crosses in it, as tokens do."""
    backend = DerivedBackend(bundle, tmp_path / "x", precision=precision, plugins=True, bucket=8)
    with Session(bundle, threads=1) as plain, Session(bundle, backend=backend) as derived:
        for setting in settings_from_images(plain, [("image", pixels_of(bundle))]):
            trace = trace_from_session(plain, setting)
            got = trace_from_session(derived, setting, replay=trace.index)
            tolerance = 1e-4 if precision == "fp32" else 0.02
            assert len(trace.carried) == 2
            for want, found in zip(trace.carried, got.carried, strict=True):
                assert want.keys() == found.keys() and len(want) >= 2
                for name, value in found.items():
                    assert value.dtype == {"fp32": np.float32, "fp16": np.float16}[precision]
                    np.testing.assert_allclose(value, want[name], atol=tolerance)
            np.testing.assert_allclose(got.logits, trace.logits, atol=tolerance)


def test_tensorrt_on_a_fake_device_keeps_it_there(bundle: Bundle, tmp_path: Path) -> None:
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32", buckets=(8, 16)), tmp_path)
    with Session(bundle, threads=1) as plain, Session(bundle, backend=bench.backend()) as session:
        for seed in (3, 4):
            want, asked = plain.run(pixels_of(bundle, seed))
            got, report = session.run(pixels_of(bundle, seed))
            assert asked.kept == report.kept and asked.kept[2] > 1
            np.testing.assert_allclose(got, want, atol=1e-4)
        # After the first frames each stage is one launch, and its inputs are where another one left them.
        start = len(bench.memory.log)
        session.run(pixels_of(bundle, 3))
        assert sum(entry.startswith("launch") for entry in bench.memory.log[start:]) == 3
    assert_nothing_is_left(bench)


def test_what_a_tap_sees_of_a_stopped_token_is_its_gates_lens(bundle: Bundle) -> None:
    with Session(bundle, threads=1) as session:
        (setting,) = settings_from_images(session, [("image", pixels_of(bundle))])[:1]
        trace = trace_from_session(session, setting)
    stopped = np.ones(bundle.manifest.spec.tokens, dtype=bool)
    stopped[trace.index[0]] = False
    assert 0 < stopped.sum() < len(stopped) - 1
    early, late = trace.carried[0]["carry.tap1"], trace.carried[1]["carry.tap2"]
    # The first tap is where the first gate stands: it sees what the gate sees.
    np.testing.assert_array_equal(early, trace.tokens[0])
    lensed = trace.carried[0]["carry.tap2"]
    np.testing.assert_array_equal(late[stopped], lensed[stopped])
    # What ran to it is neither that nor what entered the stage.
    for other in (lensed, trace.tokens[0]):
        assert (np.abs(late - other)[~stopped].max(axis=1) > 1e-2).all()
