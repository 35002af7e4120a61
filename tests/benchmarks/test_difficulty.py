"""Objects in sight against MACs: scenes of known content through a tiny bundle, and the table that is made of it."""

from __future__ import annotations

import json

import difficulty
import numpy as np
import pytest
from difficulty import MARK, groups, measure, share_of
from report import END

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_scenes.dataset import scene_sample


@pytest.fixture(scope="module")
def measured(tiny_bundle_path):
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        predictor = Predictor(session)
        return predictor, {name: measure(predictor, name=name, scenes=6, seed=4) for name in difficulty.SETS}


def test_scenes_spread_from_bare_to_full_on_purpose():
    shares = [share_of(number, 20) for number in range(20)]
    assert shares == sorted(shares) and shares[0] < 0.01 and shares[-1] > 0.95
    counts = [scene_sample(1, number, size=(90, 120), share=share_of(number, 6)).objects for number in range(6)]
    assert counts[0] <= 3 and counts[-1] > 25
    # About evenly: no two neighbours take up half of the range.
    assert np.diff(sorted(counts)).max() < (max(counts) - min(counts)) / 2


def test_figures_are_those_of_the_scenes(measured, tiny_bundle_path):
    predictor, sets = measured
    for name, world in (("bare to full", 4), ("full", 5)):
        figures = sets[name]
        scene = scene_sample(world, 2, size=predictor.spec.size, share=share_of(2, 6) if world == 4 else 1.0)
        assert figures["objects"][2] == scene.objects
        with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
            tokens = Predictor(session).predict(scene.rgb).tokens
        assert figures["gmacs"][2] == pytest.approx(tokens.gmacs_actual)
        assert figures["interval"][0] <= figures["interval"][1]
    assert len(set(sets["bare to full"]["objects"])) > 3
    assert min(sets["full"]["objects"]) > min(sets["bare to full"]["objects"])


def test_fifths():
    objects = [9, 1, 5, 3, 7, 2]
    gmacs = [90.0, 10.0, 50.0, 30.0, 70.0, 20.0]
    parts = groups(objects, gmacs, [100.0] * 6)
    assert [part["objects"] for part in parts] == [[1, 2], [3, 3], [5, 5], [7, 7], [9, 9]]
    assert [part["gmacs"] for part in parts] == [15, 30, 50, 70, 90]
    assert [part["flops_saved"] for part in parts] == pytest.approx([0.85, 0.7, 0.5, 0.3, 0.1])
    assert [part["scenes"] for part in parts] == [2, 1, 1, 1, 1]


def test_the_table_is_written_between_its_marks_and_again(measured, tiny_bundle_path, tmp_path, monkeypatch, capsys):
    _, sets = measured
    monkeypatch.setattr(difficulty, "measure", lambda predictor, *, name, scenes, seed, show: sets[name])
    page, result = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text(f"before\n{MARK}\nstale figures\n{END}\nafter\n")
    difficulty.main([str(tiny_bundle_path), "--scenes", "6", "-o", str(result), "--docs", str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{MARK}\n| scenes |") and text.endswith(f"{END}\nafter\n") and "stale" not in text
    assert f"**{sets['full']['rank_correlation']:.2f}**" in text
    assert ("0.7, reached" in text) == (sets["bare to full"]["rank_correlation"] >= 0.7) != ("0.7, **missed**" in text)
    assert f"python benchmarks/difficulty.py {tiny_bundle_path.name} --scenes 6 --seed 0" in text
    assert json.loads(result.read_text())["sets"]["full"]["objects"] == sets["full"]["objects"]
    page.write_text(f"before\n{MARK}\nother\n{END}\nafter\n")
    difficulty.main(["--tables", str(result), "--docs", str(page)])
    assert page.read_text() == text


def test_what_cannot_be_measured(dense_bundle_path, capsys):
    with pytest.raises(SystemExit, match="no gates"):
        difficulty.main([str(dense_bundle_path)])
    for arguments in ([], ["x.dovit", "--tables", "x.json"], ["x.dovit", "--scenes", "4"]):
        with pytest.raises(SystemExit):
            difficulty.main(arguments)
        assert "needed" in capsys.readouterr().err
