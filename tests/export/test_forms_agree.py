"""Rotary positions, queries, what answers for a stopped token and what is seen of it, in every form of a graph: fast,
int8, OpenVINO's, TensorRT's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.network import stages_from_model
from dovit_deploy.runtime.session import Session
from tests.bundles import export_tiny, int8_copy
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels, tiny_spec, tiny_state

SPECS = {
    "rotary": tiny_spec(
        head="linear",
        gate="linear",
        gates=(1, 2),
        depth=3,
        width=32,
        size=(70, 120),
        extra_tokens=5,
        rotary=True,
        mlp="swiglu",
    ),
    "queries": tiny_spec(
        head="query", gate="linear", gates=(1, 2), depth=5, size=(70, 120), extra_tokens=5, answer="lens"
    ),
    "gates answer": tiny_spec(
        head="linear", gate="linear", gates=(1, 2), depth=3, size=(70, 120), extra_tokens=5, taps=(1,), answer="gate"
    ),
    "pooled": tiny_spec(
        head="linear",
        gate="linear",
        gates=(1, 2),
        depth=3,
        width=32,
        size=(70, 120),
        extra_tokens=5,
        rotary=True,
        taps=(1,),
        answer="gate",
        context="pooled",
        aggregate_rate=1.0,
    ),
}
SPEC = SPECS["rotary"]
PIXELS = tiny_pixels(SPEC.size, 3).numpy()


# Where there are pooled keys gates answer, too.
ALONE = pytest.param("gates answer", marks=pytest.mark.exhaustive)
NAMES = ["rotary", ALONE, "pooled", pytest.param("queries", marks=pytest.mark.exhaustive)]


@dataclass(frozen=True)
class Made:
    """A bundle, and what PyTorch answers at each of the patterns."""

    bundle: Bundle
    wanted: list[np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Exports the network called so when it is first asked for."""
    folder = tmp_path_factory.mktemp("bundles")

    @cache
    def make(name: str) -> Made:
        bundle = export_tiny(SPECS[name], folder / f"{name}.dovit", seed=2)[0]
        with Session(bundle, engine="torch") as session:
            return Made(bundle, answers(session))

    return make


@pytest.fixture
def bundle(made: Callable[[str], Made]) -> Bundle:
    """The one with rotary positions."""
    return made("rotary").bundle


def patterns() -> list[list[np.ndarray]]:
    """Nothing, about half, about everything and everything stopped, each gate's grid of what runs on."""
    draw = np.random.default_rng(1).random((2, *SPEC.grid))
    return [[draw[0] < share, (draw[0] < share) & (draw[1] < share)] for share in (1.0, 0.6, 0.1, 0.0)]


def answers(session: Session) -> list[np.ndarray]:
    return [session.run(PIXELS, keep=keep)[0] for keep in patterns()]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_engines_agree_whatever_is_kept(made: Callable[[str], Made], name: str, engine: str) -> None:
    with Session(made(name).bundle, engine=engine, threads=1) as session:
        for got, want in zip(answers(session), made(name).wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_where_nothing_stops_gates_answer_nothing(made: Callable[[str], Made], engine: str) -> None:
    """The answer is then the dense network's, bit for bit."""
    with Session(made("gates answer").bundle, engine=engine, threads=1) as session:
        np.testing.assert_array_equal(session.run(PIXELS, keep=patterns()[0])[0], session.run(PIXELS, dense=True)[0])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_where_nothing_stops_no_pooled_key_is_seen(made: Callable[[str], Made], engine: str) -> None:
    with Session(made("pooled").bundle, engine=engine, threads=1) as session:
        found, dense = session.run(PIXELS, keep=patterns()[0])[0], session.run(PIXELS, dense=True)[0]
        np.testing.assert_allclose(found, dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "precision", "bucket", "tolerance"),
    [
        pytest.param("rotary", "fp32", None, 1e-4, marks=pytest.mark.exhaustive),
        ("rotary", "fp32", 7, 1e-4),
        ("rotary", "fp16", 7, 3e-2),
        pytest.param("gates answer", "fp16", 7, 3e-2, marks=pytest.mark.exhaustive),
        ("pooled", "fp32", 7, 1e-4),
        ("pooled", "fp16", 7, 3e-2),
        pytest.param("queries", "fp32", 7, 1e-4, marks=pytest.mark.exhaustive),
        pytest.param("queries", "fp16", 7, 3e-2, marks=pytest.mark.exhaustive),
    ],
)
def test_tensorrts_forms_agree(
    made: Callable[[str], Made], tmp_path: Path, name: str, precision: str, bucket: int | None, tolerance: float
) -> None:
    bundle = made(name).bundle
    backend = DerivedBackend(bundle, tmp_path / "form", precision=precision, plugins=True, bucket=bucket)
    with Session(bundle, backend=backend) as session:
        for got, want in zip(answers(session), made(name).wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["rotary", ALONE, "pooled"])
def test_the_merged_graph_decides_as_the_stages_do(made: Callable[[str], Made], name: str) -> None:
    bundle = made(name).bundle
    extra = bundle.manifest.spec.extra_tokens
    thresholds = np.full((2, SPEC.classes), 0.7, np.float32)
    with Session(bundle, engine="torch") as session:
        want, report = session.run(PIXELS, thresholds=0.7)
    for form in ("merged.onnx", "merged.ort.onnx"):
        graph = onnxruntime.InferenceSession(str(bundle.path / form))
        feed = {"pixels": PIXELS, "thresholds": thresholds, "floor": np.zeros((), np.float32)}
        logits, kept = graph.run(["logits", "kept"], feed)
        assert tuple(kept) == report.kept and extra < kept[-1] < SPEC.patches
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["onnx", "ort.onnx"])
def test_a_permuted_index_permutes_the_answers_alike(bundle: Bundle, form: str) -> None:
    """Rows of the tables go with the tokens, not with where these stand in the sequence."""
    draw = np.random.default_rng(2)
    tokens = draw.standard_normal((SPEC.tokens, SPEC.width)).astype(np.float32)
    running = SPEC.extra_tokens + draw.permutation(SPEC.patches)[:20]
    indices = [np.concatenate([np.arange(SPEC.extra_tokens), some]) for some in (np.sort(running), running)]
    stage = onnxruntime.InferenceSession(str(bundle.path / f"stage1.{form}"))
    limits = {"thresholds": np.ones(SPEC.classes, np.float32), "floor": np.zeros((), np.float32)}
    sorted_out, permuted_out = (
        stage.run(["tokens_out"], {"tokens": tokens, "index": index, **limits})[0] for index in indices
    )
    np.testing.assert_allclose(permuted_out, sorted_out, rtol=0, atol=1e-5)
    model = model_from_spec(SPEC, tiny_state(SPEC, 2))
    eager = stages_from_model(model)[1].advance(torch.from_numpy(tokens), torch.from_numpy(indices[1]))
    np.testing.assert_allclose(permuted_out, eager.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_int8_computes_the_layers_around_what_is_new(made: Callable[[str], Made], tmp_path: Path, name: str) -> None:
    copy = int8_copy(made(name).bundle.path, tmp_path / "int8.dovit")
    for engine in ("onnxruntime", "openvino"):
        with Session(copy, engine=engine, precision="int8", threads=1) as session:
            for got, want in zip(answers(session), made(name).wanted, strict=True):
                assert np.abs(got - want).mean() < 0.1 * np.abs(want).mean()


def test_graphs_share_the_tables_and_each_form_has_its_own_operators(bundle: Bundle) -> None:
    for path in bundle.path.glob("*.onnx"):
        graph = onnx.load(str(path), load_external_data=False).graph
        outside = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
        assert {"rotary.cosines", "rotary.sines"} <= outside and "rotary.periods" not in outside
        operators = {node.op_type for node in graph.node}
        assert ("RotaryEmbedding" in operators) == path.name.endswith(".ort.onnx")
        assert "GatherND" not in operators
