"""Who may ask, and how? HTTP on 127.0.0.1 alone, behind an address with a secret in it.

GET  /SECRET/         the page, whole: it loads nothing else
GET  /SECRET/facts    JSON, see `Viewer.facts`
POST /SECRET/answer   JSON of a `Question` -> JSON, see `Viewer.answer`
POST /SECRET/image    the bytes of an image file -> {"image": key}

Whatever else is asked for is not there (404), also when it comes under another host's name (a page elsewhere whose
name was turned to 127.0.0.1) or from another page (its Origin). Errors of the user's are 400 with the line to show.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dovit_deploy.errors import DovitError, UsageError
from dovit_deploy.pages.page import html_from_template
from dovit_deploy.printing import print_traceback
from dovit_deploy.view.viewer import Viewer, question_from_json

HOST = "127.0.0.1"
LARGEST_BODY = 200_000_000
"""Bytes of an image file."""
LARGEST_QUESTION = 100_000
PATIENCE_S = 30.0
"""After which a connection that says nothing is closed."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that was in use a moment ago is free again; on Windows this would let two servers share one.
    allow_reuse_address = os.name != "nt"
    # At the end nobody waits for a browser that keeps its connection open.
    block_on_close = False

    def __init__(self, viewer: Viewer, port: int) -> None:
        self.viewer, self.secret = viewer, secrets.token_urlsafe(16)
        self.page = html_from_template("view.html", {"facts": viewer.facts()}).encode("utf-8")
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  socketserver's own signature
        """A browser that went away is nobody's fault; anything else is a bug of ours."""
        kind, error, trace = sys.exc_info()
        if kind is not None and error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            print_traceback(kind, error, trace)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S
    protocol_version = "HTTP/1.1"
    server_version = sys_version = ""

    def do_GET(self) -> None:
        match self._asked():
            case "":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
            case "facts":
                self._send_json(HTTPStatus.OK, self.server.viewer.facts())
            case _:
                self._not_there()

    def do_POST(self) -> None:
        asked = self._asked()
        if asked not in ("answer", "image"):
            self._not_there()
            return
        body = self._body(LARGEST_BODY if asked == "image" else LARGEST_QUESTION)
        if body is None:
            return
        viewer = self.server.viewer
        try:
            if asked == "image":
                self._send_json(HTTPStatus.OK, {"image": viewer.uploads.add(body)})
            else:
                self._send_json(HTTPStatus.OK, viewer.answer(question_from_json(json.loads(body))))
        except DovitError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": " ".join(error.lines)})
        except (ValueError, RecursionError):
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": "JSON is needed"})

    def _asked(self) -> str | None:
        """What is asked for behind the secret; None: not with the secret, or not by our page."""
        port = self.server.server_address[1]
        own = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in own or (origin is not None and origin.removeprefix("http://") not in own):
            return None
        empty, _, rest = self.path.partition("/")
        given, _, asked = rest.partition("/")
        known = hmac.compare_digest(given.encode("utf-8", "replace"), self.server.secret.encode())
        return asked if known and not empty and self.path.count("/") == 2 else None

    def _body(self, most: int) -> bytes | None:
        """The request's content; None: it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
            return None
        if int(length) > most:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes are taken")
            return None
        return self.rfile.read(int(length))

    def _not_there(self) -> None:
        self._refuse(HTTPStatus.NOT_FOUND, "not here; the address is the one that dovit view printed")

    def _refuse(self, status: HTTPStatus, line: str) -> None:
        # What was sent and not read must not be taken for the next request.
        self.close_connection = True
        self._send_json(status, {"error": line})

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode("utf-8"))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the page says what went wrong."""


@contextmanager
def serving(viewer: Viewer, *, port: int | None) -> Iterator[str]:
    """Serve while the block runs; gives the address, which nobody guesses.

    Args:
        port: None: any that is free.

    Raises:
        UsageError: the port is in use, or not for this user.
        PackageMissing: jinja2 is not installed.
    """
    try:
        server = _Server(viewer, port or 0)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}; choose another, or none for one that is free") from error
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="dovit-view", daemon=True
    )
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/{server.secret}/"
    finally:
        server.shutdown()
        server.server_close()
