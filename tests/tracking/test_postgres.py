"""A server whose runs and registry are in PostgreSQL: audit, rerun, gate, and the database going away."""

from __future__ import annotations

import mlflow
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import audit
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.gate import gate
from mlflow_relabel_audit.tracking import Store, read_manifest
from tests.postgres import PASSWORD, Postgres, programs
from tests.servers import Server
from tests.tracking.logged import FRAME, log_models

pytestmark = [pytest.mark.server, pytest.mark.slow]
VERDICT = "relabel_audit.verdict"


@pytest.fixture(scope="module")
def database():
    with Postgres(programs()) as running:
        yield running


@pytest.fixture(scope="module")
def logged(database, tmp_path_factory):
    """A server on that database, a run with a model, registered as ``loan``, and the options that name its rows."""
    folder = tmp_path_factory.mktemp("postgres")
    FRAME.to_parquet(folder / "rows.parquet")
    before = mlflow.get_tracking_uri()
    with Server(folder / "server", backend=database.uri) as server:
        mlflow.set_tracking_uri(server.url)
        mlflow.set_experiment("Default")
        try:
            run_id, models = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))
            mlflow.register_model(models["model"].model_uri, "loan")
            yield Store.connect(server.url), run_id, {"train_data": str(folder / "rows.parquet"), "target": "label"}
        finally:
            mlflow.set_tracking_uri(before)


def test_audit_rerun_and_gate(logged, tmp_path):
    store, run_id, rows = logged
    first = audit(run_id, max_predictions=10, tracking_uri=store.tracking_uri, **rows)
    again = audit(run_id, max_predictions=10, tracking_uri=store.tracking_uri, **rows)
    assert (first.hessian_cached, again.hessian_cached, again.logged) == (False, True, True)
    manifest = read_manifest(store, run_id, tmp_path)
    assert manifest.generation == 2
    assert set(store.files(run_id)) == {*manifest.artifacts, "manifest.json"}
    run = store.run(run_id)
    assert run.data.metrics == {f"relabel_audit/{name}": value for name, value in again.summary.items()}
    assert len(store.client.get_metric_history(run_id, "relabel_audit/k_median")) == 1
    assert run.data.tags["relabel_audit.status"] == "complete"
    model = store.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {item.key for item in model.metrics} == set(run.data.metrics)

    judged = gate("models:/loan/1", ["k_median >= 1"], "champion", tracking_uri=store.tracking_uri)
    assert (judged.passed, judged.audited, judged.promoted) == (True, False, "champion")
    assert store.client.get_model_version_by_alias("loan", "champion").tags[VERDICT] == "pass"
    assert [each.version for each in store.client.search_model_versions(f"tags.`{VERDICT}` = 'pass'")] == ["1"]


def ask(uri, run_id, rows):
    words = ["--train-data", rows["train_data"], "--target", "label", "--max-predictions", "5"]
    return CliRunner().invoke(main, ["audit", "--tracking-uri", uri, "--run-id", run_id, *words])


def test_the_password_of_the_database_is_nowhere(logged, database):
    """Straight to the database: it holds the run, but not the artifacts, which only the server can give."""
    _, run_id, rows = logged
    refused = ask(database.uri, run_id, rows)
    assert refused.exit_code in (2, 3), refused.output
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1
    assert PASSWORD not in refused.output
    assert "postgresql+psycopg2://***@127.0.0.1" in refused.stdout


def test_a_database_that_stops_leaves_the_audit_and_says_what_to_do(logged, database, tmp_path):
    store, run_id, rows = logged
    audit(run_id, max_predictions=5, tracking_uri=store.tracking_uri, **rows)
    before = read_manifest(store, run_id, tmp_path)
    database.stop()
    try:
        down = ask(store.tracking_uri, run_id, rows)
    finally:
        database.start()
    assert down.exit_code == 3, down.output
    assert down.stderr.count("\n") == 1
    assert "run the same command again" in down.stderr
    assert PASSWORD not in down.output
    assert read_manifest(store, run_id, tmp_path) == before
    # the server drops one dead connection of its pool a request; the same command does in the end
    again = (ask(store.tracking_uri, run_id, rows) for _ in range(5))
    assert next((each for each in again if each.exit_code == 0), None) is not None
