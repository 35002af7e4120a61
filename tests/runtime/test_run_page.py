"""What the page of a run says: the figures of its summary and rows, as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.pages.charts import Histogram, Timeline
from dovit_deploy.pages.page import Gallery, PageTable, Stills, html_from_page
from dovit_deploy.runtime.album import Album
from dovit_deploy.runtime.outputs import RunReport
from dovit_deploy.runtime.run_page import (
    BINS,
    MOST_FAILED_SHOWN,
    MOST_PLACES,
    PagePlan,
    RunFacts,
    page_from_run,
    places_from_rows,
)
from dovit_deploy.runtime.segmentation import Predictor
from tests.fakes import FakeSession

PLAN = PagePlan("street.mp4", "dovit run street.mp4")


def row(number, *, kept=(100, 50, 20), total=10.0, **more):
    return {
        "index": 2 * number,
        "source": f"{number}.png",
        "time_s": number / 10,
        "windows": 1,
        "latency_ms": {"decode": 1.0, "preprocess": 1.0, "model": total - 3, "postprocess": 1.0, "total": total},
        "tokens": {"total": kept[0], "kept": list(kept)},
        "gmacs": {"dense": 10.0, "actual": 6.0},
        "flops_saved": 0.4,
        **more,
    }


def written(path: Path, rows):
    with RunReport(path) as report:
        for one in rows:
            report.add(one)
    return report


def summary_of(report, **more):
    return {
        "frames": report.frames,
        "interrupted": False,
        "engine": "onnxruntime",
        "precision": "fp32",
        "thresholds": [0.9, 0.8],
        "dense": False,
        "deadline": None,
        "audit": None,
        "filled": None,
        "compiling": None,
        "bundle": "/models/x.dovit",
        "machine": {"cpu": "a processor"},
        "versions": {"numpy": "2"},
        "failed": [],
        **report.statistics(),
        **more,
    }


def page_of(tmp_path, rows, *, video=True, **more):
    path = tmp_path / "frames.jsonl"
    report = written(path, rows)
    album = Album(video=video)
    result = Predictor(FakeSession()).predict(np.zeros((40, 60, 3), np.uint8))
    for one in rows[:4]:
        album.add(one, result)
    return page_from_run(summary_of(report, **more), path, album, RunFacts(PLAN, 2.0, (3, 6), video))


def parts(page, kind):
    return [part for section in page.sections for part in section.parts if isinstance(part, kind)]


def test_few_frames_are_drawn_each(tmp_path):
    page = page_of(tmp_path, [row(n, kept=(100, 50 + n, 20), total=10.0 + n) for n in range(5)])
    (timeline,) = parts(page, Timeline)
    tokens, latency = timeline.panels
    assert timeline.x == (0.0, 0.1, 0.2, 0.3, 0.4) and timeline.labels[3] == "frame 6 at 0.30 s"
    assert [series.name for series in tokens.series] == ["from layer 3 on", "from layer 6 on"]
    assert tokens.series[0].values == (50, 51, 52, 53, 54) and set(tokens.series[1].values) == {20}
    assert [series.name for series in latency.series] == ["total", "model"]
    assert latency.series[0].values == (10, 11, 12, 13, 14)
    assert {fact.name: fact.value for fact in page.headline} == {
        "FLOPs saved": "40.0%",
        "model step, median": "9.0 ms",
        "frames per second": "2.5",
        "speed against dense": "-",
    }
    assert html_from_page(page).count("<article>") == len(parts(page, Stills)[0].stills) + sum(
        len(gallery.stills) for gallery in parts(page, Gallery)
    )


def test_of_many_frames_means_are_drawn_and_the_slowest(tmp_path):
    frames = 2 * MOST_PLACES + 1
    path = tmp_path / "frames.jsonl"
    written(path, [row(n, total=100.0 if n == 4 else 10.0) for n in range(frames)])
    places = places_from_rows(path, frames, video=True)
    assert places.each == 3 and len(places.x) == 667 <= MOST_PLACES
    assert places.total_ms[1] == pytest.approx(40) and places.slowest_ms[1] == 100 and places.slowest_ms[0] == 10
    assert places.labels[1] == "frame 6 to 10 at 0.30 s"
    assert np.sum(places.counts) == frames * 3


@pytest.mark.parametrize(("share", "place"), [(0, 0), (5, 0), (6, 1), (100, BINS - 1)])
def test_shares_fall_into_the_bin_that_ends_with_them(tmp_path, share, place):
    page = page_of(tmp_path, [row(0, kept=(100, share, 0))])
    (histogram,) = parts(page, Histogram)
    name, counts = histogram.groups[0]
    assert name == "from layer 3 on" and counts[place] == 1 and sum(counts) == 1


def test_images_are_numbered_and_named(tmp_path):
    page = page_of(tmp_path, [row(n) for n in range(3)], video=False)
    (timeline,) = parts(page, Timeline)
    assert timeline.x == (0, 1, 2) and timeline.labels[1] == "1.png" and timeline.x_name == "image"


def test_audited_frames_say_how_fast_dense_is_and_alarms_are_marked(tmp_path):
    rows = [row(n, total=13.0, **({"audit": {"differing": 0.1, "ms": 25.0}} if n else {})) for n in range(3)]
    audit = {"frames": 2, "alarms": [{"frame": 4, "time_s": 0.2}], "differing": 0.021, "max_disagree": 0.01}
    page = page_of(tmp_path, rows, audit=audit)
    (against,) = [fact for fact in page.headline if fact.name == "speed against dense"]
    assert against.value == "2.50x" and against.note == "median of 2 audited frames"
    assert (page.headline[-1].value, page.headline[-1].note) == ("2.10%", "at most 1.00% asked for; 1 alarm")
    (timeline,) = parts(page, Timeline)
    assert timeline.marks == ((0.2, "drift"),)


def test_what_went_wrong_is_said(tmp_path):
    failed = [{"source": "bad.png", "message": "bad.png: cannot be decoded"}]
    page = page_of(tmp_path, [row(0)], failed=failed, interrupted=True)
    assert "interrupted" in page.subtitle
    assert [table.rows for table in parts(page, PageTable) if "could not be read" in table.title] == [
        (("bad.png", "bad.png: cannot be decoded"),)
    ]
    assert len(page.headline) == 2, "one frame has no rate"
    html = html_from_page(page)
    assert "bad.png: cannot be decoded" in html


def test_of_thousands_of_unreadable_inputs_the_first_are_named(tmp_path):
    failed = [{"source": f"{n}.png", "message": "bad"} for n in range(5000)]
    (table,) = [t for t in parts(page_of(tmp_path, [row(0)], failed=failed), PageTable) if "be read" in t.title]
    assert len(table.rows) == MOST_FAILED_SHOWN
    assert table.title == "5000 inputs could not be read: the first 100, summary.json has all"


def test_a_run_without_a_frame_has_a_page(tmp_path):
    page = page_of(tmp_path, [], interrupted=True)
    assert page.headline == () and [section.title for section in page.sections] == ["Settings"]
    assert json.dumps("dovit run street.mp4").strip('"') in html_from_page(page)


def test_a_dense_run_and_a_model_without_gates_have_one(tmp_path):
    page = page_of(tmp_path, [row(0), row(1)], dense=True, thresholds=None)
    assert [fact.value for fact in page.headline][-1] == "dense"
    path = tmp_path / "other.jsonl"
    report = written(path, [row(n, kept=(100, 30)) for n in range(2)])
    page = page_from_run(summary_of(report), path, Album(video=True), RunFacts(PLAN, 1.0, (), True))
    (timeline,) = parts(page, Timeline)
    assert [series.name for series in timeline.panels[0].series] == ["stage 1"]
