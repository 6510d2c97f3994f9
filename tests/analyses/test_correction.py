import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mlflow_relabel_audit.analyses.noise.audit import evidence_of
from mlflow_relabel_audit.analyses.noise.correction import _half, _hit, _loss, _models, correction
from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows


def setting(rate, seed=0, **options):
    rng = np.random.default_rng(seed)
    theta = 2 * rng.normal(size=6)
    X = rng.normal(size=(2400, 6))
    y = (rng.random(2400) < 1 / (1 + np.exp(-X @ theta))).astype(int)
    given = np.where(rng.random(1600) < rate * y[:1600], 0, y[:1600])
    model = LogisticRegression(C=1.0, tol=1e-8, **options).fit(X[:1600], given)
    problem = read_problem(model)
    rows = Rows(X[:1600], given, np.ones(1600), intercept=True)
    return problem, rows, find_stationary_point(problem, rows), X[1600:], y[1600:]


def test_relabelling_noise_pays():
    problem, rows, point, X_eval, y_eval = setting(rate=0.35)
    result = correction(problem, rows, point, X_eval, y_eval)
    table = result.table.set_index("action")
    assert list(table.index) == ["nothing", "relabel", "drop"]
    assert table.loc["nothing", "loss_change"] == 0
    assert table.loc["relabel", "loss_change_high"] < 0
    assert table.loc["relabel", "accuracy_change"] > 0
    assert table.loc["relabel", "count"] > 0
    assert table["rows"].tolist() == [401] * 3  # two odd classes: the halves keep their extra rows for the report
    assert result.findings[0].code == "N021"
    lowest = result.candidates[result.candidates["action"] == "relabel"].set_index("count")["loss"].idxmin()
    assert lowest == table.loc["relabel", "count"]


def test_where_labels_are_clean_no_gain_is_claimed():
    problem, rows, point, X_eval, y_eval = setting(rate=0.0)
    result = correction(problem, rows, point, X_eval, y_eval)
    relabel = result.table.set_index("action").loc["relabel"]
    assert relabel["count"] <= 0.02 * rows.n
    assert abs(relabel["loss_change"]) < 0.01
    assert result.findings[0].code == "N020"


def test_the_figures_are_those_of_an_independent_refit():
    problem, rows, point, X_eval, y_eval = setting(rate=0.3, class_weight="balanced")
    result = correction(problem, rows, point, X_eval, y_eval, counts=(50,), seed=1)
    order = np.arange(rows.n)
    theta = _models(problem, rows, point, order, 1.0 - rows.y, np.array([50]), "relabel")[:, 0]
    labels = rows.y.copy()
    labels[:50] = 1 - labels[:50]
    model = LogisticRegression(C=1.0, tol=1e-10, class_weight="balanced").fit(rows.features, labels)
    np.testing.assert_allclose(theta[:-1], model.coef_[0], atol=1e-3)
    theta = _models(problem, rows, point, order, 1.0 - rows.y, np.array([50]), "drop")[:, 0]
    model = LogisticRegression(C=1.0, tol=1e-10, class_weight="balanced").fit(rows.features[50:], rows.y[50:])
    np.testing.assert_allclose(theta[:-1], model.coef_[0], atol=1e-3)
    reporting = ~_half(y_eval.astype(float), seed=1)
    margin = X_eval[reporting] @ point.theta[:-1] + point.theta[-1]
    want = log_loss(y_eval[reporting], 1 / (1 + np.exp(-margin)))
    assert result.table["loss"][0] == pytest.approx(want)


def test_halves_are_stratified():
    truth = np.repeat([0.0, 1.0], [30, 11])
    chosen = _half(truth, seed=0)
    assert chosen[truth == 1].sum() == 5
    assert chosen[truth == 0].sum() == 15


def test_too_few_evaluation_rows_are_not_measured():
    problem, rows, point, X_eval, y_eval = setting(rate=0.1)
    result = correction(problem, rows, point, X_eval[:39], y_eval[:39])
    assert result.table.empty
    assert not result.findings[0].applicable
    assert "39 evaluation rows, of the 40" in result.findings[0].message
    with pytest.raises(RequestError, match="39 evaluation rows and 40 labels"):
        correction(problem, rows, point, X_eval[:39], y_eval[:40])


def test_the_reporting_half_has_no_part_in_the_choice(monkeypatch):
    problem, rows, point, X_eval, y_eval = setting(rate=0.3)
    seen = []

    def watched(*state, **options):
        seen.append(state[3])
        return evidence_of(*state, **options)

    monkeypatch.setattr("mlflow_relabel_audit.analyses.noise.correction.evidence_of", watched)
    correction(problem, rows, point, X_eval, y_eval)
    chosen = _half(y_eval.astype(float), seed=0)
    (clean,) = seen
    np.testing.assert_array_equal(clean.features, X_eval[chosen])
    np.testing.assert_array_equal(clean.y, y_eval[chosen])


def test_several_classes_are_refitted_as_scikit_learn_does():
    X, truth = make_blobs(300, centers=3, n_features=4, cluster_std=4.0, random_state=0)
    model = LogisticRegression(C=1.0, tol=1e-10, class_weight="balanced").fit(X, truth)
    problem = read_problem(model)
    rows = Rows(X, problem.encode(truth), np.ones(300), intercept=True, outputs=3)
    point = find_stationary_point(problem, rows)
    new_label = (rows.y + 1) % 3
    theta = _models(problem, rows, point, np.arange(300), new_label, np.array([30]), "relabel")[:, 0]
    labels = np.where(np.arange(300) < 30, new_label, rows.y)
    other = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000, class_weight="balanced").fit(X, labels)
    scores = rows.margins(theta).reshape(300, 3)
    expected = other.decision_function(X)
    np.testing.assert_allclose(
        scores - scores.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=5e-3
    )
    np.testing.assert_allclose(
        _loss(problem, rows.margins(theta), rows.y).mean(), log_loss(truth, other.predict_proba(X)), atol=1e-3
    )
    assert _hit(problem, rows.margins(theta), rows.y).mean() == (other.predict(X) == truth).mean()
