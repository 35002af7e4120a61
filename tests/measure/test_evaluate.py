"""Evaluation of a deployed bundle: the same numbers as counted by hand, and controls that do what they promise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.commands.evaluate import NO_DENSE, segmentation_lines
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.datasets.open import dataset_from_path, labelled_images_from_path
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.measure.controls import CONTROLS, Steering, gate_efficiency, oracle_keep, unlimited_oracle_keep
from dovit_deploy.measure.evaluate import ClassificationTally, EvalPlan, SegmentationTally, check_classes, evaluate
from dovit_deploy.measure.report import classification_report, segmentation_report
from dovit_deploy.runtime.classification import Classifier
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.datasets.class_folders import write_class_folders
from tests.datasets.labelled_folder import VOID, write_labelled
from tests.fakes import FakeClassifierSession, FakeSession, fake_classifier_manifest, fake_manifest

IMAGES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_labelled(tmp_path_factory.mktemp("data") / "set", images=IMAGES), "val")


def measured_with(
    session, data, *, thresholds=None, controls=False, smaller=(), exact=None, advance=lambda saved: None
):
    """What `evaluate` counts of a data set that suits the session's task, and the report on it."""
    manifest = session.bundle.manifest
    plan = EvalPlan("set", "val", RunSettings.resolve(manifest, thresholds=thresholds), CONTROLS if controls else None)
    if manifest.task == "classification":
        measured = evaluate(session, data, ClassificationTally, plan, smaller=smaller, exact=exact, advance=advance)
        return measured, classification_report(measured, session, plan)
    measured = evaluate(session, data, SegmentationTally, plan, smaller=smaller, exact=exact, advance=advance)
    return measured, segmentation_report(measured, session, plan)


def evaluated(path, data, *, engine="onnxruntime", **options):
    saved = []
    with Session(Bundle.open(path), engine=engine, threads=1) as session:
        measured, report = measured_with(session, data, advance=saved.append, **options)
    assert saved == [row.flops_saved for row in report.per_image]
    return measured, report


def plain_iou(data, maps, classes):
    """Per class, over the pixels of all images in one row."""
    true = np.concatenate([data.sample(number).label.ravel() for number in range(len(data))])
    called = np.concatenate([values.ravel() for values in maps])[true != IGNORE]
    true = true[true != IGNORE]
    shares = []
    for number in range(classes):
        union = ((true == number) | (called == number)).sum()
        shares.append(100 * ((true == number) & (called == number)).sum() / union if union else np.nan)
    return np.array(shares), 100 * (true == called).mean()


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path", "dense_bundle_path"])
def test_metrics_are_those_of_the_predictors_maps(request, fixture, data):
    path = request.getfixturevalue(fixture)
    _, report = evaluated(path, data)
    with Session(Bundle.open(path), threads=1) as session:
        predictor = Predictor(session)
        for dense, side in ((True, report.dense), (False, report.dynamic)):
            results = [predictor.predict(data.sample(number).rgb, dense=dense) for number in range(IMAGES)]
            iou, right = plain_iou(data, [result.class_map for result in results], 5)
            np.testing.assert_allclose([np.nan if v is None else v for v in side.iou.values()], iou)
            assert side.miou == pytest.approx(np.nanmean(iou))
            assert side.pixel_accuracy == pytest.approx(right)
            assert side.gmacs == pytest.approx(np.mean([result.tokens.gmacs_actual for result in results]))
    dynamic = report.dynamic
    assert dynamic.drop == pytest.approx(report.dense.miou - dynamic.miou)
    assert dynamic.flops_saved == pytest.approx(1 - dynamic.gmacs / report.dense.gmacs)
    losses = {name: report.dense.iou[name] - dynamic.iou[name] for name in dynamic.iou if dynamic.iou[name] is not None}
    assert dynamic.worst_class_drop == pytest.approx(max(losses.values()))
    assert losses[dynamic.worst_class] == max(losses.values())


def plain_agreement(wanted, given, classes):
    """Overall, along contours and by class, in percent, pixel by pixel."""
    same, near = [], []
    for first, second in zip(wanted, given, strict=True):
        height, width = first.shape
        for y in range(height):
            for x in range(width):
                around = first[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
                same.append((first[y, x], first[y, x] == second[y, x]))
                if (around != first[y, x]).any():
                    near.append(first[y, x] == second[y, x])
    by_class = [[equal for true, equal in same if true == number] for number in range(classes)]
    overall = 100 * np.mean([equal for _, equal in same])
    return overall, 100 * np.mean(near), [100 * np.mean(each) if each else None for each in by_class]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_lost_against_dense_fp32(int8_bundle_path, data, precision):
    bundle = Bundle.open(int8_bundle_path)
    with Session(bundle, threads=1) as full, Session(bundle, precision=precision, threads=1) as session:
        measured, report = measured_with(session, data, exact=None if precision == "fp32" else full)
        exactly, own = Predictor(full), Predictor(session)
        wanted = [exactly.predict(data.sample(number).rgb, dense=True).class_map for number in range(IMAGES)]
        given = [own.predict(data.sample(number).rgb).class_map for number in range(IMAGES)]
    against = report.against_fp32
    exact_iou, _ = plain_iou(data, wanted, 5)
    assert (against.engine, against.miou) == ("onnxruntime", pytest.approx(np.nanmean(exact_iou)))
    assert against.drop == pytest.approx(np.nanmean(exact_iou) - report.dynamic.miou)
    assert against.boundary_drop == pytest.approx(against.boundary_iou - report.dynamic.boundary_iou)
    overall, near, by_class = plain_agreement(wanted, given, 5)
    assert against.agreement == pytest.approx(overall)
    assert against.agreement_at_boundaries == pytest.approx(near)
    assert list(against.agreement_by_class.values()) == pytest.approx(by_class)
    for drop, interval in (
        (against.drop, against.drop_interval),
        (against.boundary_drop, against.boundary_drop_interval),
    ):
        assert interval[0] < interval[1]
        assert interval[0] - 5 < drop < interval[1] + 5
    if precision == "fp32":
        assert (against.drop, against.drop_interval) == (report.dynamic.drop, report.dynamic.drop_interval)
        assert measured.exact is measured.dense
    else:
        assert against.drop != report.dynamic.drop
        assert against.boundary_drop_interval != against.drop_interval


def test_without_fp32_beside_it_another_precision_is_compared_with_nothing(int8_bundle_path, data):
    with Session(Bundle.open(int8_bundle_path), precision="int8", threads=1) as session:
        assert measured_with(session, data)[1].against_fp32 is None


def test_the_rows_and_their_spread(tiny_bundle_path, data):
    _, report = evaluated(tiny_bundle_path, data)
    saved = [row.flops_saved for row in report.per_image]
    kept = np.array([row.tokens.kept for row in report.per_image])
    assert [row.image for row in report.per_image] == list(data.stems)
    assert (kept[:, 0] == [row.tokens.total for row in report.per_image]).all()
    assert len({tuple(row) for row in kept.tolist()}) > 1
    spread = report.dynamic.spread
    assert (spread["flops_saved"].min, spread["flops_saved"].max) == (min(saved), max(saved))
    assert spread["flops_saved"].p10 == pytest.approx(np.percentile(saved, 10))
    assert spread["flops_saved"].p90 == pytest.approx(np.percentile(saved, 90))
    assert [stage.mean for stage in spread["tokens"]] == pytest.approx(kept.mean(axis=0))
    cost = cost_model(Bundle.open(tiny_bundle_path).manifest.spec)
    for row in report.per_image:
        assert row.gmacs.actual == pytest.approx(cost.actual(row.tokens.kept).total / 1e9)
        assert row.gmacs.dense == pytest.approx(cost.dense().total / 1e9)


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
def test_controls_are_what_they_say(request, fixture, data):
    measured, report = evaluated(request.getfixturevalue(fixture), data, controls=True)
    controls, spec = report.controls, Bundle.open(request.getfixturevalue(fixture)).manifest.spec
    assert measured.controls["random"].kept == measured.dynamic.kept
    assert measured.controls["random"].gmacs == measured.dynamic.gmacs
    assert measured.controls["oracle"].kept == measured.dynamic.kept
    assert measured.controls["oracle"].gmacs == measured.dynamic.gmacs
    assert controls.oracle.flops_saved == report.dynamic.flops_saved
    assert measured.controls["oracle_unlimited"].kept != measured.dynamic.kept
    assert controls.gate_efficiency == gate_efficiency(
        rule=report.dynamic.miou, random=controls.random.miou, oracle=controls.oracle.miou
    )
    assert controls.random.flops_saved == report.dynamic.flops_saved
    windows = [kept[0] // spec.tokens for kept in measured.dense.kept]
    if fixture == "setr_bundle_path":
        assert max(windows) > 1
    stopped = [(count * spec.tokens, *[count * spec.extra_tokens] * len(spec.gates)) for count in windows]
    assert measured.controls["first_gate"].kept == stopped
    assert controls.first_gate.flops_saved > max(controls.random.flops_saved, 0)
    for control in (controls.random, controls.first_gate, controls.oracle, controls.oracle_unlimited):
        assert control.drop == pytest.approx(report.dense.miou - control.miou)
    assert controls.smaller_input == ()


def test_the_oracle_of_a_window_knows_the_dense_answer_of_that_window(setr_bundle_path, data):
    measured, _ = evaluated(setr_bundle_path, data, controls=True)
    with Session(Bundle.open(setr_bundle_path), threads=1) as session:
        predictor, rgb = Predictor(session), data.sample(1).rgb
        pixels, keeps, kept = predictor.to_input(rgb), [], []
        for window in predictor.predict(rgb).tokens.windows:
            rows, columns = (
                slice(window.top, window.top + window.height),
                slice(window.left, window.left + window.width),
            )
            part = np.ascontiguousarray(pixels[:, :, rows, columns])
            dense, _ = session.run(part, dense=True)
            keeps.append(oracle_keep(session, part, dense, kept=window.report.kept))
            kept.append(session.run(part, keep=unlimited_oracle_keep(session, part, dense))[1].kept)
        steering = Steering(session)
        tokens = predictor.predict(rgb).tokens
        windows = steering.oracle(rgb, tokens, steering.dense(rgb)[1]).tokens.windows
    assert len(windows) > 1
    for window, keep in zip(windows, keeps, strict=True):
        np.testing.assert_array_equal(window.report.keep, keep)
    assert measured.controls["oracle_unlimited"].kept[1] == tuple(np.sum(kept, axis=0))


def test_a_fault_in_the_last_image_is_found_before_the_first_is_run(tiny_bundle_path, tmp_path):
    root = write_labelled(tmp_path / "spoilt", images=3)
    (root / "labels" / "val" / "drive_002.png").write_bytes(b"no image")
    done = []
    with (
        Session(Bundle.open(tiny_bundle_path), threads=1) as session,
        pytest.raises(DatasetError, match=r"drive_002\.png: cannot be decoded"),
    ):
        measured_with(session, dataset_from_path(root, "val"), advance=done.append)
    assert done == []


def test_the_random_control_is_not_the_rule_and_the_same_again(tiny_bundle_path, data):
    first, again = (evaluated(tiny_bundle_path, data, controls=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first.controls["random"].counts.hit, again.controls["random"].counts.hit)
    assert (first.controls["random"].counts.hit != first.dynamic.counts.hit).any()


def test_thresholds_take_effect(tiny_bundle_path, data):
    _, nothing = evaluated(tiny_bundle_path, data, thresholds=1.0)
    assert nothing.dynamic.miou == pytest.approx(nothing.dense.miou, abs=0.5)
    assert nothing.dynamic.flops_saved < 0
    _, everything = evaluated(tiny_bundle_path, data, thresholds=0.0, controls=True)
    assert everything.dynamic.miou == everything.controls.first_gate.miou
    assert everything.thresholds == [0.0, 0.0]


def test_engines_agree(tiny_bundle_path, data):
    reports = [evaluated(tiny_bundle_path, data, controls=True, engine=name)[1] for name in ("onnxruntime", "torch")]
    assert reports[0].controls.oracle.miou == pytest.approx(reports[1].controls.oracle.miou, abs=0.3)
    assert reports[0].dynamic.miou == pytest.approx(reports[1].dynamic.miou, abs=0.3)


def test_a_model_without_gates_loses_nothing_and_has_no_controls(dense_bundle_path, data):
    _, report = evaluated(dense_bundle_path, data)
    assert report.dynamic.drop == pytest.approx(0, abs=0.5)
    with pytest.raises(UsageError, match="without gates"):
        evaluated(dense_bundle_path, data, controls=True)


def test_classes_must_be_the_bundles(tiny_bundle_path, tmp_path):
    manifest = Bundle.open(tiny_bundle_path).manifest
    four = dataset_from_path(write_labelled(tmp_path / "four", classes=4, images=1), "val")
    with pytest.raises(DatasetError, match=r"4 classes \(class 0, class 1, class 2, \.\.\.\), the bundle tiny has 5"):
        check_classes(four, manifest)
    names = ["class 1", "class 0", "class 2", "class 3", "class 4"]
    turned = dataset_from_path(write_labelled(tmp_path / "turned", names=names, images=1), "val")
    with pytest.raises(DatasetError, match="class 0 is 'class 1' by the data set and 'class 0' in the bundle"):
        check_classes(turned, manifest)
    other = dataset_from_path(write_labelled(tmp_path / "other", names=list("abcde"), images=1), "val")
    check_classes(other, manifest)


def test_a_set_of_nothing_but_void_is_refused(tiny_bundle_path, tmp_path):
    from PIL import Image

    root = write_labelled(tmp_path / "void", images=2)
    for path in (root / "labels" / "val").iterdir():
        Image.new("L", (80, 60), VOID).save(path)
    with pytest.raises(DatasetError, match="no labelled pixel"):
        evaluated(tiny_bundle_path, dataset_from_path(root, "val"))


# Evaluating a classifier, with a fake session: every number of the report follows from the answers, and is paired.

FOLDERS = ("a", "b", "c", "d", "e", "f", "g")


class NoDenseSpec(VisionTransformerSpec):
    """Of a network that has no dense form."""

    @property
    def has_dense(self):
        return False


class WaveringSession(FakeClassifierSession):
    """Dense and dynamic runs answer differently: the dynamic one sees its pixels darker."""

    backend = SimpleNamespace(name="fake", precision="fp32")

    def run_one(self, pixels, settings):
        shift = np.float32(0.0 if settings.dense else 0.4)
        return super().run_one(pixels - shift, settings)


def without_dense(manifest):
    return manifest.model_copy(update={"spec": NoDenseSpec(**manifest.spec.model_dump())})


@pytest.fixture
def labelled(tmp_path):
    return labelled_images_from_path(write_class_folders(tmp_path / "set", folders=FOLDERS, images=4), "val")


def test_every_number_follows_from_the_answers(labelled):
    session = WaveringSession()
    _, report = measured_with(session, labelled)
    classifier = Classifier(session)
    samples = [labelled.sample(number) for number in range(len(labelled))]
    dense, dynamic = ([classifier.predict(sample.rgb, dense=way) for sample in samples] for way in (True, False))
    right = {
        name: np.array(
            [
                sample.label in [entry.id for entry in answer.classes[:top]]
                for sample, answer in zip(samples, way, strict=True)
            ]
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


def test_a_row_for_every_image(labelled):
    _, report = measured_with(WaveringSession(), labelled)
    assert [row.image for row in report.per_image] == list(labelled.stems)
    assert [row.label for row in report.per_image] == [number for number in range(7) for _ in range(4)]
    row = report.per_image[5]
    assert len(row.top_dense) == len(row.top_dynamic) == 5
    assert row.tokens.kept[0] == row.tokens.total == 17
    assert row.flops_saved == pytest.approx(1 - row.gmacs.actual / row.gmacs.dense)
    hits = [row.top_dynamic[0] == row.label for row in report.per_image]
    assert report.dynamic.top1 == pytest.approx(100 * np.mean(hits))
    tokens = report.dynamic.spread["tokens"]
    assert len(tokens) == 3 and tokens[0].min == tokens[0].max == 17


def test_without_a_dense_form_nothing_is_compared(labelled):
    session = WaveringSession(without_dense(fake_classifier_manifest()))
    _, report = measured_with(session, labelled, controls=True)
    assert report.dense is None and not any(settings.dense for _, settings in session.calls)
    dynamic = report.dynamic
    assert dynamic.drop is dynamic.drop_interval is dynamic.top5_drop is dynamic.agreement is None
    # The MACs of a dense network of this architecture are known all the same.
    assert 0 < dynamic.flops_saved < 1 and dynamic.top1 > 0
    assert all(row.top_dense is None for row in report.per_image)
    assert report.controls.smaller_input == () and report.controls.random is None


def test_a_smaller_input_is_a_control(labelled):
    small = WaveringSession(fake_classifier_manifest(size=(32, 32), shorter=36))
    _, report = measured_with(WaveringSession(), labelled, smaller=(small,), controls=True)
    (entry,) = report.controls.smaller_input
    assert entry.size == (32, 32) and entry.engine == "fake"
    assert all(settings.dense for _, settings in small.calls) and len(small.calls) == len(labelled)
    assert entry.drop == pytest.approx(report.dense.top1 - entry.top1)
    assert report.controls.gate_efficiency is None


def test_thresholds_are_handed_on(data):
    session = FakeSession()
    plan = EvalPlan("set", "val", RunSettings.resolve(session.bundle.manifest, thresholds=[0.5, 0.7]))
    evaluate(session, data, SegmentationTally, plan, advance=lambda saved: None)
    given = [settings for _, settings in session.calls if not settings.dense]
    assert len(given) == len(data)
    assert all(settings is plan.settings for settings in given)


def test_thresholds_of_a_classifier_without_gates_are_refused(labelled):
    with pytest.raises(UsageError, match="without gates"):
        measured_with(WaveringSession(), labelled, thresholds=0.5)


def test_a_segmenter_without_a_dense_form_is_compared_with_nothing(data):
    session = FakeSession(without_dense(fake_manifest(gates=())))
    _, report = measured_with(session, data)
    assert report.dense is None and not any(settings.dense for _, settings in session.calls)
    dynamic = report.dynamic
    assert dynamic.drop is dynamic.drop_interval is dynamic.boundary_drop is dynamic.worst_class is None
    assert dynamic.miou > 0 and len(report.per_image) == len(data)
    assert all(row.miou_dense is None and row.miou_dynamic is not None for row in report.per_image)
    assert segmentation_lines(report)[0] == NO_DENSE


def test_a_fault_in_the_last_labelled_image_is_found_before_the_first_is_run(tmp_path):
    root = write_class_folders(tmp_path / "set", folders=FOLDERS, images=1)
    (root / "val" / "g" / "g_0.png").write_bytes(b"no image")
    session = WaveringSession()
    with pytest.raises(DatasetError, match=r"g_0\.png: cannot be decoded"):
        measured_with(session, labelled_images_from_path(root, "val"))
    assert session.calls == []


def test_a_classifiers_classes_must_be_the_bundles(tmp_path, labelled):
    manifest = fake_classifier_manifest(classes=7)
    check_classes(labelled, manifest)
    few = labelled_images_from_path(write_class_folders(tmp_path / "few", images=1), "val")
    with pytest.raises(
        DatasetError, match=r"order of the folders in .*val gives 3 classes \(.*\), the bundle fake has 7"
    ):
        check_classes(few, manifest)
    root = write_class_folders(tmp_path / "turned", folders=FOLDERS, images=1)
    names = [f"Class {number}" for number in (1, 0, 2, 3, 4, 5, 6)]
    lines = [f"{folder} {name}" for folder, name in zip(FOLDERS, names, strict=True)]
    (root / "synset_words.txt").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"class 0 is 'class 1' by .*synset_words\.txt and 'class 0' in the bundle"):
        check_classes(labelled_images_from_path(root, "val"), manifest)


def test_a_segmentation_bundle_is_no_classifier(labelled):
    plan = EvalPlan("set", "val", RunSettings.resolve(FakeSession().bundle.manifest))
    with pytest.raises(UsageError, match="task is segmentation"):
        evaluate(FakeSession(), labelled, ClassificationTally, plan, advance=lambda saved: None)
