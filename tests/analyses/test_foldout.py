import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from mlflow_relabel_audit.analyses.noise import foldout
from mlflow_relabel_audit.analyses.noise.foldout import FOLDS, LADDER, _Search, deal_folds, fold_out, refit
from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows


def simulated(seed=0, n=400, features=8, sparse=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features))
    if sparse:
        X *= rng.random(X.shape) < 0.3
    y = (rng.random(n) < 1 / (1 + np.exp(-X @ rng.normal(size=features) - 0.3))).astype(int)
    return X, y


def state(X, y, sample_weight=None, form=None, **options):
    model = LogisticRegression(**{"tol": 1e-8, "max_iter": 5000, **options}).fit(X, y, sample_weight=sample_weight)
    problem = read_problem(model)
    base = np.ones(len(y)) if sample_weight is None else sample_weight
    rows = Rows(X, problem.encode(y), base, intercept=problem.intercept)
    return problem, rows, find_stationary_point(problem, rows, kind=form)


def refitted(X, y, fold, sample_weight=None, **options):
    """Out-of-fold decision values by scikit-learn, a refit per fold."""
    out = np.empty(len(y))
    for k in range(FOLDS):
        kept = fold != k
        weight = None if sample_weight is None else sample_weight[kept]
        model = LogisticRegression(**{"tol": 1e-10, "max_iter": 5000, **options})
        out[~kept] = model.fit(X[kept], y[kept], sample_weight=weight).decision_function(X[~kept])
    return out


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"C": 0.5},
        {"C": 2.0, "fit_intercept": False},
        {"C": 1.0, "class_weight": {0: 1.0, 1: 3.0}},
        {"C": 1.0, "class_weight": "balanced"},
        {"C": 0.1, "solver": "liblinear", "intercept_scaling": 2.0},
    ],
)
def test_fold_out_margins_are_those_of_refits(sparse, options):
    X, y = simulated(sparse=sparse)
    design = sp.csr_matrix(X) if sparse else X
    problem, rows, point = state(design, y, **options)
    fold = deal_folds(rows, seed=3)
    search = _Search(problem, rows, point, seed=3)
    margin, _ = search.solve(1.0, fold, np.repeat(point.theta[:, None], FOLDS, axis=1))
    np.testing.assert_allclose(margin, refitted(design, y, fold, **options), atol=2e-3)


def test_fold_out_margins_honour_sample_weights():
    X, y = simulated()
    weight = np.random.default_rng(1).integers(0, 4, size=len(y)).astype(float)
    problem, rows, point = state(X, y, sample_weight=weight)
    fold = deal_folds(rows, seed=0)
    margin, _ = _Search(problem, rows, point, seed=0).solve(1.0, fold, np.repeat(point.theta[:, None], FOLDS, axis=1))
    np.testing.assert_allclose(margin, refitted(X, y, fold, sample_weight=weight), atol=2e-3)


@pytest.mark.parametrize("form", ["primal", "dual", "cg"])
def test_more_features_than_rows_in_every_form_of_curvature(form):
    X, y = simulated(n=90, features=150)
    problem, rows, point = state(X, y, C=0.05, form=form)
    out = fold_out(problem, rows, point, deals=1)
    want = refitted(X, y, deal_folds(rows, seed=0), C=0.05 * out.multiplier)
    np.testing.assert_allclose(out.margin, want, atol=1e-2)


def test_the_diagonal_preconditioner_reaches_the_same_minimiser():
    X, y = simulated()
    problem, rows, point = state(X, y)
    weight = rows.base_weight[:, None]
    start = np.zeros((rows.p, 1))
    theta = refit(rows, rows.y[:, None], weight, problem.penalty, start, lambda right: right / 50.0, 1e-7)
    np.testing.assert_allclose(theta[:, 0], point.theta, atol=1e-5)


def test_several_problems_at_once_equal_each_alone():
    X, y = simulated()
    problem, rows, point = state(X, y)
    rng = np.random.default_rng(5)
    weight = rng.random((rows.n, 3))
    labels = (rng.random((rows.n, 3)) < 0.5).astype(float)
    start = np.zeros((rows.p, 3))
    together = refit(rows, labels, weight, problem.penalty, start, point.curvature.solve, 1e-8)
    for k in range(3):
        some = slice(k, k + 1)
        alone = refit(
            rows,
            labels[:, some],
            weight[:, some],
            problem.penalty,
            start[:, some],
            point.curvature.solve,
            1e-8,
        )
        np.testing.assert_allclose(together[:, some], alone, atol=1e-6)


def test_folds_are_stratified_and_follow_the_rows():
    X, y = simulated(n=203)
    _, rows, _ = state(X, y)
    fold = deal_folds(rows, seed=1)
    assert np.ptp(np.bincount(fold)) <= 2
    assert np.ptp(np.bincount(fold[y == 1])) <= 1
    shuffle = np.random.default_rng(0).permutation(len(y))
    _, shuffled, _ = state(X[shuffle], y[shuffle])
    np.testing.assert_array_equal(deal_folds(shuffled, seed=1), fold[shuffle])
    assert np.any(deal_folds(rows, seed=2) != fold)


def test_five_copies_of_a_row_go_to_five_folds():
    X, y = simulated(n=40)
    _, rows, _ = state(np.repeat(X, 5, axis=0), np.repeat(y, 5))
    fold = deal_folds(rows, seed=0).reshape(40, 5)
    assert all(len(set(copies)) == 5 for copies in fold)


def test_the_ladder_leads_to_the_c_that_predicts_best():
    X, y = simulated(n=300, features=60)
    problem, rows, point = state(X, y, C=100.0)
    out = fold_out(problem, rows, point, deals=1)
    assert out.multiplier < 0.1
    assert out.losses[out.multiplier] == min(out.losses.values())
    assert set(out.losses) <= set(LADDER)


def test_a_model_without_a_penalty_gets_a_ridge_where_that_predicts_better():
    X, y = simulated(n=300, features=40)
    y = np.where(np.random.default_rng(1).random(300) < 0.25, 1 - y, y)
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(X, y)
    problem = read_problem(model)
    rows = Rows(X, problem.encode(y), np.ones(len(y)), intercept=True)
    point = find_stationary_point(problem, rows)
    out = fold_out(problem, rows, point)
    assert np.isfinite(out.margin).all()
    loss = np.mean(np.logaddexp(0.0, out.margin) - y * out.margin)
    plain = refitted(X, y, deal_folds(rows, seed=0), C=np.inf)
    assert loss < np.mean(np.logaddexp(0.0, plain) - y * plain)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", ["softmax", "balanced", "one against the rest"])
def test_outputs_of_several_classes_are_those_of_refits_without_the_fold(kind, sparse, monkeypatch):
    if sparse:  # by the diagonal alone
        monkeypatch.setattr(foldout, "FACTOR_ITERATIONS", 0.0)
    X, y = make_blobs(240, centers=4, n_features=6, cluster_std=5.0, random_state=0)
    X = sp.csr_array(np.where(np.abs(X) > 2, X, 0.0)) if sparse else X
    model = LogisticRegression(tol=1e-9, max_iter=5000, class_weight="balanced" if kind == "balanced" else None)
    model = OneVsRestClassifier(model) if kind == "one against the rest" else model
    problem = read_problem(model.fit(X, y))
    rows = Rows(X, problem.encode(y), np.ones(240), intercept=True, outputs=4)
    search = _Search(problem, rows, find_stationary_point(problem, rows), 0)
    start = np.repeat(problem.theta[:, None], FOLDS, axis=1)
    margin, theta = search.solve(1.0, search.fold, start)
    assert np.bincount(search.fold).max() - np.bincount(search.fold).min() <= 1
    got = problem.probabilities(np.ascontiguousarray(margin.reshape(240, 4).T)).T
    for fold in range(FOLDS):
        out = search.fold == fold
        expected = clone(model).fit(X[~out], y[~out]).predict_proba(X[out])
        np.testing.assert_allclose(got[out], expected, atol=2e-3)
    assert theta.shape == (28, FOLDS)
