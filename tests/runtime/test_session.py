"""The dynamic runtime: batches, replays, thresholds, refusals, and every engine against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.errors import GraphMismatch, InputError, UsageError
from dovit_deploy.runtime.session import Session
from tests.tiny import tiny_pixels

HERE = ("onnxruntime", "torch")
"""Engines that every machine with the tests' packages can run; the others have tests of their own."""


@pytest.fixture(scope="module")
def session(tiny_bundle_path: Path):
    with Session(Bundle.open(tiny_bundle_path), threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(tiny_bundle_path: Path):
    with Session(Bundle.open(tiny_bundle_path), engine="torch") as opened:
        yield opened


def pixels_of(session: Session, seed: int = 0, images: int = 1) -> np.ndarray:
    return tiny_pixels(session.bundle.manifest.spec.size, seed, images=images).numpy()


@settings(max_examples=25, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1), floor=st.sampled_from([0.0, 0.3]))
def test_engines_agree(session: Session, reference: Session, seed: int, threshold: float, floor: float) -> None:
    pixels = pixels_of(session, seed)
    want_logits, want = reference.run(pixels, thresholds=threshold, floor=floor)
    got_logits, got = session.run(pixels, thresholds=threshold, floor=floor)
    looked = np.concatenate([gate[np.isfinite(gate)] for gate in want.confidence])
    distance = np.minimum(np.abs(looked - np.float32(threshold)), np.abs(looked - np.float32(floor)))
    if distance.min() >= 1e-4:
        assert all(np.array_equal(a, b) for a, b in zip(want.keep, got.keep, strict=True))
        assert got.kept == want.kept
        assert got.gmacs_actual == want.gmacs_actual
        assert np.abs(want_logits - got_logits).max() < 1e-4 * max(1, np.abs(want_logits).max())


@pytest.mark.parametrize("engine", HERE)
def test_an_image_of_a_batch_gives_what_it_gives_alone(tiny_bundle_path: Path, engine: str) -> None:
    with Session(Bundle.open(tiny_bundle_path), engine=engine, threads=1) as session:
        batch = pixels_of(session, images=3)
        logits, reports = session.run(batch)
        assert isinstance(reports, list)
        assert len({report.kept for report in reports}) > 1, "the images should differ, else nothing is shown"
        for number in range(3):
            alone, report = session.run(batch[number : number + 1])
            assert np.array_equal(alone, logits[number : number + 1])
            assert report.kept == reports[number].kept


@pytest.mark.parametrize("engine", HERE)
def test_replaying_a_runs_own_decisions_is_bit_equal(tiny_bundle_path: Path, engine: str) -> None:
    with Session(Bundle.open(tiny_bundle_path), engine=engine, threads=1) as session:
        for seed in range(3):
            pixels = pixels_of(session, seed)
            logits, report = session.run(pixels)
            again, replayed = session.run(pixels, keep=report.keep)
            assert np.array_equal(logits, again)
            assert replayed.kept == report.kept
            for first, second in zip(report.confidence, replayed.confidence, strict=True):
                assert np.array_equal(first, second, equal_nan=True)


def test_a_replay_may_stop_more(session: Session) -> None:
    pixels = pixels_of(session)
    _, report = session.run(pixels, thresholds=1.0)
    nothing = [np.zeros_like(cells) for cells in report.keep]
    logits, stopped = session.run(pixels, keep=nothing)
    assert stopped.kept == (session.bundle.manifest.spec.tokens, 1, 1)
    assert np.array_equal(logits, session.run(pixels, thresholds=0.0)[0])


def test_a_token_that_resumes_is_refused(session: Session) -> None:
    pixels = pixels_of(session)
    _, report = session.run(pixels)
    first, second = (cells.copy() for cells in report.keep)
    first[0, 0], second[0, 0] = False, True
    with pytest.raises(InputError, match="resume"):
        session.run(pixels, keep=[first, second])


@pytest.mark.parametrize("keep", [[], [np.ones((4, 5), bool)], [np.ones((2, 2), bool)] * 2, [np.ones((4, 5), int)] * 2])
def test_a_replay_of_a_wrong_shape_is_refused(session: Session, keep: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="keep"):
        session.run(pixels_of(session), keep=keep)


def test_thresholds_one_per_gate_and_per_class_are_the_same_thing(session: Session) -> None:
    pixels, spec = pixels_of(session), session.bundle.manifest.spec
    table = np.full((2, spec.classes), 0.6)
    table[1] = 0.8
    by_gate = session.run(pixels, thresholds=[0.6, 0.8])
    by_class = session.run(pixels, thresholds=table)
    assert np.array_equal(by_gate[0], by_class[0])
    assert by_gate[1].kept == by_class[1].kept


def test_a_class_with_threshold_one_never_stops(session: Session, reference: Session) -> None:
    pixels, spec = pixels_of(session), session.bundle.manifest.spec
    everyone = session.run(pixels, thresholds=0.0)[1].kept[1]
    for label in range(spec.classes):
        table = np.zeros((2, spec.classes))
        table[:, label] = 1.0
        counts = [s.run(pixels, thresholds=table)[1].kept for s in (session, reference)]
        assert counts[0] == counts[1]
        assert counts[0][1] >= everyone


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), [0.5], [0.5] * 3, np.zeros((3, 5)), np.full((2, 5), 2.0)])
def test_bad_thresholds_are_refused(session: Session, bad: object) -> None:
    with pytest.raises(UsageError, match="threshold"):
        session.run(pixels_of(session), thresholds=bad)  # type: ignore[arg-type]


def test_an_upsampling_gate_wants_equal_thresholds(setr_bundle_path: Path) -> None:
    with Session(Bundle.open(setr_bundle_path), threads=1) as session:
        spec = session.bundle.manifest.spec
        table = np.full((1, spec.classes), 0.5)
        table[0, 1] = 0.6
        with pytest.raises(UsageError, match="up-sampling"):
            session.run(pixels_of(session), thresholds=table)


def test_the_none_default_is_the_bundles_own(session: Session) -> None:
    pixels = pixels_of(session)
    assert np.array_equal(session.run(pixels)[0], session.run(pixels, thresholds=0.7)[0])


def test_dense_is_nothing_stopped(session: Session) -> None:
    pixels = pixels_of(session)
    dense, report = session.run(pixels, dense=True)
    everything, _ = session.run(pixels, thresholds=1.0, floor=0.0)
    assert np.abs(dense - everything).max() < 1e-5
    assert report.flops_saved == 0
    assert report.kept == (session.bundle.manifest.spec.tokens,) * 3


@pytest.mark.parametrize("extra", [{"thresholds": 0.5}, {"floor": 0.1}])
def test_dense_takes_no_limits(session: Session, extra: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="dense"):
        session.run(pixels_of(session), dense=True, **extra)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 56, 72), (0, 3, 56, 72), (1, 1, 56, 72)])
def test_pixels_of_another_size_name_the_right_one(session: Session, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="56, 72"):
        session.run(np.zeros(shape, np.float32))


def test_pixels_of_another_type_are_refused(session: Session) -> None:
    for dtype in (np.float64, np.float16, np.uint8):
        with pytest.raises(InputError, match="float32"):
            session.run(pixels_of(session).astype(dtype))


def test_reports_say_where_the_head_looked(session: Session) -> None:
    pixels = pixels_of(session)
    _, report = session.run(pixels, thresholds=0.6)
    assert not np.isnan(report.confidence[0]).any()
    assert np.array_equal(np.isnan(report.confidence[1]), ~report.keep[0])
    assert report.kept == (21, 1 + report.keep[0].sum(), 1 + report.keep[1].sum())
    assert len(report.timing.stages) == 3


def test_a_dense_model_takes_no_thresholds(dense_bundle_path: Path) -> None:
    with Session(Bundle.open(dense_bundle_path), threads=1) as session:
        logits, report = session.run(pixels_of(session))
        assert report.kept == (session.bundle.manifest.spec.tokens,)
        assert np.array_equal(logits, session.run(pixels_of(session), dense=True)[0])
        with pytest.raises(UsageError, match="without gates"):
            session.run(pixels_of(session), thresholds=0.5)


def test_unknown_engine_and_precision(tiny_bundle_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    with pytest.raises(UsageError, match=", ".join(ENGINES)):
        Session(bundle, engine="abacus")
    with pytest.raises(UsageError, match="fp32"):
        Session(bundle, precision="fp7")


def test_a_graph_that_the_engine_refuses(bundle_copy: Path) -> None:
    from dovit_deploy.bundle.bundle import file_entry
    from tests.bundle.test_bundle import rewritten

    (bundle_copy / "stage0.ort.onnx").write_bytes(b"not onnx at all")
    listed = [file for file in bundle_copy.iterdir() if file.name != "manifest.json"]
    files = {file.name: file_entry(file).model_dump() for file in listed}
    rewritten(bundle_copy, files=files)
    with pytest.raises(GraphMismatch, match=r"stage0\.ort\.onnx"):
        Session(Bundle.open(bundle_copy))
