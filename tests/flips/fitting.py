"""Small fitted models, and scikit-learn refits of them at tight tolerance, as an independent witness."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg import LinAlgWarning
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from mlflow_relabel_audit.curvature import StationaryPoint, find_stationary_point
from mlflow_relabel_audit.likelihood import Likelihood
from mlflow_relabel_audit.problem import Problem, read_problem
from mlflow_relabel_audit.rows import Rows


@dataclass(frozen=True)
class Fitted:
    """A model with everything the numerical layers ask for."""

    X: Any
    y: np.ndarray
    weight: np.ndarray
    options: dict[str, Any]
    problem: Problem
    rows: Rows
    point: StationaryPoint

    def refit(self, y: np.ndarray | None = None, without: Any = ()) -> LogisticRegression:
        """Fit scikit-learn's estimator afresh, with other labels or without some rows."""
        keep = np.setdiff1d(np.arange(len(self.y)), without)
        labels = self.y if y is None else y
        return fit(self.options, self.X[keep], labels[keep], self.weight[keep])

    def margin(self, x: np.ndarray, **changes: Any) -> float:
        """Margin of a raw row under the refit."""
        return float(self.refit(**changes).decision_function(x[None, :])[0]) - self.problem.cut

    def row(self, x: np.ndarray) -> np.ndarray:
        """Append the one where an intercept is fitted."""
        return np.append(x, 1.0) if self.rows.intercept else x

    def evaluation(self, X: np.ndarray) -> Rows:
        return Rows(X, np.zeros(len(X)), np.ones(len(X)), intercept=self.rows.intercept)


def fit(options: dict[str, Any], X: Any, y: np.ndarray, weight: np.ndarray) -> LogisticRegression:
    """Fit to the floor of float64, where a solver may say that it can go no further."""
    chosen = {"solver": "newton-cholesky", "max_iter": 100_000, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        return LogisticRegression(tol=1e-11, random_state=0, **chosen).fit(X, y, sample_weight=weight)


def fitted(
    n: int = 150,
    p: int = 4,
    seed: int = 0,
    sparse: bool = False,
    weighted: bool = False,
    threshold: float = 0.5,
    noise: float = 1.5,
    X: Any = None,
    y: Any = None,
    kind: str | None = None,
    **options: Any,
) -> Fitted:
    """Fit a model to drawn data, or to the data given."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((n, p))
    if sparse:
        drawn *= rng.random((n, p)) < 0.5
    signal = drawn @ np.linspace(1.0, -0.5, p) + 0.3 + noise * rng.standard_normal(n)
    X = drawn if X is None else X
    y = (signal > 0).astype(float) if y is None else np.asarray(y, dtype=float)
    weight = rng.integers(0, 3, len(y)) * 0.5 + 0.5 if weighted else np.ones(len(y))
    features = sp.csr_matrix(X) if sparse else X
    options = {"C": 0.5, **options}
    model = fit(options, features, y, weight)
    problem = read_problem(model, threshold=threshold)
    rows = Rows(features, y, weight, intercept=problem.intercept)
    point = find_stationary_point(problem, rows, kind=kind)
    return Fitted(features, y, weight, options, problem, rows, point)


@dataclass(frozen=True)
class FittedClasses:
    """A model of several classes with everything the numerical layers ask for."""

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    estimator: Any
    problem: Problem
    rows: Rows
    point: StationaryPoint

    def scores(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Outputs of raw rows under a refit to other labels, shape (rows, K)."""
        model = fit_classes(self.estimator, self.X, y, self.weight)
        if isinstance(model, OneVsRestClassifier):
            return np.stack([each.decision_function(X) for each in model.estimators_], axis=1)
        return np.asarray(model.decision_function(X))

    def evaluation(self, X: np.ndarray) -> Rows:
        return Rows(X, np.zeros(len(X)), np.ones(len(X)), intercept=self.rows.intercept, outputs=self.rows.outputs)

    def targets(self, X: np.ndarray, a: int, b: int) -> np.ndarray:
        """``x (x) (e_a - e_b)`` of raw rows, shape (p, rows)."""
        pair = np.eye(self.rows.outputs)[a] - np.eye(self.rows.outputs)[b]
        return np.kron(pair[:, None], self.evaluation(X).columns(np.arange(len(X))))


def fit_classes(estimator: Any, X: Any, y: np.ndarray, weight: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(estimator, OneVsRestClassifier):
            return clone(estimator).fit(X, y)
        return clone(estimator).fit(X, y, sample_weight=weight)


def fitted_classes(
    likelihood: Likelihood,
    n: int = 120,
    p: int = 4,
    seed: int = 0,
    spread: float = 1.0,
    weighted: bool = False,
    sparse: bool = False,
    kind: str | None = None,
    **options: Any,
) -> FittedClasses:
    """Fit a model of as many classes as the likelihood has outputs to drawn data."""
    rng = np.random.default_rng(seed)
    classes = likelihood.outputs
    centres = spread * rng.standard_normal((classes, p))
    y = rng.permutation(np.arange(n) % classes)
    X = centres[y] + rng.standard_normal((n, p))
    if sparse:
        X *= rng.random(X.shape) < 0.6
    weight = rng.integers(1, 4, n) * 0.5 if weighted and likelihood.coupled else np.ones(n)
    estimator: Any = LogisticRegression(solver="newton-cg", tol=1e-12, max_iter=20_000, **{"C": 0.5, **options})
    if not likelihood.coupled:
        estimator = OneVsRestClassifier(estimator)
    features = sp.csr_matrix(X) if sparse else X
    problem = read_problem(fit_classes(estimator, features, y, weight))
    rows = Rows(features, y.astype(float), weight, intercept=problem.intercept, outputs=classes)
    point = find_stationary_point(problem, rows, kind=kind)
    return FittedClasses(X, y, weight, estimator, problem, rows, point)
