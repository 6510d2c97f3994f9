"""Disks that are full and servers that are slow: the run holds the old audit or the new one, and the user is told."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import autolog
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.tracking import Manifest, Store, read_artifact, read_manifest
from mlflow_relabel_audit.tracking.store import failures
from tests.disks import full, small_disk
from tests.servers import Gate, Server
from tests.tracking.logged import FRAME, log_models

pytestmark = [pytest.mark.server, pytest.mark.slow]


def fitted():
    return LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"])


def words(folder, run_id, uri, *more):
    if not (folder / "rows.parquet").exists():
        FRAME.to_parquet(folder / "rows.parquet")
    data = ["--train-data", str(folder / "rows.parquet"), "--target", "label", "--max-predictions", "30"]
    return ["audit", "--run-id", run_id, "--tracking-uri", uri, *data, *more]


def ask(folder, run_id, uri, *more):
    return CliRunner().invoke(main, words(folder, run_id, uri, *more))


def failed(result, *named):
    """Exit status 3 and one line that says what to do."""
    assert result.exit_code == 3, (result.output, result.exception)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for text in named:
        assert text in result.stderr
    return True


def whole(store, run_id, folder):
    """The manifest of the run's audit, each of its files verified."""
    manifest = read_manifest(store, run_id, folder)
    for path in manifest.artifacts:
        assert read_artifact(store, run_id, path, folder) is not None, path
    return manifest


def test_a_full_disk_of_the_server(tmp_path):
    before = mlflow.get_tracking_uri()
    with small_disk(tmp_path / "server" / "artifacts", "4m") as disk, Server(tmp_path / "server") as server:
        mlflow.set_tracking_uri(server.url)
        mlflow.set_experiment("Default")
        try:
            (audited, _), (fresh, _) = log_models(model=fitted()), log_models(model=fitted())
        finally:
            mlflow.set_tracking_uri(before)
        store = Store.connect(server.url)
        assert ask(tmp_path, audited, server.url).exit_code == 0
        old = whole(store, audited, tmp_path / "old")

        with full(disk, left=50_000):
            assert failed(ask(tmp_path, audited, server.url), "the earlier audit is untouched", "its disk, then run")
            assert failed(ask(tmp_path, fresh, server.url), "no audit is there yet", "its disk, then run the same")
            assert whole(store, audited, tmp_path / "during") == old
            assert read_manifest(store, fresh, tmp_path) is None
            assert store.run(fresh).data.tags["relabel_audit.status"] == "failed"

        for run_id in (audited, fresh):
            assert ask(tmp_path, run_id, server.url).exit_code == 0
            manifest = whole(store, run_id, tmp_path / run_id)
            assert set(store.files(run_id)) == {*manifest.artifacts, "manifest.json"}
        assert whole(store, audited, tmp_path / "new").audit_id != old.audit_id


def test_a_full_disk_here(server_store, tmp_path):
    run_id, _ = log_models(model=fitted())
    uri = server_store.tracking_uri
    with small_disk(tmp_path / "disk", "2m") as disk:
        kept = ("--output-dir", str(disk / "out"), "--no-log")
        assert ask(tmp_path, run_id, uri, *kept).exit_code == 0
        old = (disk / "out" / "manifest.json").read_text()
        with full(disk, left=50_000):
            assert failed(ask(tmp_path, run_id, uri, *kept), "output directory", "free some space or pass another one")
            assert (disk / "out" / "manifest.json").read_text() == old
            manifest = Manifest.from_json(old)
            assert all(manifest.matches(path, disk / "out" / path) for path in manifest.artifacts)
            assert [path.name for path in disk.iterdir() if path.name != "filler"] == ["out"]
        assert ask(tmp_path, run_id, uri, *kept).exit_code == 0
        assert (disk / "out" / "manifest.json").read_text() != old


def test_no_room_for_temporary_files(server_store, tmp_path):
    """Files of this process may not pass 20 kB, which is as good as a full disk to whoever writes them."""
    run_id, _ = log_models(model=fitted())
    assert ask(tmp_path, run_id, server_store.tracking_uri).exit_code == 0
    old = whole(server_store, run_id, tmp_path / "old")
    code = "import sys; from mlflow_relabel_audit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words(tmp_path, run_id, server_store.tracking_uri)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("Error: temporary folder ")
    assert "set TMPDIR to a folder on another disk, then run the same command again" in done.stderr
    assert done.stderr.count("\n") == 1
    assert whole(server_store, run_id, tmp_path / "new") == old
    assert server_store.run(run_id).data.tags["relabel_audit.status"] == "failed"


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(mlflow_server, server_store, tmp_path, monkeypatch):
    run_id, _ = log_models(model=fitted())
    with Gate(mlflow_server) as gate:
        gate.seconds = 0.1
        assert ask(tmp_path, run_id, gate.url).exit_code == 0
        writes, gate.seconds = len(gate.writes), 0.0
        old = whole(server_store, run_id, tmp_path / "old")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        gate.how, gate.silence = "silent", 3.0
        for step in (1, writes // 2):  # the first write after the mark, one in the middle of the upload
            gate.fail_from = len(gate.writes) + step
            assert failed(ask(tmp_path, run_id, gate.url), "no answer in time", "run the same command again")
            gate.fail_from = None
            assert whole(server_store, run_id, tmp_path / str(step)) == old
        assert ask(tmp_path, run_id, gate.url).exit_code == 0
    assert whole(server_store, run_id, tmp_path / "new").generation > old.generation


def test_training_does_not_wait_for_a_silent_server(mlflow_server, server_store, caplog):
    def log():
        model = fitted()
        with mlflow.start_run() as run:
            before = len(gate.writes)
            mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
            return run.info.run_id, len(gate.writes) - before

    with Gate(mlflow_server) as gate:
        mlflow.set_tracking_uri(gate.url)
        _, writes = log()
        gate.how, gate.silence = "silent", 20.0
        autolog(time_budget=2)
        try:
            # Of what comes after the model is logged nothing is answered, the run's end excepted.
            gate.fail_from, gate.fail_to = len(gate.writes) + 1 + writes, len(gate.writes) + 3 + writes
            began = time.monotonic()
            run_id, _ = log()
            waited = time.monotonic() - began
        finally:
            autolog(disable=True)
            mlflow.set_tracking_uri(server_store.tracking_uri)
    assert waited < 2 + 1 + 5 + 6  # the budget, the grace, the two tags, and logging the model itself
    assert f"relabel audit of run {run_id} failed, the model itself is logged" in caplog.text
    assert server_store.run(run_id).info.status == "FINISHED"
    assert not server_store.files(run_id)


def test_a_write_that_another_client_made_first_may_be_repeated():
    """What MLflow's database says when two clients set the same tag at once, which it passes on as a bad request."""
    refused = MlflowException(
        "(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key, tags.run_uuid", error_code=BAD_REQUEST
    )
    with pytest.raises(StoreError, match="at the same time; run the same command again"), failures("the metrics"):
        raise refused
