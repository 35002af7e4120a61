"""Evaluating a classifier, with a fake session: every number of the report follows from the answers, and is paired."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.measure.classifier_evaluation import check_picture_classes, measure_pictures
from dovit_deploy.measure.classifier_report import report_from_pictures
from dovit_deploy.measure.datasets import labelled_pictures_from_path
from dovit_deploy.runtime.classifier import Classifier
from tests.fakes import FakeClassifierSession, FakeSession, fake_classifier_manifest
from tests.measure.picture_folder import write_pictures

FOLDERS = ("a", "b", "c", "d", "e", "f", "g")


class NoDenseSpec(VisionTransformerSpec):
    """Of a network that has no dense form."""

    @property
    def has_dense(self):
        return False


class WaveringSession(FakeClassifierSession):
    """Dense and dynamic runs answer differently: the dynamic one sees its pixels darker."""

    backend = SimpleNamespace(name="fake", precision="fp32")

    def run_one(self, pixels, *, thresholds=None, floor=None, keep=None, dense=False):
        if dense and not self.bundle.manifest.spec.has_dense:
            raise UsageError("no dense network of its weights")
        shift = np.float32(0.0 if dense else 0.4)
        return super().run_one(pixels - shift, thresholds=thresholds, dense=dense)


def without_dense(manifest):
    return manifest.model_copy(update={"spec": NoDenseSpec(**manifest.spec.model_dump())})


@pytest.fixture
def data(tmp_path):
    return labelled_pictures_from_path(write_pictures(tmp_path / "set", folders=FOLDERS, images=4), "val")


def evaluated(session, data, *, smaller=(), controls=False, thresholds=None):
    told = []
    measured = measure_pictures(session, data, thresholds=thresholds, smaller=smaller, advance=told.append)
    report = report_from_pictures(
        measured,
        session,
        dataset="set",
        split="val",
        thresholds=np.zeros((0, 7), dtype=np.float32),
        controls=controls,
        smaller=smaller,
    )
    assert told == [row.flops_saved for row in report.per_image]
    return report


def test_every_number_follows_from_the_answers(data):
    session = WaveringSession()
    report = evaluated(session, data)
    classifier = Classifier(session)
    pictures = [data.picture(number) for number in range(len(data))]
    dense, dynamic = ([classifier.predict(p.rgb, dense=way) for p in pictures] for way in (True, False))
    right = {
        name: np.array(
            [p.label in [entry.id for entry in answer.classes[:top]] for p, answer in zip(pictures, way, strict=True)]
        )
        for name, way, top in (("d1", dense, 1), ("d5", dense, 5), ("s1", dynamic, 1), ("s5", dynamic, 5))
    }
    assert report.dense.top1 == pytest.approx(100 * right["d1"].mean())
    assert report.dense.top5 == pytest.approx(100 * right["d5"].mean())
    assert report.dynamic.top1 == pytest.approx(100 * right["s1"].mean())
    assert report.dynamic.top5 == pytest.approx(100 * right["s5"].mean())
    # The two runs differ, or nothing of this would be seen.
    assert report.dynamic.drop == pytest.approx(report.dense.top1 - report.dynamic.top1) != 0
    assert report.dynamic.top5_drop == pytest.approx(report.dense.top5 - report.dynamic.top5)
    same = np.mean([a.label.id == b.label.id for a, b in zip(dense, dynamic, strict=True)])
    assert report.dynamic.agreement == pytest.approx(100 * same) and 0 < same < 1
    low, high = report.dynamic.drop_interval
    assert low <= report.dynamic.drop <= high
    assert report.dynamic.gmacs == pytest.approx(np.mean([answer.tokens.gmacs_actual for answer in dynamic]))
    assert report.dynamic.flops_saved == pytest.approx(1 - report.dynamic.gmacs / report.dense.gmacs)
    assert report.controls is None and report.thresholds == []
    assert (report.images, report.bootstrap.blocks, report.bootstrap.images_per_block) == (28, 28, 1)


def test_a_row_for_every_picture(data):
    report = evaluated(WaveringSession(), data)
    assert [row.image for row in report.per_image] == list(data.stems)
    assert [row.label for row in report.per_image] == [number for number in range(7) for _ in range(4)]
    row = report.per_image[5]
    assert len(row.top_dense) == len(row.top_dynamic) == 5
    assert row.tokens.kept[0] == row.tokens.total == 17
    assert row.flops_saved == pytest.approx(1 - row.gmacs.actual / row.gmacs.dense)
    hits = [row.top_dynamic[0] == row.label for row in report.per_image]
    assert report.dynamic.top1 == pytest.approx(100 * np.mean(hits))
    tokens = report.dynamic.spread["tokens"]
    assert len(tokens) == 3 and tokens[0].min == tokens[0].max == 17


def test_without_a_dense_form_nothing_is_compared(data):
    session = WaveringSession(without_dense(fake_classifier_manifest()))
    report = evaluated(session, data, controls=True)
    assert report.dense is None and not any(call["dense"] for call in session.calls)
    dynamic = report.dynamic
    assert dynamic.drop is dynamic.drop_interval is dynamic.top5_drop is dynamic.agreement is None
    # The MACs of a dense network of this architecture are known all the same.
    assert 0 < dynamic.flops_saved < 1 and dynamic.top1 > 0
    assert all(row.top_dense is None for row in report.per_image)
    assert report.controls.smaller_input == () and report.controls.random is None


def test_a_smaller_input_is_a_control(data):
    small = WaveringSession(fake_classifier_manifest(size=(32, 32), shorter=36))
    report = evaluated(WaveringSession(), data, smaller=(small,), controls=True)
    (entry,) = report.controls.smaller_input
    assert entry.size == (32, 32) and entry.engine == "fake"
    assert all(call["dense"] for call in small.calls) and len(small.calls) == len(data)
    assert entry.drop == pytest.approx(report.dense.top1 - entry.top1)
    assert report.controls.gate_efficiency is None


def test_thresholds_are_handed_on(data):
    session = WaveringSession()
    measure_pictures(session, data, thresholds=0.5, advance=lambda saved: None)
    assert {call["thresholds"] for call in session.calls if not call["dense"]} == {0.5}


def test_a_fault_in_the_last_picture_is_found_before_the_first_is_run(tmp_path):
    root = write_pictures(tmp_path / "set", folders=FOLDERS, images=1)
    (root / "val" / "g" / "g_0.png").write_bytes(b"no picture")
    session = WaveringSession()
    with pytest.raises(DatasetError, match=r"g_0\.png: cannot be decoded"):
        evaluated(session, labelled_pictures_from_path(root, "val"))
    assert session.calls == []


def test_classes_must_be_the_bundles(tmp_path, data):
    manifest = fake_classifier_manifest(classes=7)
    check_picture_classes(data, manifest)
    few = labelled_pictures_from_path(write_pictures(tmp_path / "few", images=1), "val")
    with pytest.raises(DatasetError, match=r"order of the folders in .*val gives 3 classes, the bundle fake has 7"):
        check_picture_classes(few, manifest)
    root = write_pictures(tmp_path / "turned", folders=FOLDERS, images=1)
    names = [f"Class {number}" for number in (1, 0, 2, 3, 4, 5, 6)]
    lines = [f"{folder} {name}" for folder, name in zip(FOLDERS, names, strict=True)]
    (root / "synset_words.txt").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"class 0 is 'class 1' by .*synset_words\.txt and 'class 0' in the bundle"):
        check_picture_classes(labelled_pictures_from_path(root, "val"), manifest)


def test_a_segmentation_bundle_is_no_classifier(data):
    with pytest.raises(UsageError, match="task is segmentation"):
        measure_pictures(FakeSession(), data, thresholds=None, advance=lambda saved: None)
