"""The training hook: what is fitted and logged is audited, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
import time
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import mlflow_relabel_audit
from mlflow_relabel_audit import Auditor, RequestError, audit, autolog
from mlflow_relabel_audit.autolog import compose
from mlflow_relabel_audit.autolog.capture import KEPT, Capture, Captures
from mlflow_relabel_audit.autolog.compose import TimeBudgetError
from mlflow_relabel_audit.autolog.settings import Settings
from mlflow_relabel_audit.tracking import Subject, TableRows, read_manifest, read_summary
from tests.versions import elastic

X, Y = load_breast_cancer(return_X_y=True)
X, Y, X_TEST, Y_TEST = X[:300, :6], Y[:300], X[300:, :6], Y[300:]
CLASSES = (LogisticRegression, LogisticRegressionCV, OneVsRestClassifier, Pipeline)
FILES = {
    "flip_sets.parquet",
    "hessian.json",
    "hessian.npz",
    "manifest.json",
    "noise.html",
    "predictions.json",
    "predictions.parquet",
    "robustness.html",
    "summary.json",
    "summary.md",
    "suspects.csv",
}
autologging = pytest.mark.filterwarnings("ignore:.*y_pred.*:FutureWarning")  # MLflow's call of log_loss


def wrapped():
    return [*(vars(each)["fit"] for each in CLASSES), vars(mlflow.models.Model)["log"]]


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Whatever a test switches on, it leaves scikit-learn and MLflow with the very objects they had."""
    monkeypatch.setenv("MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT", "1")  # autologging infers them, for seconds
    before = wrapped()
    yield
    autolog(disable=True)
    mlflow.autolog(disable=True)
    mlflow.sklearn.autolog(disable=True)
    assert all(now is then for now, then in zip(wrapped(), before, strict=True))


def scaled(**options):
    return make_pipeline(StandardScaler(), LogisticRegression(**options))


def log(model, name="model"):
    return mlflow.sklearn.log_model(
        model, name=name, pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
    )


def fit_and_log(model, *args, **kwargs):
    with mlflow.start_run() as run:
        info = log(model.fit(*(args or (X, Y)), **kwargs))
    return run.info.run_id, info.model_id


def tags(store, run_id):
    found = store.run(run_id).data.tags
    return {name.removeprefix("relabel_audit."): value for name, value in found.items() if "relabel_audit." in name}


def all_runs():
    return list(mlflow.search_runs(search_all_experiments=True)["run_id"])


def check_audited(store, run_id, model_id=None):
    run = store.run(run_id)
    assert tags(store, run_id)["status"] == "complete", tags(store, run_id)
    assert run.info.status == "FINISHED"
    if model_id is not None:
        linked = {item.key for item in store.client.get_logged_model(model_id).metrics}
        assert {"relabel_audit/k_median", "relabel_audit/seconds"} <= linked


@pytest.mark.server
def test_a_fitted_and_logged_model_is_audited_on_a_server(server_store, tmp_path):
    autolog(max_predictions=10)
    run_id, model_id = fit_and_log(scaled())
    check_audited(server_store, run_id, model_id)
    assert set(server_store.files(run_id)) == FILES  # and none with the rows
    manifest = read_manifest(server_store, run_id, tmp_path)
    assert set(manifest.artifacts) == FILES - {"manifest.json"}
    summary = read_summary(server_store, run_id, tmp_path)
    assert summary["n_eval"] == 10
    assert summary["n_train"] == 300
    said = " ".join(summary["messages"])
    assert "no evaluation data given to autolog: the predictions on the training rows are audited" in said
    assert "random sample of 10 of the 300 training rows" in said


def test_the_same_figures_as_without_the_hook(store, tmp_path):
    autolog(eval_data=(X_TEST, Y_TEST), max_predictions=len(X_TEST), threshold=0.4)
    weight = np.linspace(0.5, 2, len(Y))
    model = scaled()
    run_id, _ = fit_and_log(model, X, Y, logisticregression__sample_weight=weight)
    expected = Auditor(model, X, Y, sample_weight=weight, threshold=0.4).robustness(X_TEST, Y_TEST)
    found = pd.read_parquet(store.fetch(run_id, "relabel_audit/predictions.parquet", tmp_path))
    pd.testing.assert_frame_equal(found, expected.predictions)
    sets = pd.read_parquet(store.fetch(run_id, "relabel_audit/flip_sets.parquet", tmp_path))
    pd.testing.assert_frame_equal(sets, expected.flip_sets)
    metrics = store.run(run_id).data.metrics
    assert metrics["relabel_audit/k_median"] == expected.summary["k_median"]


@autologging
@pytest.mark.slow
@pytest.mark.parametrize("order", ["ours mlflow", "mlflow ours", "mlflow ours mlflow ours", "ours all ours mlflow"])
def test_any_order_with_autologging(store, order):
    switch = {
        "ours": lambda: autolog(max_predictions=5),
        "mlflow": lambda: mlflow.sklearn.autolog(log_input_examples=True, silent=True),
        "all": mlflow.autolog,
    }
    for name in order.split():
        switch[name]()
    model = scaled().fit(X, Y)
    (run_id,) = all_runs()
    check_audited(store, run_id)
    assert store.run(run_id).data.metrics["training_accuracy_score"] > 0.8  # MLflow's own part is there too
    config = mlflow.utils.autologging_utils.AUTOLOGGING_INTEGRATIONS["sklearn"]
    assert (config["log_input_examples"], config["silent"]) == (True, True)
    # out again, while MLflow's stays in
    autolog(disable=True)
    model.fit(X, Y)
    _, second = sorted(all_runs(), key=lambda each: store.run(each).info.start_time)
    assert not tags(store, second)
    assert "training_accuracy_score" in store.run(second).data.metrics


@autologging
@pytest.mark.slow
def test_a_search_is_audited_once(store):
    autolog(max_predictions=5)
    mlflow.sklearn.autolog(max_tuning_runs=None)
    search = GridSearchCV(scaled(), {"logisticregression__C": [0.1, 1, 10]}, cv=3, n_jobs=2).fit(X, Y)
    audited = [run_id for run_id in all_runs() if tags(store, run_id)]
    assert len(all_runs()) == 4  # the search and MLflow's three children
    (run_id,) = audited
    check_audited(store, run_id)
    mlflow.sklearn.autolog(disable=True)
    second, _ = fit_and_log(clone(search))
    check_audited(store, second)


def test_scores_of_folds_and_copies_start_nothing(store):
    autolog(max_predictions=5)
    with mlflow.start_run() as run:
        assert len(cross_val_score(scaled(), X, Y, cv=3)) == 3
        model = scaled().fit(X, Y)
        assert pickle.loads(pickle.dumps(LogisticRegression.fit)) is LogisticRegression.fit
        same = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(same.predict(X), model.predict(X))
        log(same)  # nobody knows what this object was fitted on
        log(copy.deepcopy(model), "copied")
    assert all_runs() == [run.info.run_id]
    assert not tags(store, run.info.run_id)
    assert set(clone(model)[-1].get_params()) == set(LogisticRegression().get_params())


def test_one_audit_for_a_run_and_fit(store):
    autolog(max_predictions=5)
    model = scaled()
    with mlflow.start_run() as run:
        log(model.fit(X, Y))
        first = tags(store, run.info.run_id)["audit_id"]
        log(model, "again")
        assert tags(store, run.info.run_id)["audit_id"] == first
        log(model.fit(X[:250], Y[:250]), "refitted")
        assert tags(store, run.info.run_id)["audit_id"] != first
    with mlflow.start_run() as other:
        log(model)
    check_audited(store, other.info.run_id)


def test_nested_runs_and_threads_get_their_own(store):
    autolog(max_predictions=5)
    with mlflow.start_run() as parent:
        with mlflow.start_run(nested=True) as child:
            log(scaled().fit(X, Y))
        assert mlflow.active_run().info.run_id == parent.info.run_id
    check_audited(store, child.info.run_id)
    assert not tags(store, parent.info.run_id)

    made: list[tuple[str, str]] = []
    threads = [threading.Thread(target=lambda: made.append(fit_and_log(scaled()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run_id for run_id, _ in made}) == 2
    for run_id, model_id in made:
        check_audited(store, run_id, model_id)


def test_text_and_stored_training_rows(store):
    words = np.random.default_rng(0).choice(["good", "bad", "fine", "poor", "so so"], size=(80, 4))
    texts = [" ".join(row) for row in words]
    labels = ["yes" if row.count("good") + row.count("fine") > 1 else "no" for row in texts]
    autolog(max_predictions=5, log_training_data=True)
    run_id, _ = fit_and_log(make_pipeline(TfidfVectorizer(), LogisticRegression()), texts, labels)
    check_audited(store, run_id)
    kept = set(store.files(run_id))
    assert kept - FILES == {"data/X.parquet", "data/rows.parquet", "data/data.json"}
    autolog(disable=True)
    before = store.run(run_id).data.metrics["relabel_audit/k_median"]
    again = audit(run_id, max_predictions=5)
    assert again.hessian_cached  # so the rows and the model are the very same
    assert again.summary["k_median"] == before
    assert set(store.files(run_id)) == kept


def test_what_cannot_be_audited_is_one_warning_and_two_tags(store, caplog):
    autolog()
    with caplog.at_level(logging.WARNING, "mlflow_relabel_audit"):
        run_id, _ = fit_and_log(scaled(**elastic(1.0), solver="saga", max_iter=5000))
    (said,) = [item.getMessage() for item in caplog.records if item.name == "mlflow_relabel_audit"]
    assert said.startswith(f"relabel audit of run {run_id} failed, the model itself is logged: ")
    found = tags(store, run_id)
    assert found["status"] == "failed"
    assert "l1" in found["error"]
    assert store.run(run_id).info.status == "FINISHED"

    caplog.clear()
    autolog(silent=True)
    # rows changed behind the fit's back are noticed, not reported on
    frame = pd.DataFrame(X)
    model = scaled().fit(frame, Y)
    frame[:] = frame.to_numpy()[::-1]
    with mlflow.start_run() as run:
        log(model)
    assert tags(store, run.info.run_id)["status"] == "failed"
    assert not [item for item in caplog.records if item.name == "mlflow_relabel_audit"]


def test_other_models_and_models_outside_a_run_are_left_alone(store, caplog):
    autolog()
    with caplog.at_level(logging.WARNING, "mlflow_relabel_audit"):
        run_id, _ = fit_and_log(make_pipeline(StandardScaler(), FunctionTransformer()))
        log(scaled().fit(X, Y))
    assert not tags(store, run_id)
    assert all_runs() == [run_id]
    assert not [item for item in caplog.records if item.name == "mlflow_relabel_audit"]


def slow_in_the_audit(values):
    if threading.current_thread().name == "relabel-audit":
        time.sleep(4)
    return values


def test_training_waits_no_longer_than_the_budget(store, caplog):
    autolog(time_budget=0.3)
    model = make_pipeline(FunctionTransformer(slow_in_the_audit), LogisticRegression(max_iter=5000)).fit(X, Y)
    with mlflow.start_run() as run:
        autolog(disable=True)
        began = time.monotonic()
        log(model)
        plain = time.monotonic() - began
        autolog(time_budget=0.3)
        model.fit(X, Y)
        began = time.monotonic()
        log(model, "hooked")
        assert time.monotonic() - began < plain + 3.0
    assert "time budget of 0.3 s" in caplog.text
    found = tags(store, run.info.run_id)
    assert (found["status"], "time budget" in found["error"]) == ("failed", True)
    for thread in threading.enumerate():
        if thread.name == "relabel-audit":
            thread.join(30)
    # it ended by itself and left no half audit
    assert tags(store, run.info.run_id)["status"] == "failed"
    assert not store.files(run.info.run_id)


def test_time_for_some_predictions_gives_those_and_says_so():
    auditor = Auditor(scaled().fit(X, Y), X, Y)
    whole = auditor.robustness(X_TEST)
    rows = TableRows(X_TEST, Y_TEST, np.arange(len(X_TEST)), "test")
    subject = Subject(None, None, rows, rows, auditor, False, ())
    quick = auditor.robustness

    def slow(*args, **kwargs):
        time.sleep(0.1)
        return quick(*args, **kwargs)

    auditor.robustness = slow
    result, cut = compose._robustness(subject, time.monotonic() + 0.6)
    done = len(result.predictions)
    assert 0 < done < len(X_TEST)
    assert result.stopped
    assert list(result.predictions["row_id"]) == sorted(result.predictions["row_id"])
    assert list(cut.evaluation.row_ids) == list(result.predictions["row_id"])
    assert f"after {done} of {len(X_TEST)} predictions" in cut.messages[-1]
    expected = whole.predictions.set_index("row_id").loc[result.predictions["row_id"], "k"]
    assert list(expected) == list(result.predictions["k"])
    with pytest.raises(TimeBudgetError, match="pass more seconds"):
        compose._robustness(replace(subject), time.monotonic())


def sleep_in_the_audit(values):
    time.sleep(3)
    return values


@pytest.mark.slow
def test_the_noise_audit_is_left_out_where_there_is_no_time_for_it(store, tmp_path):
    model = make_pipeline(FunctionTransformer(sleep_in_the_audit), LogisticRegression(max_iter=5000)).fit(X, Y)
    run_id, model_id = fit_and_log(clone(model))
    compose.audit_fit(
        model,
        Capture(X, Y, None),
        run_id=run_id,
        model_id=model_id,
        tracking_uri=store.tracking_uri,
        settings=Settings(),
        end=time.monotonic() + 5,
        given_up=lambda: False,
    )
    check_audited(store, run_id, model_id)
    assert set(store.files(run_id)) == FILES - {"noise.html", "suspects.csv"}
    said = " ".join(read_summary(store, run_id, tmp_path)["messages"])
    assert "the noise audit was left out: the time budget was spent" in said
    assert "the time budget was spent after 8 of 200 predictions, drawn at random" in said


def test_captures_end_with_their_estimators():
    captures = Captures()
    models = [LogisticRegression() for _ in range(KEPT + 3)]
    for model in models:
        captures.put(model, Capture(X, Y, None))
    assert len(captures) == KEPT
    assert captures.get(models[0]) is None
    assert captures.get(models[-1]) is not None
    assert captures.get(clone(models[-1])) is None
    del model, models
    gc.collect()
    assert len(captures) == 0


def test_a_failed_fit_raises_its_own_error():
    autolog()
    with pytest.raises(ValueError, match="NaN"):
        LogisticRegression().fit([[1.0], [np.nan]], [0, 1])
    with pytest.raises(TypeError):
        LogisticRegression().fit()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"eval_data": X}, "eval_data: got ndarray; pass a tuple"),
        ({"max_predictions": 0}, "max_predictions: got 0"),
        ({"time_budget": 0}, "time_budget: got 0"),
        ({"threshold": 1.0}, "threshold: got 1.0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, said):
    before = wrapped()
    with pytest.raises(RequestError, match=said):
        autolog(**arguments)
    assert wrapped() == before


def test_the_package_gives_the_function_not_the_module():
    assert mlflow_relabel_audit.autolog is autolog
    assert callable(autolog)
