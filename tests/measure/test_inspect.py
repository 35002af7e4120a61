"""Bundles described: facts, costs, parity."""

import pytest

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.errors import BundleError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.inspect import bundle_contents


def text(contents):
    return "\n".join(f"{label}: {value}" for label, value in contents.facts)


def test_a_bundle_in_words(tiny_bundle_path):
    contents = bundle_contents(Bundle.open(tiny_bundle_path))
    said = text(contents)
    for expected in (
        "56x72 pixels, 4x5 patches of 16",
        "gate 1: before layer 3",
        "threshold 0.7",
        "classes: 5: class",
    ):
        assert expected in said
    assert "parity: verified against torch" in said and "portable (onnxruntime), fast (onnxruntime)" in said


def test_costs_are_those_of_the_cost_model(tiny_bundle_path):
    bundle = Bundle.open(tiny_bundle_path)
    model, spec = cost_model(bundle.manifest.spec), bundle.manifest.spec
    typical = [count.typical for count in bundle.manifest.counts]
    rows = {row.case: row for row in bundle_contents(bundle).gmacs}
    assert rows["dense"].total == model.dense().total / 1e9
    assert rows["dense"].gates == 0
    assert rows["nothing stopped"].total == model.actual((spec.tokens,) * 3).total / 1e9
    assert rows["typical"].total == model.actual(typical).total / 1e9 < rows["nothing stopped"].total


def test_parity_is_the_reports_own(tiny_bundle_path):
    bundle = Bundle.open(tiny_bundle_path)
    report = ParityReport.model_validate_json((tiny_bundle_path / "parity.json").read_bytes())
    parity = bundle_contents(bundle).parity
    assert parity is not None and parity.passed and parity.failures == ()
    assert parity.runs == sum(len(form.runs) for form in report.forms)
    assert 0 < parity.logits_error < 1e-3


def test_a_dense_model_has_one_cost_and_no_gate(dense_bundle_path):
    contents = bundle_contents(Bundle.open(dense_bundle_path))
    assert [row.case for row in contents.gmacs] == ["dense"]
    said = text(contents)
    assert "gates: none: a dense model" in said and "threshold" not in said


def test_a_sliding_model_says_so(setr_bundle_path):
    said = text(bundle_contents(Bundle.open(setr_bundle_path)))
    assert "larger images: slide by 40x48" in said and "SETR" in said


def test_a_parity_report_that_is_none(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / "parity.json").write_text('{"reference": "torch"}')
    files = {**bundle.manifest.files, "parity.json": file_entry(bundle_copy / "parity.json")}
    manifest = bundle.manifest.model_copy(update={"files": files})
    (bundle_copy / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(BundleError, match=r"parity\.json is not a parity report"):
        bundle_contents(Bundle.open(bundle_copy))
