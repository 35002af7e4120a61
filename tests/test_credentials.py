"""Addresses in rows and messages: their secrets are masked, and everything else stays."""

from __future__ import annotations

import pytest

from dovit_deploy.credentials import masked


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/live", "rtsp://***@10.0.0.5:554/live"),
        ("rtsp://admin@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("rtsp://admin:p@ss@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("rtsp://admin:p/a?s#s@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("http://cam/video?user=me&password=secret&fps=5", "http://cam/video?user=***&password=***&fps=5"),
        ("https://h/a.mp4?X-Amz-Signature=ab12&Expires=3", "https://h/a.mp4?X-Amz-Signature=***&Expires=3"),
        ("http://h/a?sig=1;access_token=2;API_KEY=3", "http://h/a?sig=***;access_token=***;API_KEY=***"),
        ("error: 'rtsp://a:b@c/d': no", "error: 'rtsp://***@c/d': no"),
        ("no bundle at rtsp:/admin:secret@10.0.0.5/live", "no bundle at rtsp:/***@10.0.0.5/live"),
        ("http:/h/a?token=1", "http:/h/a?token=***"),
        ("rtsp://a:b@c/d and http://e:f@g", "rtsp://***@c/d and http://***@g"),
    ],
)
def test_secrets_are_masked(given, shown):
    assert masked(given) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://10.0.0.5:554/live",
        "http://host:8080/@someone/video.mp4?t=3",
        "https://host/watch?design=4&compass=n",
        "street.mp4",
        "me@host:/file?token=1",
        "a*[b]?.png",
    ],
)
def test_what_holds_no_secret_stays(text):
    assert masked(text) == text
