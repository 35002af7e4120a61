"""The table at equal MACs, on a tiny bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.adapt.comparison import ComparedWith, beside, table_of
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import CurvePoint, Prediction
from dovit_deploy.calibrate.images import SplitImages
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.session import Session
from tests.train.tiny_folder import write_folder


def point(saved: float, *values: float) -> CurvePoint:
    return CurvePoint(thresholds=values, predicted=Prediction(flops_saved=saved, risk=0.0))


CURVE = (point(0.1, 0.99, 0.9), point(0.3, 0.9, 0.8), point(0.6, 0.0, 0.0))


@pytest.mark.parametrize(
    ("saved", "values"), [(0.05, (0.99, 0.9)), (0.1, (0.99, 0.9)), (0.2, (0.9, 0.8)), (0.5, None), (0.7, None)]
)
def test_the_most_cautious_thresholds_that_save_as_much(saved: float, values: tuple[float, ...] | None) -> None:
    assert beside(CURVE, saved) == values


def test_every_way_is_set_beside_the_rule(tiny_bundle_path: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", images=10, size=(56, 72), splits=("val",))
    images = SplitImages(dataset_from_path(root, "val"), name="data", split="val")
    bundle = Bundle.open(tiny_bundle_path)
    spec, advanced = bundle.manifest.spec, []
    curve = [point(0.0, 0.99, 0.99), point(0.05, 0.8, 0.6)]
    with Session(bundle, threads=1) as session:
        against = ComparedWith((0.7, 0.7), curve, (session,), None)
        table = table_of(session, images, range(1, 10), against, advance=lambda: advanced.append(1))
    assert table.images == len(advanced) == 9 and table.labelled
    rule, random, first, second, small = table.ways
    assert [way.kind for way in table.ways] == ["rule", "random", "static", "static", "smaller-input"]
    assert random.gmacs == pytest.approx(rule.gmacs)
    assert random.rule is not None and random.rule.thresholds == (0.7, 0.7)
    # A network that ends at a gate has none before it, whose MACs the replay paid for.
    (gate, *_), tokens = spec.gates, spec.tokens
    alone = spec.model_copy(update={"gates": (spec.gates[1],)})
    assert second.gmacs == pytest.approx(cost_model(alone).actual((tokens, spec.extra_tokens)).total / 1e9)
    assert first.gmacs < second.gmacs
    assert first.name == f"everything at gate {gate.layer}"
    # The same network at the same size is dense.
    assert small.agreement == 1.0 and small.flops_saved == 0.0 and small.drop == 0.0
    assert small.rule is not None and small.rule.thresholds == (0.99, 0.99)
    assert small.rule.gain == pytest.approx(table.ways[4].rule.miou - table.dense_miou)
    for way in table.ways:
        assert way.miou is not None and way.drop == pytest.approx(table.dense_miou - way.miou)
        assert way.flops_saved == pytest.approx(1 - way.gmacs / table.dense_gmacs)
    assert 0 < table.confidence < 1


def test_where_nothing_stops_there_is_no_rule(tiny_bundle_path: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", images=2, size=(56, 72), splits=("val",))
    images = SplitImages(dataset_from_path(root, "val"), name="data", split="val")
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        table = table_of(session, images, [0], ComparedWith.of(None, smaller=(), left_out="no"), advance=lambda: None)
    assert table.rule is None and table.left_out == "no"
    assert [way.kind for way in table.ways] == ["static", "static"]
    assert all(way.rule is None and way.chosen is None for way in table.ways)
    assert np.isfinite(table.confidence)
