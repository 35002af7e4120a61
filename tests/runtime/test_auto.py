"""What `--engine auto` may choose among, on machines of all kinds, and when it measures at all."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.parity import ParityReport, PrecisionParity
from dovit_deploy.errors import GraphMismatch, UsageError
from dovit_deploy.runtime import auto
from dovit_deploy.runtime import contest as rules
from dovit_deploy.runtime.auto import Wanted, candidates_for, chosen_session, standard_for
from dovit_deploy.runtime.choices import ChoiceCache
from dovit_deploy.runtime.contest import STANDARD, Candidate
from dovit_deploy.runtime.remembered import Here
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.ahead import FramesAhead
from tests.runtime.recorded import Machine, Recorded, standard
from tests.runtime.test_choices import HERE

BF16 = Candidate("openvino", "bf16")
MACHINES = {
    "AMD Zen 5": (("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "", "openvino bf16, openvino fp32"),
    "Intel without AVX-512": (("avx2", "avx_vnni"), "", "openvino fp32"),
    "Graviton 3": (("asimd", "asimddp", "i8mm", "bf16"), "", "openvino bf16, openvino fp32"),
    "unknown": ((), "", "openvino fp32"),
    "with a GPU": (("avx2",), "NVIDIA H200", "cuda fp16, openvino fp32, cuda fp32"),
}


@pytest.fixture
def bundle(tiny_bundle_path) -> Bundle:
    return Bundle.open(tiny_bundle_path)


def stating(bundle: Bundle, *, drop: float, monkeypatch: pytest.MonkeyPatch, max_drop: float = 1.0) -> None:
    """Let the bundle say what bf16 loses, and what it may lose."""
    entry = PrecisionParity(
        engine="openvino", precision="bf16", agreement=0.99, drop=drop, confidence_error=(0.01, 0.01), images=9
    )
    report = ParityReport(
        reference="torch", precision="fp32", forms=(), versions={}, precisions=(entry,), max_drop=max_drop
    )
    monkeypatch.setattr(Bundle, "content", lambda self, name: report.model_dump_json().encode())


@pytest.mark.parametrize("name", MACHINES)
def test_the_candidates_of_a_machine(name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    features, gpu, expected = MACHINES[name]
    monkeypatch.setattr(packages, "is_there", lambda module: True)
    here = HERE.model_copy(update={"features": features, "gpu": gpu})
    assert ", ".join(map(str, candidates_for(bundle, here, None))) == expected


def test_int8_is_a_candidate_where_the_bundle_has_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: True)
    monkeypatch.setattr(auto, "engine_entry", lambda name: ENTRY[name])
    ENTRY = {
        name: SimpleNamespace(packages=(), on_gpu=name == "cuda", precisions=("fp32", "int8"))
        for name in auto.AUTOMATIC
    }
    here = HERE.model_copy(update={"features": ("avx512_vnni",)})
    assert "int8" not in str(candidates_for(bundle, here, None))
    both = {"precisions": ("fp32", "int8")}
    quantised = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update=both))
    names = [str(candidate) for candidate in candidates_for(quantised, here, None)]
    assert names == ["onnxruntime int8", "openvino int8", "openvino fp32"]
    assert "int8" not in str(candidates_for(quantised, HERE, None))


def test_an_engine_that_is_not_installed_is_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: module != "onnx_ir")
    assert candidates_for(bundle, HERE, None) == ()


@pytest.mark.parametrize(("drop", "offered"), [(0.4, True), (1.0, True), (1.2, False)])
def test_what_the_bundle_says_loses_too_much_is_none(bundle: Bundle, drop, offered, monkeypatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: True)
    stating(bundle, drop=drop, monkeypatch=monkeypatch)
    here = HERE.model_copy(update={"features": ("avx512_bf16",)})
    assert (BF16 in candidates_for(bundle, here, None)) == offered


@pytest.mark.parametrize(("max_drop", "offered"), [(0.3, False), (0.4, True), (5.0, True)])
def test_what_may_be_lost_is_what_the_export_allowed(bundle: Bundle, max_drop, offered, monkeypatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: True)
    stating(bundle, drop=0.4, max_drop=max_drop, monkeypatch=monkeypatch)
    here = HERE.model_copy(update={"features": ("avx512_bf16",)})
    assert (BF16 in candidates_for(bundle, here, None)) == offered


def test_a_precision_that_is_named_restricts() -> None:
    assert standard_for(None) == STANDARD
    assert standard_for("bf16") == BF16
    assert standard_for("fp16") == Candidate("cuda", "fp16")
    with pytest.raises(UsageError, match=r"'fp8' given; --engine auto chooses among: fp32, .*bf16"):
        standard_for("fp8")


# A whole choice, on engines whose timings were recorded.


class Video:
    kind = "video"

    def __init__(self, count: int | None, *, kind: str = "video") -> None:
        self.count, self.kind = count, kind

    def __iter__(self):
        from dovit_deploy.sources.source import Frame

        for number in range(self.count or 100):
            yield Frame(np.zeros((56, 72, 3), np.uint8), number, "clip", number)


@pytest.fixture
def choose(bundle: Bundle, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Choose on a machine; gives what ran, and the lines."""

    def chosen(machine: Machine, source: Video, *, here: Here | None = None, bundle: Bundle = bundle, **asked):
        if here is None:
            monkeypatch.setattr(auto, "candidates_for", lambda *given: tuple(set(machine.engines) - {STANDARD}))
        else:
            monkeypatch.setattr(Here, "now", lambda: here)
        monkeypatch.setattr(auto, "perf_counter", machine.clock)
        monkeypatch.setattr(
            auto, "contest", lambda *given, **named: rules.contest(*given, **named, clock=machine.clock)
        )
        monkeypatch.setattr(rules, "why_distrusted", lambda *given: None)
        monkeypatch.setattr(
            auto,
            "named_session",
            lambda bundle, engine, wanted, *, precision: machine.opened(Candidate(engine, precision)),
        )
        wanted = Wanted(RunSettings.resolve(bundle.manifest, dense=asked.pop("dense", False)), **asked)
        lines: list[str] = []
        found = chosen_session(
            bundle, source, FramesAhead(source), wanted, remark=lines.append, cache=ChoiceCache(tmp_path)
        )
        return str(found.session._candidate), found.settings.dense, lines

    return chosen


def machine() -> Machine:
    return Machine({**standard(80, 150), BF16: Recorded(40, 90, start=900)})


def test_a_long_source_is_measured_once_and_remembered(choose) -> None:
    first = machine()
    name, dense, lines = choose(first, Video(200))
    assert (name, dense) == ("openvino bf16", False)
    assert lines == [
        "engine: openvino bf16, 2.00x as fast as onnxruntime fp32 on the first frames; "
        "100.00% of the answers are the same"
    ]
    assert first.open == [BF16]
    again = machine()
    name, dense, lines = choose(again, Video(200))
    assert name == "openvino bf16"
    assert "remembered from 20" in lines[0]
    assert again.seconds == 0.9, "nothing but the start"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Video(1), "30 frames and more"),
        (Video(29), "30 frames and more"),
        (Video(None, kind="live"), "live source"),
    ],
)
def test_what_is_not_measured_runs_in_the_standard(choose, source: Video, words: str) -> None:
    alone = machine()
    name, _, lines = choose(alone, source)
    assert (name, alone.seconds) == ("onnxruntime fp32", 0.0)
    assert words in lines[0]


def test_frames_that_do_not_run_do_not_count(choose) -> None:
    assert "30 frames and more" in choose(machine(), Video(116), every=4)[2][0]
    assert choose(machine(), Video(800), every=4)[0] == "openvino bf16"
    assert "pays from 23 frames on" in choose(machine(), Video(88), every=4)[2][0]
    assert choose(machine(), Video(89), every=4)[0] == "openvino bf16"


def test_a_run_that_is_soon_over_is_not_measured(choose) -> None:
    name, _, lines = choose(Machine({**standard(10), BF16: Recorded(1)}), Video(150))
    assert name == "onnxruntime fp32"
    assert "over before" in lines[0]
    assert choose(Machine({**standard(10), BF16: Recorded(1)}), Video(250))[0] == "openvino bf16"


def test_a_short_source_is_spared_the_start_of_what_was_remembered(choose) -> None:
    choose(machine(), Video(200))
    name, _, lines = choose(machine(), Video(5))
    assert name == "onnxruntime fp32"
    assert lines == ["engine: onnxruntime fp32; openvino bf16, 2.00x, pays from 23 frames on"]
    assert choose(machine(), Video(25))[0] == "openvino bf16"
    assert choose(machine(), Video(None, kind="live"))[0] == "openvino bf16"


def test_dense_where_it_is_faster_unless_thresholds_are_named(choose) -> None:
    name, dense, lines = choose(Machine(standard(80, 60)), Video(200))
    assert (name, dense) == ("onnxruntime fp32", True)
    assert "onnxruntime fp32 dense, 1.33x" in lines[0]
    name, dense, lines = choose(Machine(standard(80, 60)), Video(200), thresholds=(0.9,))
    assert (name, dense) == ("onnxruntime fp32", False)


def test_a_deadline_leaves_dense_runs_out(choose) -> None:
    assert choose(Machine(standard(80, 60)), Video(200))[1]
    name, dense, lines = choose(Machine(standard(80, 60)), Video(200), deadline=True)
    assert (name, dense) == ("onnxruntime fp32", False), "also where a dense run is remembered for the same machine"
    assert "nothing else here may be faster" in lines[0]


def test_the_standard_stays_where_nothing_is_clearly_faster(choose) -> None:
    name, _, lines = choose(Machine({**standard(80), BF16: Recorded(78)}), Video(200))
    assert name == "onnxruntime fp32"
    assert lines == ["engine: onnxruntime fp32; nothing else here is clearly faster (the next: openvino bf16, 1.03x)"]


# Milliseconds of road-tiny, one thread: AMD EPYC with AVX-512 BF16 and VNNI (decision 0011).
AMD = {
    STANDARD: Recorded(84, 147),
    Candidate("onnxruntime", "int8"): Recorded(61, 101),
    Candidate("openvino", "fp32"): Recorded(89, 144),
    BF16: Recorded(52, 77),
    Candidate("openvino", "int8"): Recorded(40, 61),
}
WITHOUT = {
    **AMD,
    # What an Intel of before 2019 takes where one imitates the others: as slow as the worst that was seen of any.
    Candidate("onnxruntime", "int8"): Recorded(130, 240),
    Candidate("openvino", "fp32"): Recorded(95, 150),
    BF16: Recorded(400, 700),
    Candidate("openvino", "int8"): Recorded(150, 260),
}


@pytest.mark.parametrize(
    ("features", "missing", "engines", "expected"),
    [
        (("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "", AMD, "openvino int8"),
        (("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "openvino", AMD, "onnxruntime int8"),
        (("avx2", "avx512f", "avx512_vnni"), "openvino", {**AMD, **WITHOUT}, "onnxruntime fp32"),
        (("avx2",), "", WITHOUT, "onnxruntime fp32"),
        (("avx2",), "openvino", WITHOUT, "onnxruntime fp32"),
        (("avx2",), "", {**WITHOUT, Candidate("openvino", "fp32"): Recorded(60, 90)}, "openvino fp32"),
    ],
)
def test_of_a_bundle_with_int8(choose, bundle: Bundle, features, missing, engines, expected, monkeypatch) -> None:
    """The fastest by timings of machines like these; without VNNI and AVX-512 never one that is slower than fp32."""
    monkeypatch.setattr(packages, "is_there", lambda module: module != missing)
    here = HERE.model_copy(update={"features": features})
    both = bundle.manifest.model_copy(update={"precisions": ("fp32", "int8")})
    recorded = Machine(dict(engines))
    name, dense, _ = choose(recorded, Video(2000), here=here, bundle=dataclasses.replace(bundle, manifest=both))
    assert (name, dense) == (expected, False)
    assert recorded.engines[Candidate(*expected.split())].dynamic <= recorded.engines[STANDARD].dynamic


def test_where_the_time_was_too_short_nothing_is_remembered(choose, tmp_path) -> None:
    slow = Machine({**standard(80), BF16: Recorded(90, start=4500)})
    assert choose(slow, Video(200))[0] == "onnxruntime fp32"
    assert not ChoiceCache(tmp_path).path.exists()


@pytest.mark.parametrize(("error", "kept"), [(OSError(28, "No space"), False), (GraphMismatch("refused"), True)])
def test_a_choice_without_one_that_had_no_room_is_not_remembered(choose, tmp_path, error, kept) -> None:
    machine = Machine({**standard(80), BF16: Recorded(40, fails=error)})
    assert choose(machine, Video(200))[0] == "onnxruntime fp32"
    assert ChoiceCache(tmp_path).path.exists() == kept


def test_a_remembered_engine_that_is_broken_since_is_measured_without(choose) -> None:
    choose(machine(), Video(200))
    broken = Machine({**standard(80), BF16: Recorded(40, fails=GraphMismatch("broken since"))})
    name, _, lines = choose(broken, Video(200))
    assert name == "onnxruntime fp32"
    assert "broken since" in lines[0]


def test_an_interrupt_leaves_no_session_open(choose) -> None:
    interrupted = machine()
    interrupted.engines[BF16].fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        choose(interrupted, Video(200))
    assert interrupted.open == []
