"""Objects in sight against MACs: scenes of known content through a tiny bundle, and the table that is made of it."""

from __future__ import annotations

import json
import math

import difficulty
import numpy as np
import pytest
from difficulty import MARK, groups, measure, ranks, share_of, spearman, spearman_interval
from hypothesis import assume, given, settings
from hypothesis import strategies as st
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


# Rank correlation against values by hand, and what no monotone change of the values may alter.

whole = st.integers(-20, 20)


def test_equal_values_share_their_ranks():
    assert ranks([30, 10, 20]).tolist() == [3, 1, 2]
    assert ranks([5, 1, 5, 5, 2]).tolist() == [4, 1, 4, 4, 2]
    assert ranks([7, 7]).tolist() == [1.5, 1.5]


def test_by_hand():
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 9], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(whole, whole), min_size=3, max_size=20))
def test_only_the_order_matters(pairs):
    first, second = zip(*pairs, strict=True)
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    value = spearman(first, second)
    assert -1 - 1e-12 <= value <= 1 + 1e-12
    assert spearman([number**3 for number in first], second) == pytest.approx(value)
    assert spearman(second, first) == pytest.approx(value)
    assert spearman([-number for number in first], second) == pytest.approx(-value)
    assert spearman(first, [2 * number + 1 for number in first]) == pytest.approx(1)


def test_the_interval_holds_the_value_and_shrinks_with_more_pairs():
    rng = np.random.default_rng(0)
    widths = []
    for count in (20, 200):
        first = rng.normal(size=count)
        second = first + rng.normal(size=count)
        low, high = spearman_interval(first, second, seed=1, resamples=400)
        assert low < spearman(first, second) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert spearman_interval([1, 2, 3, 4], [1, 2, 3, 4], seed=1, resamples=50) == (1, 1)
    again = spearman_interval(first, second, seed=1, resamples=400)
    assert again == (low, high)
