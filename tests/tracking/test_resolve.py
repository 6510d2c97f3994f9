"""From ids and URIs to one model; everything that names none, or several."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from mlflow_relabel_audit.errors import RequestError, StoreError, UnsupportedModelError
from mlflow_relabel_audit.tracking import Store, load_model, resolve
from tests.tracking.logged import FRAME, log_models

pytestmark = pytest.mark.server


@pytest.fixture
def one(server_store):
    run_id, models = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))
    return server_store, run_id, models["model"]


@pytest.fixture
def two(server_store):
    fitted = LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"])
    run_id, models = log_models(first=fitted, second=fitted)
    return server_store, run_id, models


def test_run_with_one_model(one, tmp_path):
    store, run_id, logged = one
    found = resolve(store, run_id=run_id)
    assert (found.run_id, found.model_id, found.model_name) == (run_id, logged.model_id, "model")
    loaded = load_model(store, found, tmp_path)
    assert loaded.input_names == ("a", "b")
    assert loaded.estimator.coef_.shape == (1, 2)
    assert any(message.startswith("model stored as ") for message in loaded.messages)


def test_every_form_of_uri(one):
    store, run_id, logged = one
    mlflow.register_model(logged.model_uri, "loan")
    version = store.client.search_model_versions("name='loan'")[0].version
    store.client.set_registered_model_alias("loan", "champion", version)
    forms = (logged.model_uri, f"models:/loan/{version}", "models:/loan@champion", "models:/loan/latest")
    for uri in (*forms, f"runs:/{run_id}/model"):
        found = resolve(store, model_uri=uri)
        assert (found.run_id, found.model_id, found.model_uri) == (run_id, logged.model_id, uri)
    assert resolve(store, model_uri="models:/loan@champion").version == version
    assert resolve(store, model_uri=logged.model_uri, run_id=run_id).run_id == run_id


def test_two_models_need_a_name(two):
    store, run_id, models = two
    with pytest.raises(RequestError, match=r"has 2 models; say which with --model-name NAME .*first.*second"):
        resolve(store, run_id=run_id)
    with pytest.raises(RequestError, match=r"no model named 'third'; it has first \(m-\w+\), second"):
        resolve(store, run_id=run_id, model_name="third")
    for name in ("second", models["second"].model_id):
        assert resolve(store, run_id=run_id, model_name=name).model_id == models["second"].model_id
    assert resolve(store, model_uri=f"runs:/{run_id}/first").model_id == models["first"].model_id


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "pass --run-id ID or --model-uri URI"),
        ({"run_id": "0" * 32}, "not found at http://127.0.0.1:.*check the id"),
        ({"model_uri": f"models:/m-{'0' * 32}"}, "not found at"),
        ({"model_uri": "models:/nobody/3"}, "there is none at"),
        ({"model_uri": "models:/nobody@champion"}, "there is none at|MLflow refused"),
        ({"model_uri": "models:/nobody/latest"}, "there is none at"),
        ({"model_uri": f"runs:/{'0' * 32}/model"}, "not found at"),
        ({"model_uri": "s3://bucket/model"}, "not a form this reads; pass models:/NAME/VERSION"),
    ],
    ids=str,
)
def test_nothing_there(server_store, request_, message):
    with pytest.raises(RequestError, match=message) as caught:
        resolve(server_store, **request_)
    assert "\n" not in str(caught.value)


def test_run_without_a_model_and_deleted_run(server_store):
    run_id, _ = log_models()
    with pytest.raises(RequestError, match=r"holds no logged model; log one with mlflow\.sklearn\.log_model"):
        resolve(server_store, run_id=run_id)
    server_store.client.delete_run(run_id)
    with pytest.raises(RequestError, match=f"it is deleted; restore it first .*--run-id {run_id}"):
        resolve(server_store, run_id=run_id)


def test_run_and_uri_of_different_runs(one):
    store, run_id, logged = one
    other, _ = log_models()
    with pytest.raises(RequestError, match=f"belongs to run {run_id}, not to run {other}"):
        resolve(store, run_id=other, model_uri=logged.model_uri)


def test_model_of_another_flavor(server_store, tmp_path):
    class Constant(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: pd.DataFrame):
            return [0] * len(model_input)

    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(name="model", python_model=Constant(), pip_requirements=[])
    found = resolve(server_store, run_id=run.info.run_id)
    with pytest.raises(UnsupportedModelError, match="its flavor is python_function; this audit takes"):
        load_model(server_store, found, tmp_path)


def test_mlflow_forbids_loading(one, tmp_path, monkeypatch):
    store, run_id, _ = one
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(RequestError, match=r"load.*PICKLE_DESER|PICKLE_DESER.* forbids"):
        load_model(store, resolve(store, run_id=run_id), tmp_path)


def test_other_scikit_learn_is_said(one, tmp_path):
    store, run_id, logged = one
    found = resolve(store, run_id=run_id)
    folder = store.fetch_uri(found.location, tmp_path / "edited", "model")
    described = folder / "MLmodel"
    described.write_text(described.read_text().replace("sklearn_version: ", "sklearn_version: 0.9."))
    store.client.log_model_artifacts(logged.model_id, str(folder))
    loaded = load_model(store, found, tmp_path / "again")
    assert any("trained with scikit-learn 0.9." in message for message in loaded.messages)


def test_pickled_tree_loads_and_is_left_to_the_auditor(server_store, tmp_path):
    tree = DecisionTreeClassifier().fit(FRAME[["a", "b"]], FRAME["label"])
    run_id, _ = log_models(serialization_format="cloudpickle", model=tree)
    loaded = load_model(server_store, resolve(server_store, run_id=run_id), tmp_path)
    assert isinstance(loaded.estimator, DecisionTreeClassifier)
    assert "model stored as cloudpickle" in loaded.messages


def test_dead_server_says_so_without_the_password():
    store = Store.connect("http://user:hunter22@127.0.0.1:9")
    assert store.shown_uri == "http://***@127.0.0.1:9"
    with pytest.raises(StoreError, match=r"the store failed .* run the same command again") as caught:
        resolve(store, run_id="0" * 32)
    assert "hunter22" not in str(caught.value)
    assert "\n" not in str(caught.value)
