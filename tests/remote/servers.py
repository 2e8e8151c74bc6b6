"""Servers on this machine: HTTP with ranges and faults, S3, and what they count."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpFiles:
    """A server of HTTP whose files are bytes in memory.

    Attributes
    ----------
    files
        By name; the ETag of each is made of its bytes, unless `tags` has it.
    asked
        Ranges that were sent, as (name, first byte, last byte).
    sent
        Bytes of files that were sent.
    n
        Requests.
    gives_ranges
        Or whole files alone, and says so.
    fault
        Called with the number of a request, its name and its handler. Answers it and gives True,
        or gives False to have it answered as is right.
    """

    def __init__(self) -> None:
        self.files, self.tags = dict[str, Any](), dict[str, str]()
        self.asked, self.sent = list[tuple[str, int, int]](), 0
        self.fault: Callable[[int, str, Any], bool] = lambda *_: False
        self.lock, self.gives_ranges, self.n = threading.Lock(), True, 0
        files = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 1 << 16

            def do_GET(self) -> None:
                files._answer(self)

            def do_HEAD(self) -> None:
                files._answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()

    def tag(self, name: str) -> str:
        """The ETag of a file."""
        return self.tags.get(name) or f'"{hash(self.files[name]):x}"'

    def _answer(self, h: Any, body: bool = True) -> None:
        name = h.path.lstrip("/").partition("?")[0]
        with self.lock:
            self.n += 1
            n = self.n
        if self.fault(n, name, h):
            return
        if name not in self.files:
            h.send_error(404)
            return
        data, found = self.files[name], self.range_of(h, name)
        if found is None or not self.gives_ranges:
            self.reply(h, 200, data if body else b"", name, length=len(data))
            return
        first, last = found
        if first >= len(data):
            h.send_response(416)
            h.send_header("Content-Range", f"bytes */{len(data)}")
            h.send_header("Content-Length", "0")
            h.end_headers()
            return
        with self.lock:
            self.asked.append((name, first, last))
        self.reply(h, 206, data[first : last + 1], name, f"bytes {first}-{last}/{len(data)}")

    def range_of(self, h: Any, name: str) -> tuple[int, int] | None:
        """First and last byte that a request wants."""
        found = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", h.headers.get("Range") or "")
        if found is None:
            return None
        most = len(self.files[name]) - 1
        return int(found[1]), min(int(found[2] or most), most)

    def reply(
        self, h: Any, status: int, data: bytes, name: str, about: str = "", length: int = -1
    ) -> None:
        """Send an answer."""
        h.send_response(status)
        if about:
            h.send_header("Content-Range", about)
        h.send_header("ETag", self.tag(name))
        if self.gives_ranges:
            h.send_header("Accept-Ranges", "bytes")
        h.send_header("Content-Length", str(len(data) if length < 0 else length))
        h.end_headers()
        h.wfile.write(data)
        with self.lock:
            self.sent += len(data)


@contextmanager
def http_files() -> Iterator[HttpFiles]:
    """A server of HTTP."""
    server = HttpFiles()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def s3_process() -> Iterator[str]:
    """As `s3_server`, in a process of its own: it does not wait for this one."""
    command = [sys.executable, "-c", _SERVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            with _environment(server.stdout.readline().decode().strip()) as url:
                yield url
        finally:
            server.kill()


_SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of S3 with a bucket ``bucket``, which environment variables lead to: its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with _environment(f"http://{host}:{port}") as url:
            yield url
    finally:
        server.stop()


def _empty(url: str) -> None:
    """Empty a server: what it has belongs to the process, as does what another one had there."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"))


@contextmanager
def _environment(url: str) -> Iterator[str]:
    """Meanwhile, environment variables lead to a server, which has a bucket."""
    kept = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=url,
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        del os.environ[name]
    try:
        import fsspec
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()
        _empty(url)
        fsspec.filesystem("s3").mkdir("bucket")
        yield url
    finally:
        _empty(url)
        os.environ.clear()
        os.environ.update(kept)
