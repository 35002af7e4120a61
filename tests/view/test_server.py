"""Who may ask: nobody without the secret, from another page or under another name; and what they get otherwise."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from dovit_deploy.errors import UsageError
from dovit_deploy.view import server as module
from dovit_deploy.view.server import HOST, serving
from tests.view.test_frames import png
from tests.view.test_viewer import ThreeFrames, viewer


@contextmanager
def asked():
    """Gives a function that asks, and the path behind which the page is."""
    with serving(viewer(frames=ThreeFrames()), port=None) as address:
        parts = urlsplit(address)

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=given)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer, content

        yield ask, parts


def test_the_page_loads_nothing_else():
    with asked() as (ask, parts):
        assert parts.hostname == HOST and len(parts.path) > 20
        answer, content = ask("GET", parts.path)
        assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        html = content.decode()
        assert "connect-src 'self'" in html and "http:" not in html and "https:" not in html
        assert html.count('class="threshold"') == 2


def test_questions_are_answered_and_errors_are_lines():
    with asked() as (ask, parts):
        answer, content = ask("POST", f"{parts.path}answer", json.dumps({"frame": 1}))
        assert answer.status == 200 and json.loads(content)["name"] == "frame 1"
        key = json.loads(ask("POST", f"{parts.path}image", png(1, (40, 60)))[1])["image"]
        assert json.loads(ask("POST", f"{parts.path}answer", json.dumps({"image": key}))[1])["name"] == "dropped image"
        assert json.loads(ask("GET", f"{parts.path}facts")[1])["frames"] == [0, 2]
        for what, body, said in (
            ("image", b"no image", "the image: cannot be decoded"),
            ("answer", b"{", "JSON is needed"),
            ("answer", b"[" * 50_000, "JSON is needed"),
            ("answer", b"\xff", "JSON is needed"),
            ("answer", b"[]", "a JSON object is needed"),
            ("answer", json.dumps({"frame": 7}), "there is no frame 7"),
            ("answer", json.dumps({"frame": 0, "thresholds": [2, 2]}), "2"),
            ("answer", '{"frame": 0, "thresholds": [NaN, 0.5]}', "nan"),
            ("answer", json.dumps({"frame": 0, "thresholds": [10**400, 0.5]}), "outside"),
        ):
            answer, content = ask("POST", f"{parts.path}{what}", body)
            assert answer.status == 400 and said in json.loads(content)["error"], body


def test_nobody_else_gets_anything():
    with asked() as (ask, parts):
        secret = parts.path.strip("/")
        for path in (
            "/",
            "/x/",
            f"/{secret}",
            f"/{secret[:-1]}x/",
            f"/{secret}/x",
            f"/{secret}/../",
            "*",
        ):
            assert ask("GET", path)[0].status == 404, path
        evil = f"evil.example:{parts.port}"
        assert ask("GET", parts.path, Host=evil)[0].status == 404
        assert ask("POST", f"{parts.path}answer", "{}", Origin="http://evil.example")[0].status == 404
        assert ask("POST", f"{parts.path}answer", "{}", Origin="null")[0].status == 404
        own = f"http://{HOST}:{parts.port}"
        assert ask("POST", f"{parts.path}answer", '{"frame": 0}', Origin=own)[0].status == 200
        assert ask("POST", parts.path, "{}")[0].status == 404 and ask("GET", f"{parts.path}answer")[0].status == 404
        assert ask("PUT", parts.path, "{}")[0].status == 501


def test_what_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_QUESTION", 10)
    with asked() as (ask, parts):
        answer, content = ask("POST", f"{parts.path}answer", "x" * 11)
        assert answer.status == 413 and b"at most 10 bytes" in content
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as raw:
            head = f"POST {parts.path}answer HTTP/1.1\r\nHost: {HOST}:{parts.port}\r\n\r\n"
            raw.sendall(head.encode())
            assert b" 411 " in raw.makefile("rb").readline()


def test_a_port_in_use_is_refused_and_a_browser_that_stays_holds_nobody():
    with serving(viewer(), port=None) as address:
        port = urlsplit(address).port
        with pytest.raises(UsageError, match=f"--port {port}: .*; choose another"), serving(viewer(), port=port):
            pass
        # It says nothing, and does not close.
        waiting = socket.create_connection((HOST, port))
    waiting.close()
    with serving(viewer(), port=port):
        pass
