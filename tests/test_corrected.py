"""Reviewed labels applied to a logged model: the right rows, the same pipeline, a child run; and refusals."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import audit
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.corrected import CHANGES, fit_again, relabel
from mlflow_relabel_audit.errors import DataMismatchError, RequestError
from mlflow_relabel_audit.tracking import TableRows

FEATURES = ["a", "b"]
CLASSES = ("bad", "good")


def rows(n: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, n))
    label = np.where(a - b + 0.3 * random.normal(size=n) > 0, *CLASSES[::-1])
    return pd.DataFrame({"a": a, "b": b, "label": label, "person": [f"{at:03d}" for at in range(n)]})


@pytest.fixture
def noisy(store, tmp_path):
    """A pipeline fitted on 200 rows of which every eighth is labelled wrong, its data, and a review of them."""
    train, test = rows(200, seed=0), rows(150, seed=1)
    wrong = np.arange(0, 200, 8)
    right = train["label"].copy()
    train.loc[wrong, "label"] = train.loc[wrong, "label"].map(dict(zip(CLASSES, CLASSES[::-1], strict=True)))
    train.to_parquet(tmp_path / "train.parquet")
    test.to_parquet(tmp_path / "test.parquet")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10.0)).fit(train[FEATURES], train["label"])
    with mlflow.start_run() as run:
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(train[FEATURES], model.predict(train[FEATURES])),
            pip_requirements=["scikit-learn==1.0", "joblib", "mlflow-skinny"],
        )
    frame = pd.DataFrame({"train_id": train["person"][wrong], "new_label": right[wrong]})
    frame.to_csv(tmp_path / "reviewed.csv", index=False)
    asked = {
        "train_data": str(tmp_path / "train.parquet"),
        "target": "label",
        "eval_data": str(tmp_path / "test.parquet"),
        "id_column": "person",
        "suspects": str(tmp_path / "reviewed.csv"),
    }
    return store, run.info.run_id, asked, (model, train, test, right)


# The fit


def test_weights_and_the_best_of_a_search_are_kept():
    frame = rows(80, seed=3)
    weight = np.linspace(0.1, 3.0, 80)
    table = TableRows(frame[FEATURES], frame["label"].to_numpy(), frame["person"].to_numpy(), "rows", weight)
    search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 5]})
    search.fit(table.X, table.y)
    fresh = fit_again(search, table, table.y, [])
    expected = clone(search.best_estimator_).fit(table.X, table.y, logisticregression__sample_weight=weight)
    np.testing.assert_array_equal(fresh[-1].coef_, expected[-1].coef_)
    assert not np.allclose(fresh[-1].coef_, search.best_estimator_[-1].coef_)
    plain = fit_again(LogisticRegression().fit(table.X, table.y), table, table.y, [])
    np.testing.assert_array_equal(plain.coef_, LogisticRegression().fit(table.X, table.y, weight).coef_)


def test_warnings_of_the_fit_are_told():
    messages: list[str] = []
    table = TableRows(rows(80, seed=3)[FEATURES], rows(80, seed=3)["label"].to_numpy(), np.arange(80), "rows")
    fit_again(LogisticRegression(max_iter=1, tol=1e-12), table, table.y, messages)
    assert "fitting on the corrected labels: lbfgs failed to converge" in messages[0]


# Through a store


def test_a_corrected_model_is_a_child_run(noisy, tmp_path):
    store, run_id, asked, (model, train, test, right) = noisy
    before = store.run(run_id)
    mlflow.sklearn.autolog()  # the refit is not to be taken for the user's own
    try:
        result = relabel(run_id, output_data=tmp_path / "corrected.parquet", **asked)
    finally:
        mlflow.sklearn.autolog(disable=True)

    expected = clone(model).fit(train[FEATURES], right)
    np.testing.assert_allclose(result.estimator[-1].coef_, expected[-1].coef_, rtol=1e-12)
    assert len(result.changes) == 25
    for figures, fitted in ((result.before, model), (result.after, expected)):
        assert figures["accuracy"] == accuracy_score(test["label"], fitted.predict(test[FEATURES]))
        assert figures["log_loss"] == pytest.approx(log_loss(test["label"], fitted.predict_proba(test[FEATURES])))
    change, low, high = result.loss_change
    assert change == pytest.approx(result.after["log_loss"] - result.before["log_loss"])
    assert low < change < high < 0

    child = store.run(result.child_run_id)
    assert (child.info.status, child.info.experiment_id) == ("FINISHED", before.info.experiment_id)
    assert child.data.tags["mlflow.parentRunId"] == run_id
    assert child.data.metrics == {
        "relabel_audit/labels_changed": 25.0,
        **{f"relabel_audit/{name}": value for name, value in result.after.items()},
        **{f"relabel_audit/{name}_before": value for name, value in result.before.items()},
    }
    loaded = mlflow.sklearn.load_model(result.corrected_uri)
    np.testing.assert_array_equal(loaded.predict(test[FEATURES]), expected.predict(test[FEATURES]))
    info = mlflow.models.get_model_info(result.corrected_uri)
    stored_as = [
        mlflow.models.get_model_info(uri).flavors["sklearn"]["serialization_format"]
        for uri in (result.model_uri, result.corrected_uri)
    ]
    assert stored_as[0] == stored_as[1]
    assert info.signature.inputs.input_names() == FEATURES
    assert {item.key for item in store.client.get_logged_model(info.model_id).metrics} == set(child.data.metrics)
    needs = Path(mlflow.artifacts.download_artifacts(result.corrected_uri), "requirements.txt").read_text().split()
    assert {"joblib", "mlflow-skinny"} <= set(needs)
    assert "scikit-learn==1.0" not in needs
    kept = mlflow.artifacts.download_artifacts(run_id=child.info.run_id, artifact_path=f"relabel_audit/{CHANGES}")
    pd.testing.assert_frame_equal(pd.read_csv(kept, dtype=str), result.changes.astype("str"), check_dtype=False)

    after = store.run(run_id)
    assert (after.info.status, after.info.end_time, after.data) == (
        before.info.status,
        before.info.end_time,
        after.data,
    )
    assert after.data.metrics == {}
    assert len(store.client.search_runs([before.info.experiment_id])) == 2
    assert mlflow.active_run() is None

    # The table with the corrected labels is what the corrected model can be audited with.
    asked = {**asked, "train_data": str(tmp_path / "corrected.parquet")}
    asked.pop("suspects")
    assert audit(result.child_run_id, max_predictions=5, **asked).logged


def test_compare_only_and_without_labels_to_compare_on(noisy):
    store, run_id, asked, _ = noisy
    result = relabel(run_id, log=False, **{**asked, "eval_data": None})
    assert (result.child_run_id, result.corrected_uri, result.before, result.after) == (None, None, {}, {})
    assert any("the two models are not compared" in message for message in result.messages)
    assert len(store.client.search_runs([store.run(run_id).info.experiment_id])) == 1


def test_wrong_requests_leave_nothing(noisy, tmp_path):
    store, run_id, asked, (_, train, _, _) = noisy
    train.assign(label=train["label"].sample(frac=1, random_state=0).to_numpy()).to_parquet(
        tmp_path / "shuffled.parquet"
    )
    pd.DataFrame({"train_id": ["000", "nobody"], "new_label": CLASSES}).to_csv(tmp_path / "unknown.csv")
    wrong = [
        ({"suspects": str(tmp_path / "unknown.csv")}, RequestError, "nobody"),
        ({"suspects": str(tmp_path / "missing.csv")}, RequestError, "suspects .*missing.csv: no such file"),
        ({"train_data": str(tmp_path / "shuffled.parquet")}, DataMismatchError, "train"),
        ({"id_column": None}, RequestError, "train ids are not among the training rows"),
        ({"train_data": None, "output_data": "x.parquet"}, RequestError, "output data: needs the table"),
    ]
    for changed, error, message in wrong:
        with pytest.raises(error, match=message):
            relabel(run_id, **{**asked, **changed})
    assert len(store.client.search_runs([store.run(run_id).info.experiment_id])) == 1


def test_the_command(noisy, tmp_path):
    _, run_id, asked, _ = noisy
    data = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = CliRunner().invoke(main, ["relabel", "--run-id", run_id, *data], env={"MLFLOW_RUN_ID": None})
    assert done.exit_code == 0, (done.output, done.exception)
    assert "25 labels changed" in done.stdout
    assert "and 15 more" in done.stdout
    assert "On 150 evaluation rows, before and after:" in done.stdout
    assert ": lower.\n" in done.stdout
    assert "Corrected model  models:/m-" in done.stdout
    (tmp_path / "reviewed.csv").write_text("train_id,new_label,reviewed\n000,bad,no\n")
    refused = CliRunner().invoke(main, ["relabel", "--run-id", run_id, *data])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: suspects: none of the 1 rows changes a label")
    assert refused.stderr.count("\n") == 1
