"""Emulators of both kinds of buckets on this machine, and a proxy that breaks their answers."""

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

BUCKET = "show1-tests"
for _module in ("gcsfs", "s3fs", "moto", "gcp_storage_emulator"):
    pytest.importorskip(_module)

PROGRAMS = {
    "gs": ("tests.buckets.gcs", "start", "--host=127.0.0.1", "--in-memory", "--port={port}"),
    "s3": ("moto.server", "-H", "127.0.0.1", "-p", "{port}"),
}


def free_port():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def emulated(scheme):
    """Starts an emulator with the bucket `BUCKET`; yields its port."""
    port = free_port()
    module, *arguments = (text.format(port=port) for text in PROGRAMS[scheme])
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        made = None
        for _ in range(300):
            with contextlib.suppress(OSError):
                made = make_bucket(scheme, port)
                break
            assert process.poll() is None, f"{module} has ended"
            time.sleep(0.1)
        assert made == 200, f"{module} made no bucket: {made}"
        yield port
    finally:
        process.kill()
        process.wait()


def make_bucket(scheme, port):
    """Makes `BUCKET`; returns the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if scheme == "gs":
        headers = {"Content-Type": "application/json"}
        body = f'{{"name": "{BUCKET}"}}'
        connection.request("POST", "/storage/v1/b?project=test", body, headers)
    else:
        connection.request("PUT", f"/{BUCKET}")
    return connection.getresponse().status


def environment(scheme, port):
    """What leads all libraries to an emulator."""
    address = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def reached(scheme, port):
    """Leads this process to an emulator."""
    from show1_jax import buckets

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(scheme, port).items():
            patch.setenv(name, value)
        buckets._system.cache_clear()
        for kind in (buckets._Gcs, buckets._S3):
            kind.clear_instance_cache()
        yield


class Faults:
    """A proxy in front of an emulator.

    Attributes:
      port: where it listens.
      served: how many requests it answered, faults included.
      begun: when the first came (`time.monotonic`); None before.
      broken: those that it broke: when, method and path.
    """

    def __init__(self, upstream):
        self.served, self.begun = 0, None
        self.broken = []
        self._rules = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"upstream": upstream, "faults": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that did not wait
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, kind, methods="GET|HEAD|POST|PUT|DELETE", path="", times=10**9, after=0):
        """Breaks the next requests that match: a status, "drop", "hang" or a delay in seconds.

        The first `after` of them are answered.
        """
        self._rules.append([re.compile(methods), re.compile(path), times, kind, after])

    def clear(self):
        """Answers all requests from now on."""
        self._rules = []

    def fault(self, method, path):
        """What is wrong with a request; None for nothing."""
        with self._lock:
            self.served += 1
            self.begun = self.begun or time.monotonic()
            for rule in self._rules:
                methods, pattern, times, kind, after = rule
                if not (times and methods.fullmatch(method) and pattern.search(path)):
                    continue
                if after:
                    rule[4] -= 1
                    continue
                rule[2] -= 1
                if not isinstance(kind, float):
                    self.broken.append((time.monotonic(), method, path))
                return kind
        return None

    def close(self):
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: ClassVar[int]
    faults: ClassVar[Faults]

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        kind = self.faults.fault(self.command, self.path)
        if kind == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if kind == "hang":
            time.sleep(120)
        if isinstance(kind, int):
            self.send_response(kind)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(kind, float):
            time.sleep(kind)
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        upstream.request(self.command, self.path, body or None, headers)
        response = upstream.getresponse()
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    def _chunk(self):
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *arguments):
        pass
