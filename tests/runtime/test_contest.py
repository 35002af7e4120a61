"""Which candidate wins: by recorded timings on a clock of their own, and which answers are trusted, on real engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import CONFIDENCE, COUNT, LOGITS, ORDER, THRESHOLDS
from dovit_deploy.bundle.parity import PrecisionParity
from dovit_deploy.errors import GraphMismatch
from dovit_deploy.runtime import contest as rules
from dovit_deploy.runtime.contest import (
    STANDARD,
    Candidate,
    Contestants,
    Terms,
    Timed,
    contest,
    why_distrusted,
    winner_of,
)
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.runtime.recorded import DENSE, DYNAMIC, PIXELS, Machine, Recorded, standard
from tests.tiny import tiny_pixels, tiny_spec

FP32, BF16, INT8 = Candidate("openvino", "fp32"), Candidate("openvino", "bf16"), Candidate("onnxruntime", "int8")


def terms(*, dense: bool = True, seconds: float = 4.0, stated: dict[Candidate, PrecisionParity] | None = None) -> Terms:
    return Terms((PIXELS, PIXELS), DYNAMIC, DENSE if dense else None, seconds, 1.0, stated or {})


def outcome(machine: Machine, monkeypatch: pytest.MonkeyPatch, given: Terms, *, distrusted=()) -> Timed | None:
    def reason(session, standard, entry: Timed, terms: Terms) -> str | None:
        return "wrong here" if entry.candidate in distrusted else None

    monkeypatch.setattr(rules, "why_distrusted", reason)
    contestants = Contestants(machine.opened, machine.remarks.append)
    candidates = [candidate for candidate in machine.engines if candidate != STANDARD]
    results, _ = contest(candidates, contestants, given, clock=machine.clock)
    return winner_of(results, contestants, given)


@pytest.mark.parametrize(
    ("engines", "winner"),
    [
        # AMD with AVX-512 BF16 and VNNI: what was measured on road-tiny, one thread.
        ({FP32: Recorded(88, 147), BF16: Recorded(48, 82)}, "openvino bf16"),
        # A machine without AVX-512: OpenVINO's fp32 within the margin, or slower.
        ({FP32: Recorded(84, 150)}, None),
        ({FP32: Recorded(120, 190)}, None),
        ({FP32: Recorded(85 / 1.04, 150)}, None),
        ({FP32: Recorded(85 / 1.06, 150)}, "openvino fp32"),
    ],
)
def test_the_fastest_wins_by_the_margin(engines, winner, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({**standard(85, 150), **engines})
    found = outcome(machine, monkeypatch, terms())
    assert (None if found is None else str(found)) == winner


def test_dense_where_dense_is_faster_and_may_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(Machine(standard(80, 60)), monkeypatch, terms())
    assert (str(found), round(found.ratio if found else 0, 2)) == ("onnxruntime fp32 dense", 1.33)
    assert outcome(Machine(standard(80, 60)), monkeypatch, terms(dense=False)) is None


def test_dense_of_another_engine_where_dense_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    # One that is slow where sizes change.
    near = Machine({**standard(80, 100), FP32: Recorded(90, 60)})
    assert str(outcome(near, monkeypatch, terms())) == "openvino fp32 dense"
    far = Machine({**standard(80, 150), FP32: Recorded(60, 20)})
    assert str(outcome(far, monkeypatch, terms())) == "openvino fp32"


def test_one_pair_needs_a_wider_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Machine({**standard(2500), FP32: Recorded(2200)})
    assert outcome(slow, monkeypatch, terms(dense=False)) is None
    slow = Machine({**standard(2500), FP32: Recorded(1500)})
    assert str(outcome(slow, monkeypatch, terms(dense=False))) == "openvino fp32"


def test_what_answers_otherwise_is_left_out_unless_the_bundle_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine() -> Machine:
        return Machine({**standard(80), BF16: Recorded(40, wrong=2)})

    first = machine()
    assert outcome(first, monkeypatch, terms()) is None
    assert first.remarks == ["openvino bf16 is left out: only 98.0% of its answers are the same"]
    said = PrecisionParity(
        engine="openvino", precision="bf16", agreement=0.985, drop=0.2, confidence_error=(0.01,), images=9
    )
    assert str(outcome(machine(), monkeypatch, terms(stated={BF16: said}))) == "openvino bf16"
    # No more than that, though.
    wrong = Machine({**standard(80), BF16: Recorded(40, wrong=4)})
    assert outcome(wrong, monkeypatch, terms(stated={BF16: said})) is None


def test_the_next_wins_where_the_fastest_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({**standard(80), BF16: Recorded(40), FP32: Recorded(60)})
    assert str(outcome(machine, monkeypatch, terms(), distrusted=(BF16,))) == "openvino fp32"
    assert machine.remarks == ["openvino bf16 is left out: wrong here"]
    assert outcome(Machine({**standard(80), BF16: Recorded(40)}), monkeypatch, terms(), distrusted=(BF16,)) is None


@pytest.mark.parametrize(
    "error",
    [GraphMismatch("refused"), RuntimeError("ends\nbadly"), OSError(28, "No space left on device"), MemoryError()],
)
def test_an_engine_that_fails_is_left_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({**standard(80), BF16: Recorded(10, fails=error), FP32: Recorded(40)})
    assert str(outcome(machine, monkeypatch, terms())) == "openvino fp32"
    assert machine.remarks == [f"openvino bf16 is left out: {(str(error) or 'MemoryError').splitlines()[0]}"]


def test_it_ends_in_time_with_two_sessions_beside_the_standard_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {each: Recorded(80 - 10 * number, start=500) for number, each in enumerate((INT8, BF16, FP32))}
    machine = Machine({**standard(85, 150), **engines})
    assert outcome(machine, monkeypatch, terms(seconds=4.0)) is not None
    assert machine.seconds < 5.0
    assert machine.most_open == 3
    late = Machine({**standard(85, 150), **{each: Recorded(10, start=2500) for each in (INT8, BF16, FP32)}})
    assert str(outcome(late, monkeypatch, terms(seconds=4.0))) == "onnxruntime int8"
    assert late.seconds < 5.0


def test_from_how_many_frames_a_start_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(Machine({**standard(80), FP32: Recorded(40, start=1000)}), monkeypatch, terms(dense=False))
    assert found is not None
    assert found.pays_from == 25


# Real engines.


@pytest.fixture
def sessions(tiny_bundle_path: Path):
    bundle = Bundle.open(tiny_bundle_path)
    with Session(bundle, threads=1) as first, Session(bundle, threads=1) as second:
        yield first, second


def real_terms(bundle: Bundle) -> Terms:
    pixels = tuple(tiny_pixels(tiny_spec().size, seed=seed).numpy() for seed in (0, 1))
    settings, dense = RunSettings.resolve(bundle.manifest), RunSettings.resolve(bundle.manifest, dense=True)
    return Terms(pixels, settings, dense, 4.0, 1.0, {})


def broken(session: Session, graph: str, change) -> None:
    """Let `change` alter what the graph of `session` puts out."""
    engine = session.engine(graph)
    run = engine.run
    engine.run = lambda inputs: change(inputs, {name: np.array(value) for name, value in run(inputs).items()})


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_engine_is_trusted(sessions, dense: bool) -> None:
    first, second = sessions
    entry = Timed(FP32, dense, 2.0, 3, 1.0)
    assert why_distrusted(second, first, entry, real_terms(first.bundle)) is None


def one_token_less(inputs, outputs):
    # The gate stops its last token, whatever its confidence.
    outputs[COUNT] = outputs[COUNT] - 1
    return outputs


def shifted(inputs, outputs):
    outputs[LOGITS] = outputs[LOGITS] + 0.1
    return outputs


def unlimited(inputs, outputs):
    outputs[LOGITS] = outputs[LOGITS] * np.float32(np.nan)
    return outputs


@pytest.mark.parametrize(
    ("graph", "change", "candidate", "words"),
    [
        ("stage0", one_token_less, FP32, "decisions of gate 0"),
        ("stage0", one_token_less, BF16, "decisions of gate 0"),
        ("stage2", shifted, FP32, "differ by"),
        ("stage2", unlimited, BF16, "not finite"),
    ],
)
def test_what_decides_or_answers_otherwise_is_not_trusted(sessions, graph, change, candidate, words) -> None:
    first, second = sessions
    broken(second, graph, change)
    reason = why_distrusted(second, first, Timed(candidate, False, 2.0, 3, 1.0), real_terms(first.bundle))
    assert reason is not None
    assert words in reason


def test_a_flip_is_explained_by_the_stated_error_alone(sessions) -> None:
    first, second = sessions
    given = real_terms(first.bundle)

    def nearer(inputs, outputs):
        # Confidences 0.02 too low: some tokens run on that should have stopped.
        extra = len(outputs[ORDER]) - len(outputs[CONFIDENCE])
        outputs[CONFIDENCE] = outputs[CONFIDENCE] - np.float32(0.02)
        keep = np.concatenate([np.ones(extra, bool), ~(outputs[CONFIDENCE] > inputs[THRESHOLDS][0])])
        outputs[ORDER] = np.argsort(~keep, kind="stable").astype(np.int64)
        outputs[COUNT] = np.asarray(keep.sum(), dtype=np.int64)
        return outputs

    broken(second, "stage0", nearer)
    entry = Timed(BF16, False, 2.0, 3, 1.0)
    for error, trusted in ((0.012, True), (0.002, False)):
        said = PrecisionParity(
            engine="openvino",
            precision="bf16",
            agreement=1,
            drop=None,
            confidence_error=(error,) * len(first.bundle.manifest.spec.gates),
            images=9,
        )
        stated = dataclasses.replace(given, stated={BF16: said})
        assert (why_distrusted(second, first, entry, stated) is None) == trusted
    assert "gate 0" in (why_distrusted(second, first, Timed(FP32, False, 2.0, 3, 1.0), given) or "")
