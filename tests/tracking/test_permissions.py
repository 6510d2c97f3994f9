"""A server with users: readers keep the audit on their machine, and passwords stay where they are."""

from __future__ import annotations

import json

import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import audit, autolog, tracking
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.tracking import PermissionDeniedError, Store
from tests.servers import Server
from tests.tracking.logged import FRAME, log_models

pytest.importorskip("flask_wtf", reason="mlflow server --app-name basic-auth needs mlflow[auth]")
pytestmark = [pytest.mark.server, pytest.mark.slow]
PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    """A server where ``admin`` may write and ``reader`` may read, with a run of admin's."""
    import mlflow
    import requests

    folder = tmp_path_factory.mktemp("protected")
    users = folder / "auth.ini"
    users.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\nauth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": "test"}
    before = mlflow.get_tracking_uri()
    with (
        Server(folder / "server", ("--app-name", "basic-auth"), environment) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        requests.post(
            f"{server.url}/api/2.0/mlflow/users/create",
            json={"username": "reader", "password": "reader-" + PASSWORD},
            auth=("admin", PASSWORD),
            timeout=60,
        ).raise_for_status()
        mlflow.set_tracking_uri(server.url)
        mlflow.set_experiment("Default")
        run_id, _ = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))
        mlflow.set_tracking_uri(before)
        FRAME.to_parquet(folder / "train.parquet")
        yield server, run_id, str(folder / "train.parquet")


@pytest.fixture
def reader(protected, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "reader-" + PASSWORD)
    return protected


def ask(protected, **changed):
    server, run_id, rows = protected
    return audit(
        run_id,
        **{"train_data": rows, "target": "label", "max_predictions": 3, **changed},
        tracking_uri=server.url,
    )


def test_a_reader_is_told_of_the_output_directory(reader):
    with pytest.raises(PermissionDeniedError, match=r"permission denied; .*--output-dir DIR --no-log") as caught:
        ask(reader)
    assert caught.value.exit_code == 3
    assert PASSWORD not in str(caught.value)


def test_a_reader_with_an_output_directory_gets_the_audit_there(reader, tmp_path):
    result = ask(reader, output_dir=tmp_path / "kept")
    assert not result.logged
    assert any("not logged to the run: " in message for message in result.messages)
    assert json.loads((tmp_path / "kept" / "summary.json").read_text())["metrics"] == result.summary
    server, run_id, _ = reader
    assert not Store.connect(server.url).files(run_id)


def test_without_or_with_a_wrong_password(protected, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-" + PASSWORD)
    with pytest.raises(StoreError, match="wants a login; set MLFLOW_TRACKING_USERNAME"):
        ask(protected)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(StoreError, match="wants a login; set MLFLOW_TRACKING_USERNAME"):
        ask(protected)


def test_the_password_in_the_address_is_nowhere(protected, monkeypatch, tmp_path, caplog):
    server, run_id, rows = protected
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    uri = server.url.replace("http://", f"http://admin:{PASSWORD}@")
    result = audit(run_id, train_data=rows, target="label", max_predictions=3, tracking_uri=uri)
    assert PASSWORD not in repr(result)
    assert PASSWORD not in caplog.text
    store = Store.connect(uri)
    assert PASSWORD not in repr(store)
    for path in store.files(run_id):
        file = store.fetch(run_id, f"relabel_audit/{path}", tmp_path)
        assert PASSWORD.encode() not in file.read_bytes(), path
    assert not any(PASSWORD in value for value in store.run(run_id).data.tags.values())


def test_the_hook_of_a_user_who_may_write_and_of_one_whose_rights_end(protected, monkeypatch, tmp_path, caplog):
    """Its threads log in as training does; rights that are gone by then cost a warning, not the training."""
    import mlflow

    begin = tracking.begin

    def train():
        model = LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"])
        mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])

    server, _, _ = protected
    store, before = Store.connect(server.url), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.url)
    autolog(max_predictions=3)
    try:
        with mlflow.start_run() as allowed:
            train()
        run_id = allowed.info.run_id
        run = store.run(run_id)
        assert (run.data.tags["relabel_audit.status"], run.info.status) == ("complete", "FINISHED")
        for path in store.files(run_id):
            assert PASSWORD.encode() not in store.fetch(run_id, f"relabel_audit/{path}", tmp_path).read_bytes(), path

        def as_reader(*args):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "reader-" + PASSWORD)
            return begin(*args)

        monkeypatch.setattr(tracking, "begin", as_reader)
        with mlflow.start_run() as refused:
            train()
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    finally:
        autolog(disable=True)
        mlflow.set_tracking_uri(before)
    said = [item.getMessage() for item in caplog.records if item.name == "mlflow_relabel_audit"]
    assert len(said) == 1
    assert "the model itself is logged" in said[0]
    assert "permission denied" in said[0]
    assert PASSWORD not in caplog.text
    assert store.run(refused.info.run_id).info.status == "FINISHED"
    assert not store.files(refused.info.run_id)
