"""An object store on this machine: moto's server as a process, and what tests put into it."""

from __future__ import annotations

import contextlib
import http
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 10
"""Objects that one reply of a listing has at most; S3 itself gives 1000."""

_STARTS_WITHIN_SECONDS = 300


def environment(port: int) -> dict[str, str]:
    """What has a process reach the store on `port`, and no other."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """The port of a store that is empty at first."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
    )
    try:
        until = time.monotonic() + _STARTS_WITHIN_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def client(port: int) -> Any:
    """The store as its maker's own library sees it."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="someone",
        aws_secret_access_key="something",
        region_name="us-east-1",
    )


def upload(store: Any, folder: Path, bucket: str, prefix: str) -> None:
    """Puts all files below `folder` under `prefix`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            store.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


class Gate:
    """A way to the store on which a test can make trouble, and count what passes.

    Attributes:
        port: of the gate.
        requests: how often each `METHOD /path` was asked for, without what follows a `?`.
        stumbles: how many times each such request is refused with 503 before it passes.
        closed_after: so many objects are given out, then nothing passes; None for no limit.
        garbles: what objects end in that are given out with one byte another one.
        shortens: what objects end in of which half is given out, told as all of it.
        portal: what paths end in that are answered with a login page and status 200.
        times: how many requests are shortened or answered so; None for no limit.
    """

    def __init__(self, store: int) -> None:
        self.requests: Counter[str] = Counter()
        self.stumbles = 0
        self.closed_after: int | None = None
        self.garbles, self.shortens, self.portal = "", "", ""
        self.times: int | None = None
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                gate.pass_on(self, store)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one  # noqa: N815 their names

            def log_message(self, *_: object) -> None:  # says nothing
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.requests.clear()
        self.stumbles, self.closed_after, self.garbles = 0, None, ""
        self.shortens, self.portal, self.times = "", "", None

    def given_out(self, ending: str = "") -> int:
        """How many times objects were asked for whose names have that ending."""
        return sum(
            count
            for name, count in self.requests.items()
            if name.startswith("GET") and name.count("/") > 1 and name.endswith(ending)
        )

    def pass_on(self, handler: BaseHTTPRequestHandler, store: int) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        name = f"{handler.command} {handler.path.partition('?')[0]}"
        with self._lock:
            self.requests[name] += 1
            first = self.requests[name] <= self.stumbles and "." in name.rpartition("/")[2]
            closed = self.closed_after is not None and self.given_out() > self.closed_after
        if first or closed:
            handler.send_response(503)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if self.portal and self._troubles(handler, self.portal):
            self._show_page(handler)
            return
        self._forward(handler, store, body)

    def _troubles(self, handler: BaseHTTPRequestHandler, ending: str) -> bool:
        with self._lock:
            if not handler.path.partition("?")[0].endswith(ending) or self.times == 0:
                return False
            if self.times is not None:
                self.times -= 1
            return True

    def _show_page(self, handler: BaseHTTPRequestHandler) -> None:
        page = b"<!DOCTYPE html><html><title>Log in</title><p>to use this network</html>"
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(page)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(page)

    def _forward(self, handler: BaseHTTPRequestHandler, store: int, body: bytes) -> None:
        link = http.client.HTTPConnection("127.0.0.1", store, timeout=300)
        link.request(handler.command, handler.path, body, dict(handler.headers.items()))
        answer = link.getresponse()
        data, headers = answer.read(), answer.getheaders()
        if self.garbles and handler.path.endswith(self.garbles) and len(data) > 100:
            data = data[:-1] + bytes([data[-1] ^ 1])
            headers = [(key, text) for key, text in headers if "checksum" not in key.lower()]
        is_body = handler.command == "GET" and answer.status == http.HTTPStatus.OK
        if self.shortens and is_body and self._troubles(handler, self.shortens):
            data = data[: len(data) // 2]
            headers = [(key, text) for key, text in headers if "checksum" not in key.lower()]
        handler.send_response(answer.status)
        for key, value in headers:
            if key.lower() not in ("content-length", "connection", "transfer-encoding", "date"):
                handler.send_header(key, value)
        size = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
        handler.send_header("Content-Length", size or "0")
        handler.end_headers()
        handler.wfile.write(data)
        link.close()
