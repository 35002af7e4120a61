"""The main job on a video as phones make them: `dovit run` gives it back upright, in time and with its sound."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest

from dovit_deploy import packages
from dovit_deploy.cli import _application, _run
from dovit_deploy.sources.open import open_source
from tests.sources.clips import seconds_of, times_of
from tests.sources.phone import SIZE, TICK, make_phone_clip, seen

STEPS = (20, 20, 23, 17, 60, 20, 21, 19, 20)
"""Ticks from frame to frame: around 30 a second, one long in the dark."""
TIMES = [ticks * TICK for ticks in accumulate(STEPS, initial=0)]
SOUND_S = Fraction(2, 5)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_phone_clip(tmp_path / "IMG_0001.MOV", times=TIMES, sound_s=SOUND_S)


def test_the_clip_is_what_it_claims_to_be(clip: Path) -> None:
    """Otherwise the test below would prove less than it says."""
    reader = packages.pyav()
    assert reader is not None
    with reader.open(str(clip), metadata_errors="replace") as container:
        assert "\ufffd" in container.metadata["title"]
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        video = container.streams.video[0]
        assert (video.height, video.width) == SIZE[::-1]
        frame = next(container.decode(video))
        names = {side.type.name for side in frame.side_data}
    assert "DISPLAYMATRIX" in names and any(name.startswith("UNNAMED") for name in names)
    with pytest.raises(UnicodeDecodeError):
        av.open(str(clip))


def test_every_frame_is_read_as_it_is_seen(clip: Path) -> None:
    with open_source(str(clip)) as source:
        frames = list(source)
    assert [frame.time_s for frame in frames] == TIMES
    for index, frame in enumerate(frames):
        # Of a mirrored or turned one the difference is above 10.
        assert np.abs(frame.rgb.astype(int) - seen(index)).mean() < 5


def test_a_phones_video_comes_back_upright_in_time_and_with_its_sound(
    clip: Path, tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run", clip.name, "--bundle", str(tiny_bundle_path), "-o", "out", "--save", "overlay,masks"]
    assert _run(_application(), [*arguments, "--threads", "1"]) == 0
    assert "Traceback" not in capfd.readouterr().err

    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    assert [row["time_s"] for row in rows] == pytest.approx([float(time_s) for time_s in TIMES], abs=1e-6)

    overlay = tmp_path / "out" / "overlay.mp4"
    assert times_of(overlay) == TIMES
    assert seconds_of(overlay, "audio") == pytest.approx(SOUND_S, abs=0.05)
    with av.open(str(overlay)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert {frame.shape[:2] for frame in frames} == {SIZE}
    for frame in frames:
        above, below = frame[60:90, 80:], frame[100:130, 80:]
        assert (above[..., 0] - below[..., 0]).mean() > 30 and (below[..., 2] - above[..., 2]).mean() > 30
    assert len(list((tmp_path / "out" / "masks").iterdir())) == len(TIMES)
