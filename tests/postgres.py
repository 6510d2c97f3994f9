"""A PostgreSQL cluster of a test's own, on loopback, behind a password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.servers import free_port

PASSWORD = "a-secret-of-postgres"
START_SECONDS = 60.0
# Runs the program in its own place, so that waiting for it is waiting for PostgreSQL.
_AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")


def programs() -> Path:
    """The folder of Debian's newest PostgreSQL server, or whichever is on PATH; skips where there is none."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install '.[test]'")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    if found is None:
        pytest.skip("no PostgreSQL server: install Debian's postgresql")
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
    return Path(found).parent


class Postgres:
    """One cluster with a user ``mlflow``; it can be stopped and started again on the same data."""

    def __init__(self, bin_folder: Path) -> None:
        self.port = free_port()
        self._bin = bin_folder
        self._as_postgres = [*_AS_POSTGRES, "--"] if os.getuid() == 0 else []
        # Not below pytest's folders: those are closed to the user that has to read this one.
        self.folder = Path(tempfile.mkdtemp(prefix="relabel-audit-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        (self.folder / "password").write_text(PASSWORD)
        if self._as_postgres:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-D", self._data, "-U", "mlflow", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8",
                  "--pwfile", str(self.folder / "password"))  # fmt: skip

    @property
    def uri(self) -> str:
        """As MLflow takes it, with the password."""
        return f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self._as_postgres, str(self._bin / program), *words], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> Postgres:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-p", str(self.port), "-k", str(self.folder)]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_postgres, str(self._bin / "postgres"), "-D", self._data, *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        raise RuntimeError(f"postgres did not start:\n{(self.folder / 'postgres.log').read_text()[-3000:]}")

    def stop(self) -> None:
        """End it without ceremony, connections included."""
        if self._process is not None:
            self._run("pg_ctl", "stop", "-D", self._data, "-m", "immediate")
            self._process.wait(timeout=30)
            self._process = None

    def __enter__(self) -> Postgres:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)
