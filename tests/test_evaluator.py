"""The evaluator of mlflow.models.evaluate: asked for by its configuration, beside MLflow's own, never in its way."""

from __future__ import annotations

import logging
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.evaluator import RelabelEvaluator
from mlflow_relabel_audit.evaluator.compose import FOLDER
from tests.tracking.logged import log_models

FEATURES, Y = load_breast_cancer(return_X_y=True, as_frame=True)
FEATURES = FEATURES.iloc[:, :5]
TRAIN, TEST = FEATURES[:300], FEATURES[300:340].assign(label=Y[300:340])
MODEL = make_pipeline(StandardScaler(), LogisticRegression()).fit(TRAIN, Y[:300])
pytestmark = pytest.mark.filterwarnings("ignore:.*y_pred.*:FutureWarning")  # MLflow's call of log_loss


@pytest.fixture
def model_uri(store):
    _, logged = log_models(model=MODEL, example=TRAIN)
    return logged["model"].model_uri


def evaluate(model, evaluators="relabel_audit", **config):
    return mlflow.models.evaluate(
        model, TEST, targets="label", model_type="classifier", evaluators=evaluators, evaluator_config=config
    )


def test_metrics_of_the_evaluated_rows_linked_to_model_and_dataset(store, model_uri, tmp_path):
    with mlflow.start_run() as run:
        result = evaluate(model_uri, train_data=(TRAIN, Y[:300]))
    expected = Auditor(MODEL, TRAIN, Y[:300]).robustness(TEST.drop(columns="label"), TEST["label"])
    found = {name: value for name, value in result.metrics.items() if name != "relabel_audit/seconds"}
    assert found == pytest.approx({f"relabel_audit/{name}": value for name, value in expected.summary.items()})
    pd.testing.assert_frame_equal(result.artifacts["relabel_audit_predictions"].content, expected.predictions)
    assert set(store.files(run.info.run_id)) == {"evaluation/robustness.html", "evaluation/predictions.parquet"}
    stored = store.fetch(run.info.run_id, f"{FOLDER}/predictions.parquet", tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(stored), expected.predictions)
    linked = store.client.get_logged_model(model_uri.rpartition("/")[2]).metrics
    assert sorted(item.key for item in linked) == sorted(result.metrics)  # each once
    assert all(item.dataset_name for item in linked)
    result.save(str(tmp_path / "saved"))


def test_a_table_on_disk_options_and_arrays(store, tmp_path):
    TRAIN.assign(label=Y[:300]).to_parquet(tmp_path / "train.parquet")
    arrays = LogisticRegression(max_iter=5000).fit(TRAIN.to_numpy(), Y[:300])
    _, logged = log_models(model=arrays, example=TRAIN.to_numpy())
    result = evaluate(
        logged["model"].model_uri,
        train_data=str(tmp_path / "train.parquet"),
        target="label",
        threshold=0.3,
        max_predictions=7,
        verify=False,
    )
    assert len(result.artifacts["relabel_audit_predictions"].content) == 7
    assert result.metrics["relabel_audit/verified_share"] == 0


def test_a_model_without_an_id_logs_for_itself(store, model_uri):
    model = mlflow.pyfunc.load_model(model_uri)
    with mlflow.start_run() as run:
        result = RelabelEvaluator().evaluate(
            model_type="classifier",
            dataset=mlflow.data.from_pandas(TEST, targets="label", name="test").to_evaluation_dataset(),
            run_id=run.info.run_id,
            evaluator_config={"train_data": (TRAIN, Y[:300])},
            model=model,
            model_id=None,
        )
    assert store.run(run.info.run_id).data.metrics == result.metrics != {}


@pytest.mark.slow
def test_beside_the_default_evaluator_and_only_when_asked_for(store, model_uri):
    ours = "relabel_audit/k_median"
    both = evaluate(
        model_uri,
        ["default", "relabel_audit"],
        default={"log_explainer": False, "log_model_explainability": False},
        relabel_audit={"train_data": (TRAIN, Y[:300])},
    )
    assert {ours, "accuracy_score"} <= set(both.metrics)
    unasked = evaluate(model_uri, None, log_model_explainability=False)
    assert "accuracy_score" in unasked.metrics
    assert ours not in unasked.metrics


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"trian_data": 1, "train_data": (TRAIN, Y[:300])}, "got 'trian_data'; did you mean 'train_data'?"),
        ({"train_data": TRAIN}, "got DataFrame; pass a tuple"),
        ({"train_data": (TRAIN, Y[:300][::-1].to_numpy())}, "training"),
        ({"train_data": "nowhere.parquet", "target": "label"}, "nowhere.parquet"),
    ],
)
def test_what_is_wrong_is_one_warning_and_the_evaluation_goes_on(model_uri, config, said, caplog):
    with caplog.at_level(logging.WARNING, "mlflow_relabel_audit"):
        result = evaluate(model_uri, **config)
    assert result.metrics == {}
    (message,) = [item.getMessage() for item in caplog.records if item.name == "mlflow_relabel_audit"]
    assert message.startswith("relabel audit left out of the evaluation: ")
    assert said in message


def test_functions_are_not_audited(store, caplog):
    result = evaluate(lambda rows: np.ones(len(rows)), train_data=(TRAIN, Y[:300]))
    assert result.metrics == {}
    assert "pass the URI of a scikit-learn model" in caplog.text


def test_whether_it_was_asked_for(monkeypatch):
    assert not RelabelEvaluator.can_evaluate(model_type="classifier", evaluator_config={})
    assert not RelabelEvaluator.can_evaluate(model_type="classifier", evaluator_config={"pos_label": 1})
    assert RelabelEvaluator.can_evaluate(model_type="classifier", evaluator_config={"train_data": "a"})
    assert not RelabelEvaluator.can_evaluate(model_type="regressor", evaluator_config={"train_data": "a"})
    monkeypatch.setenv("MLFLOW_RELABEL_AUDIT", "1")
    assert RelabelEvaluator.can_evaluate(model_type="classifier", evaluator_config={})


def test_an_evaluation_that_does_not_ask_pays_nothing():
    code = """
import sys, mlflow.models.evaluation.evaluator_registry as registry
import mlflow.models.evaluation.base
assert "relabel_audit" in registry._model_evaluation_registry._registry
print(sorted(name for name in sys.modules if name.startswith("mlflow_relabel_audit")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [f"mlflow_relabel_audit{name}" for name in ("", ".dataset_source", ".evaluator", ".provider")]
    assert done.stdout.strip().splitlines()[-1] == str(loaded)
