"""int8 bundles: they decide and answer nearly as fp32 does, in every graph and engine, and smoothing is why."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from dovit_deploy import Session
from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import FLOOR, KEPT, LOGITS, MERGED, PIXELS, THRESHOLDS
from dovit_deploy.errors import CheckError, UsageError
from dovit_deploy.export import quantise, sensitivity
from dovit_deploy.export.quantise import Quantisation, QuantisePlan, Unit
from dovit_deploy.export.sensitivity import Cost, UnitTrial, units_within
from dovit_deploy.export.statistics import Observed
from dovit_deploy.progress import Unseen
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.trace import gate_parity, settings_from_images, trace_from_session
from tests.bundles import int8_copy
from tests.datasets.labelled_folder import noise
from tests.tiny import tiny_pixels


@pytest.fixture(scope="module")
def whole(int8_bundle_path: Path) -> Bundle:
    return Bundle.open(int8_bundle_path)


def pixels_of(bundle: Bundle, seed: int = 3) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed=seed).numpy()


def apart(want: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the difference, as a share of the spread of what is wanted."""
    return float(np.sqrt(np.square(want - got).mean()) / want.std())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_answers_are_near_those_of_fp32(whole: Bundle, engine: str) -> None:
    pytest.importorskip(engine)
    with Session(whole) as full, Session(whole, engine=engine, precision="int8", threads=1) as session:
        assert session.backend.precision == "int8"
        for dense in (True, False):
            want, expected = full.run(pixels_of(whole), dense=dense)
            keep = None if dense else list(expected.keep)
            got, report = session.run(pixels_of(whole), keep=keep, dense=dense)
            assert 0 < apart(want, got) < 0.15
            assert report.kept == expected.kept


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_decisions_differ_only_where_confidences_explain_it(whole: Bundle, engine: str) -> None:
    pytest.importorskip(engine)
    extra = whole.manifest.spec.extra_tokens
    with Session(whole) as full, Session(whole, engine=engine, precision="int8", threads=1) as session:
        for setting in settings_from_images(full, [("image", pixels_of(whole))]):
            trace = trace_from_session(full, setting)
            replayed = trace_from_session(session, setting, replay=trace.index)
            for gate in range(len(trace.keep)):
                found = gate_parity(trace, replayed, gate, setting, extra, limit=1.0)
                assert found.unexplained == 0
                assert 0 < found.confidence_error < 0.2


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_any_number_of_tokens_runs(whole: Bundle, engine: str) -> None:
    pytest.importorskip(engine)
    spec = whole.manifest.spec
    with Session(whole) as full, Session(whole, engine=engine, precision="int8", threads=1) as session:
        for left in (0, 1, spec.patches):
            keep = [(np.arange(spec.patches) < left).reshape(spec.grid)] * len(spec.gates)
            want, _ = full.run(pixels_of(whole), keep=keep)
            got, report = session.run(pixels_of(whole), keep=keep)
            assert report.kept[1:] == (spec.extra_tokens + left,) * len(spec.gates)
            assert apart(want, got) < 0.2


def test_staged_and_merged_compute_the_same(whole: Bundle) -> None:
    settings = RunSettings.resolve(whole.manifest)
    with Session(whole, precision="int8", threads=1) as session:
        want, report = session.run(pixels_of(whole))
        inputs = {PIXELS: pixels_of(whole), THRESHOLDS: settings.thresholds, FLOOR: np.asarray(settings.floor)}
        merged = session.engine(MERGED).run(inputs)
    np.testing.assert_array_equal(merged[KEPT], report.kept)
    np.testing.assert_allclose(merged[LOGITS], want, atol=1e-5)


def test_an_image_in_a_batch_gives_what_it_gives_alone(whole: Bundle) -> None:
    batch = np.concatenate([pixels_of(whole, 3), 5 * pixels_of(whole, 4)])
    with Session(whole, precision="int8", threads=1) as session:
        together, _ = session.run(batch)
        for number, pixels in enumerate(batch):
            np.testing.assert_array_equal(session.run(pixels[None])[0][0], together[number])


def test_a_bundle_without_the_form_names_the_line_that_makes_it(tiny_bundle_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no int8 form, only fp32; .* --precision fp32,int8 --calibration"):
        Session(tiny_bundle_path, precision="int8")


def test_a_model_whose_counts_are_fixed(classifier_bundle_path: Path, tmp_path: Path) -> None:
    bundle = int8_copy(classifier_bundle_path, tmp_path / "evo.dovit")
    with Session(bundle) as full, Session(bundle, precision="int8", threads=1) as session:
        assert apart(*(one.run(pixels_of(bundle), dense=True)[0] for one in (full, session))) < 0.3
        assert session.run(pixels_of(bundle))[1].kept == full.run(pixels_of(bundle))[1].kept


def test_a_model_without_dense_form(pooling_bundle_path: Path, tmp_path: Path) -> None:
    bundle = int8_copy(pooling_bundle_path, tmp_path / "pooler.dovit")
    with Session(bundle) as full, Session(bundle, precision="int8", threads=1) as session:
        assert apart(*(one.run(pixels_of(bundle))[0] for one in (full, session))) < 0.3


READERS = ("query.weight", "key.weight", "value.weight", "expand.weight")
"""What reads a norm."""


def loud(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What changes of `weights` where one channel of every norm is 300 times as large, and what reads it as small."""
    changed = {}
    for name, tensor in weights.items():
        if name.startswith("blocks.") and ".norm" in name:
            changed[name] = tensor * np.where(np.arange(len(tensor)) == 3, 300, 1).astype(np.float32)
        if name.startswith("blocks.") and name.endswith(
            ("query.weight", "key.weight", "value.weight", "expand.weight")
        ):
            changed[name] = tensor / np.where(np.arange(tensor.shape[1]) == 3, 300, 1).astype(np.float32)
    return changed


def test_a_loud_channel_costs_little_where_it_is_smoothed(dense_bundle_path: Path, tmp_path: Path, monkeypatch) -> None:
    """The same network, as DINO's are; one range for all channels would leave the others few bits."""
    changed = loud(safetensors.numpy.load_file(dense_bundle_path / WEIGHTS))
    errors = []
    for smoothing in (True, False):
        if not smoothing:
            monkeypatch.setattr(
                quantise, "_divisor", lambda one, inputs, weights: np.ones_like(inputs[one.readers[0]].largest)
            )
        bundle = int8_copy(dense_bundle_path, tmp_path / f"loud{smoothing}.dovit", changed=changed)
        with Session(bundle) as full, Session(bundle, precision="int8", threads=1) as session:
            errors.append(apart(*(one.run(pixels_of(bundle))[0] for one in (full, session))))
    assert errors[0] < 0.05 < 3 * errors[0] < errors[1]


class FakeTrial:
    """Units whose costs add up: a tenth for those named, next to nothing for the others."""

    def __init__(self, bad: tuple[str, ...]) -> None:
        self.bad = bad

    def cost(self, units: Collection[Unit]) -> Cost:
        count = sum(unit.layers[0] in self.bad for unit in units)
        return Cost(0.1 * count, count + 0.001 * len(units))


def test_what_one_token_alone_holds_is_within_the_range() -> None:
    """As a class token's massive activation: one value of hundreds of thousands, and nothing is right without it."""
    tokens = np.random.default_rng(0).normal(size=(911, 384)).astype(np.float32)
    tokens[0, 7] = 40.0
    grid = -tokens.T.reshape(1, 384, 1, 911)
    seen = Observed()
    seen.add(["a.weight", "b.weight"], tokens)
    seen.add(["conv.weight"], grid)
    seen.add(["a.weight", "b.weight"], tokens[:0])
    assert seen.layers["a.weight"].range_over(None) == (tokens.min(), 40.0)
    assert seen.layers["conv.weight"].range_over(None) == (-40.0, -tokens.min())
    np.testing.assert_array_equal(seen.layers["b.weight"].largest, np.abs(tokens).max(axis=0))
    # What smooths the input divides the range, too.
    divisor = np.where(np.arange(384) == 7, 20.0, 1.0).astype(np.float32)
    assert seen.layers["a.weight"].range_over(divisor) == (tokens.min(), (tokens / divisor).max())
    seen.add_result("query.weight", tokens)
    seen.add_result("query.weight", tokens[:0])
    assert seen.results["query.weight"] == (tokens.min(), 40.0)


def units(count: int) -> tuple[Unit, ...]:
    return tuple(Unit((f"layer{number}",), ()) for number in range(count))


@pytest.mark.parametrize(("bad", "left"), [((), 8), (("layer5",), 7), (("layer5", "layer1", "layer2"), 4)])
def test_the_worst_units_stay_in_fp32(bad: tuple[str, ...], left: int) -> None:
    kept = units_within(FakeTrial(bad), units(8), allowed=0.05, progress=Unseen())
    assert len(kept) == left
    assert not {unit.layers[0] for unit in kept} & set(bad)


def test_where_every_layer_costs_too_much_there_is_no_int8() -> None:
    bad = tuple(f"layer{number}" for number in range(4))
    with pytest.raises(CheckError, match=r"loses more than 0\.05 points .*--max-drop"):
        units_within(FakeTrial(bad), units(4), allowed=0.05, progress=Unseen())


def test_layers_that_are_left_out_are_read_in_fp32(dense_bundle_path: Path, tmp_path: Path, monkeypatch) -> None:
    """For real: with one unit in 8 bits the answer is nearer to fp32 than with all of them, and not equal to it."""
    errors = []
    for chosen in (1, None):
        monkeypatch.setattr(sensitivity, "units_within", lambda _, units, end=chosen, **more: units[:end])
        bundle = int8_copy(dense_bundle_path, tmp_path / f"{chosen}.dovit")
        with Session(bundle) as full, Session(bundle, precision="int8", threads=1) as session:
            errors.append(apart(*(one.run(pixels_of(bundle))[0] for one in (full, session))))
    assert 0 < errors[0] < errors[1]


def test_what_a_unit_costs_is_measured(dense_bundle_path: Path) -> None:
    bundle = Bundle.open(dense_bundle_path)
    images = [noise(bundle.manifest.spec.size, classes=5, seed=seed)[0] for seed in range(3)]
    made = Quantisation.observed(bundle, QuantisePlan(images, allowed=0.0).drive)
    trial = UnitTrial(bundle, made, [pixels_of(bundle)])
    one, every = trial.cost(made.units[:1]), trial.cost(made.units)
    assert trial.cost(()) == Cost(0.0, 0.0)
    assert 0 < one.distance < every.distance
    # Attention of each of the two blocks, and its two layers behind it.
    assert [len(unit.layers) for unit in made.units] == [4, 1, 1] * 2
    # Where labels have something to say they are asked, else the classes that change count.
    judged = UnitTrial(bundle, made, [pixels_of(bundle)], lost=lambda before, after: -1.5)
    assert judged.cost(made.units) == Cost(-1.5, every.distance)
    assert UnitTrial(bundle, made, [pixels_of(bundle)], lost=lambda before, after: None).cost(made.units) == every
