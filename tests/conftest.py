"""Fixtures that any test may ask for; MLflow is imported only where one of them is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.servers import Server

if TYPE_CHECKING:
    from mlflow_relabel_audit.tracking import Store

# A change is judged on the same examples every time; new ones are looked for on a developer's machine.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Before MLflow is first imported: no telemetry, no bars, no minutes of retries against a server that is dead
# on purpose, no git.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    GIT_PYTHON_REFRESH="quiet",
)
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)

# A shell that runs something in the background has it ignore interrupts, and whatever that starts; tests send some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, shared by the session."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server_store(mlflow_server: Server) -> Iterator[Store]:
    """The shared server, also as MLflow's current tracking URI."""
    yield from _current(mlflow_server.url)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated sqlite database without runs, to copy."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A fresh database of its own with artifacts on disk, also as MLflow's current tracking URI."""
    folder = tmp_path / "tracking"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.chdir(folder)  # MLflow keeps artifacts below the working directory
    yield from _current(f"sqlite:///{folder}/mlflow.db", experiment="tests")


def _current(uri: str, experiment: str = "Default") -> Iterator[Store]:
    import mlflow

    from mlflow_relabel_audit.tracking import Store

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    try:
        yield Store.connect(uri)
    finally:
        while mlflow.active_run() is not None:
            mlflow.end_run()
        mlflow.set_tracking_uri(before)
