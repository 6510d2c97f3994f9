"""Rows and artifacts in an S3 store, spoken to over its real protocol on loopback."""

from __future__ import annotations

import logging

import mlflow
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import audit
from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.tracking import read_manifest
from tests.servers import free_port
from tests.tracking.logged import FRAME, log_models

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install '.[test]'")
moto = pytest.importorskip("moto.server", reason="moto[server] is not installed: pip install '.[test]'")
pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets that botocore keeps for the next request
]
SECRET = "the-secret-key-of-s3"


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket ``audits``; MLflow and boto3 find it by their environment alone."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="audits")
    try:
        yield client, server
    finally:
        server.stop()


def test_rows_and_artifacts(store, bucket, tmp_path, caplog):
    client, server = bucket
    FRAME.to_parquet(tmp_path / "rows.parquet")
    client.upload_file(str(tmp_path / "rows.parquet"), "audits", "data/rows.parquet")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("in s3", artifact_location="s3://audits/mlflow"))
    run_id, _ = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))
    rows = {"train_data": "s3://audits/data/rows.parquet", "target": "label", "max_predictions": 5}

    first, again = audit(run_id, **rows), audit(run_id, **rows)
    assert (first.hessian_cached, again.hessian_cached) == (False, True)
    manifest = read_manifest(store, run_id, tmp_path)
    assert manifest.generation == 2
    held = client.list_objects_v2(Bucket="audits", Prefix=f"mlflow/{run_id}/")["Contents"]
    kept = {item["Key"].removeprefix(f"mlflow/{run_id}/artifacts/relabel_audit/") for item in held}
    assert kept == {*manifest.artifacts, "manifest.json"}  # nothing of the staging is left
    for path in manifest.artifacts:
        object_ = client.get_object(Bucket="audits", Key=f"mlflow/{run_id}/artifacts/relabel_audit/{path}")
        assert SECRET.encode() not in object_["Body"].read()

    for uri in ("s3://audits/data/none.parquet", "s3://nobody/rows.parquet"):
        with pytest.raises((RequestError, StoreError), match=r"\.parquet: ") as caught:
            audit(run_id, **{**rows, "train_data": uri})
        assert uri in str(caught.value)
        assert "\n" not in str(caught.value)
    server.stop()
    with pytest.raises(StoreError, match="run the same command again") as gone:
        audit(run_id, **rows)
    assert "\n" not in str(gone.value)
    assert SECRET not in str(gone.value) + caplog.text
    assert store.run(run_id).data.tags["relabel_audit.status"] == "complete"
