"""The minimiser against scikit-learn at tight tolerance, and the proof that the rows belong to the model."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.errors import DataMismatchError, SingularHessianError
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows

X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)
RNG = np.random.default_rng(0)

VARIANTS = {
    "lbfgs": {},
    "newton-cg": {"solver": "newton-cg"},
    "newton-cholesky": {"solver": "newton-cholesky"},
    "sag": {"solver": "sag", "max_iter": 20_000},
    "saga": {"solver": "saga", "max_iter": 20_000},
    "liblinear": {"solver": "liblinear", "intercept_scaling": 3.0},
    "no intercept": {"fit_intercept": False},
    "weak": {"C": 50.0},
    "class weights": {"class_weight": {0: 3.0, 1: 0.5}},
    "balanced": {"class_weight": "balanced"},
}


def fit(options: dict[str, object], tol: float, weight: np.ndarray | None) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(**{"tol": tol, "max_iter": 5000, **options}).fit(X, Y, sample_weight=weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("weighted", [False, True])
def test_polishing_reaches_the_tight_fit(options: dict[str, object], weighted: bool) -> None:
    weight = RNG.integers(0, 3, len(Y)) + 0.5 if weighted else np.ones(len(Y))
    loose, tight = fit(options, 1e-4, weight), fit(options, 1e-12, weight)
    problem = read_problem(loose)
    rows = Rows(X, Y.astype(float), weight, intercept=problem.intercept)
    point = find_stationary_point(problem, rows)
    assert point.stationarity.residual < 1e-7
    assert point.stationarity.gap >= 0
    assert point.margin == pytest.approx(tight.decision_function(X), rel=2e-5, abs=2e-5)
    assert point.diagonal == pytest.approx(point.weight * point.probability * (1 - point.probability))


def test_unpenalised_full_rank() -> None:
    few, noisy = X[:, :3], Y ^ (RNG.random(len(Y)) < 0.2)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=5000).fit(few, noisy)
    rows = Rows(few, noisy.astype(float), np.ones(len(Y)), intercept=True)
    point = find_stationary_point(read_problem(model), rows)
    assert point.theta == pytest.approx(np.append(model.coef_, model.intercept_), rel=1e-4)


def test_a_separable_problem_without_penalty_is_flagged() -> None:
    line = np.linspace(-1, 1, 40)[:, None]
    labels = (line.ravel() > 0).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=np.inf, max_iter=10).fit(line, labels)
    with pytest.raises((SingularHessianError, DataMismatchError)):
        find_stationary_point(read_problem(model), Rows(line, labels, np.ones(40), intercept=True))


@pytest.mark.parametrize("spoil", ["shuffled labels", "other rows", "fewer rows", "unscaled"])
def test_foreign_data_are_refused_with_the_figure(spoil: str) -> None:
    model = LogisticRegression().fit(X[:400], Y[:400])
    rows, labels = X[:400], Y[:400].astype(float)
    if spoil == "shuffled labels":
        labels = RNG.permutation(labels)
    elif spoil == "other rows":
        rows, labels = X[169:], Y[169:].astype(float)
    elif spoil == "fewer rows":
        rows, labels = rows[:300], labels[:300]
    else:
        rows = rows * 1.5
    with pytest.raises(DataMismatchError, match="of the objective to gain"):
        find_stationary_point(read_problem(model), Rows(rows, labels, np.ones(len(labels)), intercept=True))


def test_an_early_stop_is_polished_and_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=14).fit(X, Y)
    point = find_stationary_point(read_problem(model), Rows(X, Y.astype(float), np.ones(len(Y)), intercept=True))
    assert point.stationarity.polished
    assert 0 < point.stationarity.relative_gap < 1e-2
