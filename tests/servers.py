"""Real ``mlflow server`` processes on free loopback ports."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_SECONDS = 90.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One server with served artifacts, all below ``folder``, and a sqlite database there unless ``backend`` names one.

    It can be killed and started again on the same port and the same data.
    """

    folder: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    backend: str | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        """Where the server keeps what is uploaded."""
        return self.folder / "artifacts"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        switched_off = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        backend = self.backend or f"sqlite:///{self.folder}/mlflow.db"
        command += ["--backend-store-uri", backend, "--workers", "1"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.artifacts), *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**kept, **switched_off, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers are ended with it
            )
        self._wait()
        return self

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"mlflow server did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End it at once, workers included, as a crash would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it gracefully, and surely."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        group = self.process.pid
        for each in (number, signal.SIGKILL):
            try:
                os.killpg(group, each)
                self.process.wait(timeout=10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait(timeout=10)
        self.process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Gate:
    """A proxy before a server that lets requests through until it is told to fail them.

    Parameters
    ----------
    server : Server
        Running; requests and answers are passed on unchanged.
    """

    def __init__(self, server: Server) -> None:
        self.writes: list[str] = []
        """Method and path of every request that changes something, in order."""
        self.fail_from: int | None = None
        """Position in ``writes`` from which on writes fail; None lets everything through."""
        self.fail_to: int | None = None
        """Position in ``writes`` from which on they are let through again."""
        self.how = "500"
        """``500``: answered with status 500. ``drop``: connection closed after half of the body. ``silent``: not
        answered, and closed after ``silence`` seconds."""
        self.silence = 0.0
        self.fail_reads: str | None = None
        """Requests that only read are answered with status 500 where their path holds this."""
        self.seconds = 0.0
        """Delay before every request is passed on."""
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _pass(self) -> None:
                gate._handle(self, server)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def _handle(self, request: BaseHTTPRequestHandler, server: Server) -> None:
        time.sleep(self.seconds)
        length = int(request.headers.get("Content-Length") or 0)
        changes = request.command in ("PUT", "PATCH", "DELETE") or (
            request.command == "POST" and not request.path.endswith("search")
        )
        if changes:
            self.writes.append(f"{request.command} {request.path}")
            last = len(self.writes) if self.fail_to is None else self.fail_to
            if self.fail_from is not None and self.fail_from < len(self.writes) <= last:
                request.rfile.read(length // 2 if self.how == "drop" else length)
                request.close_connection = True
                if self.how == "500":
                    request.send_error(500)
                if self.how == "silent":
                    time.sleep(self.silence)
                return
        elif self.fail_reads is not None and self.fail_reads in request.path:
            request.send_error(500)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        try:
            body = request.rfile.read(length) if length else self._chunks(request)
            upstream.request(request.command, request.path, body, headers={**headers, "Host": "127.0.0.1"})
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            request.close_connection = True
            return
        finally:
            upstream.close()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    @staticmethod
    def _chunks(request: BaseHTTPRequestHandler) -> bytes | None:
        if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return None
        parts = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        del request.headers["Transfer-Encoding"]
        return b"".join(parts)

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
