from __future__ import annotations

import numpy as np

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.export.other_size import reference_bundle_at_size
from dovit_deploy.export.pipeline import ExportRequest
from dovit_deploy.runtime.session import Session
from tests.bundles import export, tiny_checkpoint
from tests.tiny import tiny_pixels, tiny_spec


def test_it_answers_as_an_export_at_that_size_does(tiny_bundle_path, tmp_path):
    size = (48, 32)
    exported, _ = export(tiny_checkpoint(tiny_spec()), tmp_path / "small.dovit", request=ExportRequest(size=size))
    bundle = Bundle.open(tiny_bundle_path)
    before = bundle.weights.read_bytes()
    small = reference_bundle_at_size(bundle, size, tmp_path)
    pixels = np.ascontiguousarray(tiny_pixels(size, seed=3).numpy())
    with Session(small, engine="torch", threads=1) as session, Session(exported, threads=1) as deployed:
        answer, report = session.run_one(pixels, dense=True)
        expected, wanted = deployed.run_one(pixels, dense=True)
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert report.gmacs_dense == wanted.gmacs_dense
    assert bundle.weights.read_bytes() == before
