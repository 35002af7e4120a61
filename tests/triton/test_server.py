"""The real server, as the nvidia-pytriton wheel carries it, through its client: HTTP and gRPC, on loopback."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.triton_server import RunningServer, running_server, why_not
from dovit_deploy import Session
from dovit_deploy.bundle.bundle import MANIFEST
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.triton.repository import add_to_repository
from tests.paths import ROOT
from tests.test_docs import blocks
from tests.tiny import tiny_pixels
from tests.triton.conftest import plan_of

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PIXELS = tiny_pixels((56, 72), images=4).numpy()
LOAD_S = 60.0


@dataclass(frozen=True)
class Client:
    """tritonclient over one of its two protocols."""

    module: ModuleType
    calls: Any

    @classmethod
    def of(cls, server: RunningServer, protocol: str) -> Client:
        import tritonclient.grpc
        import tritonclient.http

        if protocol == "http":
            return cls(tritonclient.http, tritonclient.http.InferenceServerClient(server.http, network_timeout=LOAD_S))
        return cls(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(server.grpc))

    def ask(self, model: str, *, version: str = "", **arrays: np.ndarray) -> Any:
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in arrays.items():
            inputs.append(self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        return self.calls.infer(model, inputs, model_version=version)

    def refusal(self, model: str, **arrays: np.ndarray) -> tuple[str, str]:
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as caught:
            self.ask(model, **arrays)
        return caught.value.status(), caught.value.message()


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with a second model, `narrow`, for which nearly nothing may wait."""
    folder = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(tiny_repository, folder)
    shutil.copytree(folder / "tiny", folder / "narrow")
    text = (folder / "narrow" / "config.pbtxt").read_text()
    for before, after in (('name: "tiny"', 'name: "narrow"'), ("max_queue_size: 64", "max_queue_size: 2")):
        assert before in text
        text = text.replace(before, after)
    (folder / "narrow" / "config.pbtxt").write_text(text)
    return folder


FLAGS = ("--model-control-mode=explicit", "--load-model=tiny", "--load-model=narrow")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(repository, tmp_path_factory.mktemp("server"), flags=FLAGS) as started:
        yield started


def limits(number: int) -> dict[str, np.ndarray]:
    """Mixed limits: none, one threshold, one for each gate, with a floor."""
    draw = np.random.default_rng(number)
    thresholds = draw.uniform(0.3, 1.0, (4, 1 + number % 2)).astype(np.float32)
    kinds = ({}, {"thresholds": thresholds}, {"thresholds": thresholds, "floor": np.full((4, 1), 0.3, np.float32)})
    return kinds[number % 3]


def expected(session: Session, given: dict[str, np.ndarray]) -> tuple[np.ndarray, list[list[int]]]:
    """Each image alone, as the session answers it."""
    answers, kept = [], []
    for number in range(4):
        thresholds = given["thresholds"][number] if "thresholds" in given else None
        thresholds = float(thresholds[0]) if thresholds is not None and thresholds.size == 1 else thresholds
        floor = float(given["floor"][number, 0]) if "floor" in given else None
        logits, report = session.run(PIXELS[number : number + 1], thresholds, floor)
        answers.append(logits)
        kept.append(list(report.kept))
    return np.concatenate(answers), kept


def check_mixed(server: RunningServer, bundle: Path, *, requests: int, at_once: int) -> None:
    client = {protocol: threading.local() for protocol in ("http", "grpc")}

    def ask(number: int) -> Any:
        protocol = ("http", "grpc")[number // 3 % 2]
        own = client[protocol]
        # HTTP's client is of one thread.
        if not hasattr(own, "client"):
            own.client = Client.of(server, protocol)
        return own.client.ask("tiny", pixels=PIXELS, **limits(number))

    with Session(bundle, threads=1) as session, ThreadPoolExecutor(at_once) as pool:
        for number, result in enumerate(pool.map(ask, range(requests))):
            logits, kept = expected(session, limits(number))
            assert np.array_equal(result.as_numpy("logits"), logits), number
            assert result.as_numpy("kept").tolist() == kept
            assert (result.as_numpy("milliseconds") > 0).all()


def test_mixed_requests_are_answered_bit_for_bit(server: RunningServer, tiny_bundle_path: Path) -> None:
    check_mixed(server, tiny_bundle_path, requests=48, at_once=8)
    # Batches were formed: the model ran less often than it was asked.
    (model,) = Client.of(server, "http").calls.get_inference_statistics("tiny")["model_stats"]
    assert model["execution_count"] < model["inference_count"] / 4


@pytest.mark.parametrize(("protocol", "status"), [("http", "400"), ("grpc", "StatusCode.INVALID_ARGUMENT")])
def test_malformed_requests_are_refused_and_harm_nobody(server: RunningServer, protocol: str, status: str) -> None:
    client = Client.of(server, protocol)
    alone = client.ask("tiny", pixels=PIXELS).as_numpy("logits")
    bad = {
        "NaN": {"pixels": np.where(PIXELS > 2, np.nan, PIXELS).astype(np.float32)},
        "unexpected shape": {"pixels": PIXELS[:, :, :50]},
        "FP64": {"pixels": PIXELS.astype(np.float64)},
        "threshold 7 is outside": {"pixels": PIXELS, "thresholds": np.full((4, 1), 7, np.float32)},
        "2 gates": {"pixels": PIXELS, "thresholds": np.full((4, 3), 0.5, np.float32)},
        "floor -1 is outside": {"pixels": PIXELS, "floor": np.full((4, 1), -1, np.float32)},
        "must be <= 8": {"pixels": np.concatenate([PIXELS] * 3)},
        "no pixels given": {"floor": np.full((4, 1), 0.5, np.float32)},
        "extra": {"pixels": PIXELS, "extra": np.zeros((4, 1), np.float32)},
    }
    with ThreadPoolExecutor(2) as pool:
        for words, arrays in bad.items():
            beside = pool.submit(Client.of(server, protocol).ask, "tiny", pixels=PIXELS)
            given, message = client.refusal("tiny", **arrays)
            assert (given, words in message) == (status, True), message
            assert np.array_equal(beside.result().as_numpy("logits"), alone)


def test_overload_is_answered_with_back_pressure(server: RunningServer) -> None:
    from tritonclient.utils import InferenceServerException

    client, pixels = Client.of(server, "grpc"), np.concatenate([PIXELS] * 2)
    alone = client.ask("narrow", pixels=pixels).as_numpy("logits")
    refusals, answers = [], []

    def ask(number: int) -> None:
        try:
            answers.append(client.ask("narrow", pixels=pixels).as_numpy("logits"))
        except InferenceServerException as error:
            refusals.append((error.status(), error.message()))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))
    assert refusals, "64 requests at a time of which 2 may wait"
    assert answers
    assert {status for status, _ in refusals} == {"StatusCode.UNAVAILABLE"}
    assert all("maximum queue size" in message for _, message in refusals)
    assert all(np.array_equal(answer, alone) for answer in answers)
    # And after it everything is as before.
    assert np.array_equal(client.ask("narrow", pixels=pixels).as_numpy("logits"), alone)


def test_tokens_and_macs_are_among_the_metrics(server: RunningServer) -> None:
    client = Client.of(server, "grpc")
    before = counters(server)
    result = client.ask("tiny", pixels=PIXELS)
    after = counters(server)
    labels = 'model="tiny",version="1"'
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown[f"dovit_images_total{{{labels}}}"] == 4
    assert grown[f"dovit_gmacs_actual_total{{{labels}}}"] == pytest.approx(result.as_numpy("gmacs_actual").sum())
    stage = 'model="tiny",stage="1",version="1"'
    assert grown[f"dovit_tokens_total{{{stage}}}"] == result.as_numpy("kept")[:, 1].sum()


def test_the_snippet_of_the_docs_runs(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save("street.jpg")
    (block,) = blocks(ROOT / "docs" / "serving.md", "python")
    exec(compile(block.replace("localhost:8000", server.http).replace("road-small", "tiny"), "serving.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[[21 ")


def counters(server: RunningServer) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in server.metrics_text().splitlines() if line.startswith("dovit_")]
    return {name: float(value) for name, value in lines}


def with_other_thresholds(bundle: Path, copy: Path) -> Path:
    """The bundle with 0.5 as its own thresholds."""
    shutil.copytree(bundle, copy)
    manifest = Manifest.from_json((copy / MANIFEST).read_bytes())
    defaults = manifest.defaults.model_copy(update={"thresholds": ((0.5,) * 5,) * 2})
    (copy / MANIFEST).write_text(manifest.model_copy(update={"defaults": defaults}).to_json())
    return copy


@pytest.mark.slow
def test_a_bundle_is_swapped_without_a_dropped_request(
    server: RunningServer, repository: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    newer = with_other_thresholds(tiny_bundle_path, tmp_path / "newer.dovit")
    client, stop = Client.of(server, "grpc"), threading.Event()
    with Session(tiny_bundle_path, threads=1) as old, Session(newer, threads=1) as new:
        answers = [session.run(PIXELS)[0] for session in (old, new)]
    seen: list[int] = []

    def ask_on() -> None:
        while not stop.is_set():
            logits = client.ask("tiny", pixels=PIXELS).as_numpy("logits")
            seen.append([np.array_equal(logits, answer) for answer in answers].index(True))

    def until_new() -> None:
        until = time.monotonic() + LOAD_S
        while (not seen or seen[-1] != 1) and time.monotonic() < until:
            time.sleep(0.02)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            add_to_repository(plan_of(newer, max_batch=None), repository)
            client.calls.load_model("tiny")
            until_new()
            # Side by side: who asks for a version gets it.
            for version, answer in zip("12", answers, strict=True):
                assert np.array_equal(client.ask("tiny", version=version, pixels=PIXELS).as_numpy("logits"), answer)
            shutil.rmtree(repository / "tiny" / "1")
            client.calls.load_model("tiny")
            time.sleep(0.2)
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert {0, 1} == set(seen)
    assert seen[-1] == 1


@pytest.mark.slow
def test_a_killed_server_answers_again_and_2000_mixed_requests_have_no_error(
    tiny_repository: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    flags = ("--model-control-mode=explicit", "--load-model=tiny")
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    with running_server(tiny_repository, tmp_path / "first", flags=flags) as server:
        check_mixed(server, tiny_bundle_path, requests=2, at_once=1)
        server.kill()
    with running_server(tiny_repository, tmp_path / "second", flags=flags) as server:
        check_mixed(server, tiny_bundle_path, requests=2000, at_once=8)


@pytest.mark.slow
def test_a_server_without_the_backend_serves_the_others_and_says_so(tiny_repository: Path, tmp_path: Path) -> None:
    # Nor does it need the server's metrics.
    flags = ("--exit-on-error=false", "--allow-metrics=false")
    with running_server(tiny_repository, tmp_path, flags=flags) as server:
        client = Client.of(server, "http")
        (merged,) = [row for row in client.calls.get_model_repository_index() if row["name"] == "tiny-merged"]
        assert "unable to find backend library for backend 'onnxruntime'" in merged["reason"]
        assert client.ask("tiny", pixels=PIXELS).as_numpy("kept").shape == (4, 3)


@pytest.mark.slow
def test_versions_appear_and_go_by_polling(tiny_repository: Path, tiny_bundle_path: Path, tmp_path: Path) -> None:
    models, scratch = tmp_path / "models", tmp_path / "scratch"
    shutil.copytree(tiny_repository / "tiny", models / "tiny")
    scratch.mkdir()
    newer = with_other_thresholds(tiny_bundle_path, tmp_path / "newer.dovit")
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with running_server(models, scratch, flags=flags) as server, Session(newer, threads=1) as session:
        client, answer = Client.of(server, "grpc"), session.run(PIXELS)[0]
        add_to_repository(plan_of(newer, max_batch=None), models)
        until = time.monotonic() + LOAD_S
        while not np.array_equal(client.ask("tiny", pixels=PIXELS).as_numpy("logits"), answer):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert json.loads((models / "tiny" / "2" / "settings.json").read_text())["engine"] == "onnxruntime"
