"""The padded form in ONNX Runtime: padding never shows, whichever positions it has, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.graphs.padding import VALID, padding, weighted_sums
from dovit_deploy.graphs.passes import applied
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.trace import settings_from_images, trace_from_session
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels


@pytest.fixture(scope="module", params=["tiny_bundle_path", "setr_bundle_path"])
def sessions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    bundle = Bundle.open(request.getfixturevalue(request.param))
    backend = DerivedBackend(bundle, tmp_path_factory.mktemp("padded") / "x", precision="fp32", plugins=False)
    with Session(bundle) as plain, Session(bundle, backend=backend) as padded:
        yield plain, padded


@pytest.mark.parametrize("bucket", [None, 2, 8, 1000])
def test_any_bucket_gives_what_exact_counts_give(sessions, bucket: int | None) -> None:
    plain, padded = sessions
    set_bucket(padded, bucket)
    pixels = tiny_pixels(plain.bundle.manifest.spec.size, seed=3).numpy()
    for setting in settings_from_images(plain, [("pixels", pixels)]):
        want, got = trace_from_session(plain, setting), trace_from_session(padded, setting)
        for gate in range(len(want.keep)):
            assert np.array_equal(want.keep[gate], got.keep[gate])
            assert np.array_equal(want.label[gate], got.label[gate])
            np.testing.assert_allclose(want.confidence[gate], got.confidence[gate], atol=1e-5)
            np.testing.assert_allclose(want.tokens[gate], got.tokens[gate], atol=1e-4)
        np.testing.assert_allclose(want.logits, got.logits, atol=1e-4)


@given(data=st.data())
@settings(max_examples=15, derandomize=True, deadline=None)
def test_padding_does_not_show(sessions, data: st.DataObject) -> None:
    """Any running tokens, none but the class token included, and any padding, in any order."""
    _, padded = sessions
    spec = padded.bundle.manifest.spec
    patches = data.draw(st.permutations(range(1, spec.tokens)))
    running = data.draw(st.integers(0, spec.patches))
    size = data.draw(st.integers(running, spec.patches))
    index = np.asarray([0, *sorted(patches[:running])])
    tokens = np.random.default_rng(running).normal(size=(spec.tokens, spec.width)).astype(np.float32)
    engine = padded.engine("stage1")
    feed = {"tokens": tokens, "thresholds": np.full(spec.classes, 0.7, np.float32), "floor": np.asarray(0, np.float32)}
    names = {port.name for port in engine.session.get_inputs()}
    feed = {name: value for name, value in feed.items() if name in names}
    valid = np.asarray(len(index), np.int64)
    want = engine.session.run(None, {**feed, "index": index, VALID: valid})
    longer = np.asarray([*index, *patches[running:size]])
    got = engine.session.run(None, {**feed, "index": longer, VALID: valid})
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def set_bucket(session: Session, bucket: int | None) -> None:
    for number in range(session.bundle.stages):
        session.engine(f"stage{number}").bucket = bucket  # type: ignore[attr-defined]


def test_a_graph_without_index_comes_back_as_it_is(tiny_bundle_path) -> None:
    portable = ir.load(tiny_bundle_path / "stage0.onnx")
    before = ir.to_proto(portable).SerializeToString()
    assert not padding(portable).modified
    assert ir.to_proto(portable).SerializeToString() == before


def test_the_model_given_is_left_alone(tiny_bundle_path) -> None:
    portable = ir.load(tiny_bundle_path / "stage1.onnx")
    before = ir.to_proto(portable).SerializeToString()
    padded = applied(portable, [weighted_sums, padding])
    assert padded.modified
    assert ir.to_proto(portable).SerializeToString() == before
    assert [value.name for value in padded.model.graph.inputs] == ["tokens", "index", "thresholds", "floor", VALID]


def test_no_product_with_a_vector_is_left(tiny_bundle_path) -> None:
    portable = ir.load(tiny_bundle_path / "stage1.onnx")
    changed = applied(portable, [weighted_sums])
    assert changed.modified
    operators = [node.op_type for node in changed.model.graph]
    assert operators.count("MatMul") == [node.op_type for node in portable.graph].count("MatMul") - 1
    assert not applied(changed.model, [weighted_sums]).modified
