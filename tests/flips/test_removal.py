"""Removal sets against scikit-learn refits without their rows; the small-matrix algebra against factoring."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_relabel_audit.curvature import factor
from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.flips.removal import refit as removal_refit
from mlflow_relabel_audit.flips.removal import sets as removal
from mlflow_relabel_audit.flips.removal.effect import removal_moves
from mlflow_relabel_audit.flips.removal.refit import refit_without
from mlflow_relabel_audit.flips.removal.sets import removal_frame, removal_sets
from mlflow_relabel_audit.likelihood import sigmoid
from tests.flips.fitting import Fitted, fitted

GRID = [
    {},
    {"sparse": True},
    {"weighted": True},
    {"fit_intercept": False, "sparse": True},
    {"solver": "liblinear"},
    {"C": 1e4},
    {"C": np.inf},
    {"C": 1e-3, "threshold": 0.3},
    {"class_weight": {0: 1.0, 1: 2.0}},
    {"class_weight": "balanced", "weighted": True},
    {"kind": "dual"},
    {"kind": "cg", "sparse": True},
]


def name(options: dict[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items()) or "plain"


grid = pytest.mark.parametrize("options", GRID, ids=[name(g) for g in GRID])


def found_by(model: Fitted, X: np.ndarray, **options):
    return removal_sets(model.problem, model.rows, model.point, model.evaluation(X), **options)


@grid
def test_verified_sets_flip_a_refit_and_one_row_fewer_does_not(options):
    model = fitted(**options)
    X = 0.7 * np.random.default_rng(5).standard_normal((5, 4))
    for found, x in zip(found_by(model, X, search=True), X, strict=True):
        assert found.found
        assert found.verified
        assert found.k == len(found.index) == len(set(found.index)) == len(found.influence)
        positive = found.margin > 0
        after = model.margin(x, without=found.index)
        assert (after > 0) != positive
        assert after == pytest.approx(found.margin_verified, abs=3e-6, rel=1e-5)
        if found.k > 1:
            assert (model.margin(x, without=found.index[:-1]) > 0) == positive


@grid
@pytest.mark.parametrize("algorithm", [1, 2])
def test_what_is_said_of_the_published_sets_is_what_a_refit_says(options, algorithm):
    if algorithm == 2 and options.get("class_weight") == "balanced":
        pytest.skip("algorithm 2 refuses balanced class weights")
    model = fitted(seed=2, **options)
    X = np.random.default_rng(6).standard_normal((5, 4))
    for found, x in zip(found_by(model, X, algorithm=algorithm), X, strict=True):
        if not found.found:
            assert found.k == 0
            assert found.verified is None
            continue
        after = model.margin(x, without=found.index)
        if abs(after) > 50:  # the rows that stay are all but separable
            assert found.verified in (None, (after > 0) != (found.margin > 0))
            continue
        assert found.verified == ((after > 0) != (found.margin > 0))
        assert after == pytest.approx(found.margin_verified, abs=3e-6, rel=1e-5)


def test_algorithm_one_is_the_published_sum_in_probability():
    model = fitted(weighted=True, threshold=0.4)
    X = np.random.default_rng(7).standard_normal((20, 4))
    design = np.column_stack([model.X, np.ones(len(model.X))])
    p, s, y = model.point.probability, model.point.weight, model.y
    hessian = design.T @ np.diag(s * p * (1 - p)) @ design + np.diag(model.problem.penalty)
    steps = np.linalg.inv(hessian) @ ((s * (p - y))[:, None] * design).T
    sets = found_by(model, X, verify=False)
    assert {found.found for found in sets} == {True, False}
    for found, x in zip(sets, X, strict=True):
        f = float(sigmoid(np.array(model.row(x) @ model.point.theta)))
        change = f * (1 - f) * model.row(x) @ steps
        ranked = np.argsort(change if f > 0.4 else -change, kind="stable")
        path = f + np.cumsum(change[ranked])
        crossed = np.flatnonzero((path > 0.4) != (f > 0.4))
        assert found.k == (crossed[0] + 1 if len(crossed) else 0)
        assert np.array_equal(found.index, ranked[: found.k])
        assert found.verified is None


def test_the_margin_scale_needs_no_more_rows_when_the_prediction_is_confident():
    model = fitted()
    X = 2.0 * np.random.default_rng(8).standard_normal((20, 4))
    published, margin = found_by(model, X, verify=False), found_by(model, X, verify=False, scale="margin")
    assert sum(found.found for found in margin) > sum(found.found for found in published)


@pytest.mark.parametrize("options", [{}, {"sparse": True, "weighted": True}, {"C": np.inf}, {"kind": "dual"}])
def test_algorithm_two_sees_the_hessian_of_the_rows_that_stay(options):
    """Its set and its estimate by factoring the Hessian anew in every round."""
    model = fitted(n=120, **options)
    X = np.random.default_rng(9).standard_normal((8, 4))
    first = found_by(model, X, verify=False, scale="margin")
    second = found_by(model, X, verify=False, scale="margin", algorithm=2)
    error = model.point.weight * (model.point.probability - model.y)
    shrunk = 0
    for before, after, x in zip(first, second, X, strict=True):
        index = before.index
        toward = -1.0 if before.margin > 0 else 1.0
        while True:
            diagonal = model.point.diagonal.copy()
            diagonal[index] = 0.0
            u = factor(model.rows, diagonal, model.problem.penalty).solve(model.row(x))
            moves = toward * error[index] * np.asarray(model.rows.take(index) @ u).ravel()
            ranked = np.argsort(-moves, kind="stable")
            crossed = np.flatnonzero(np.cumsum(moves[ranked]) > abs(before.margin))
            if not len(crossed):
                break
            saved = len(index) - (crossed[0] + 1)
            index = index[ranked[: crossed[0] + 1]]
            estimate = before.margin + toward * moves[ranked][: len(index)].sum()
            if saved <= 1:
                break
        assert np.array_equal(after.index, index)
        assert after.margin_after == pytest.approx(estimate, abs=1e-9)
        assert after.margin + after.influence.sum() == pytest.approx(after.margin_after, abs=1e-9)
        shrunk += after.k < before.k
    assert shrunk


def test_a_set_larger_than_the_hessian_is_estimated_by_factoring(monkeypatch):
    model = fitted(n=900, C=0.1)
    X = 0.3 * np.ones((1, 4)) * np.sign(model.problem.theta[:4])
    small = found_by(model, X, verify=False, scale="margin", algorithm=2)[0]
    monkeypatch.setattr(removal, "GRAM_LIMIT", 1)
    large = found_by(model, X, verify=False, scale="margin", algorithm=2)[0]
    assert large.k > model.rows.p
    assert np.array_equal(small.index, large.index)
    assert small.margin_after == pytest.approx(large.margin_after, abs=1e-9)


@grid
def test_the_refit_is_the_minimiser_and_its_error_is_bounded(options):
    model = fitted(seed=4, **options)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((6, 4))
    sets = [rng.permutation(len(model.y))[:size] for size in (0, 1, 5, 20, 40, 60)]
    targets = np.stack([model.row(x) for x in X], axis=1)
    for sign_only in (False, True):
        refit = refit_without(model.problem, model.rows, model.point, sets, targets, sign_only=sign_only)
        for column, (x, without) in enumerate(zip(X, sets, strict=True)):
            witness = model.margin(x, without=without)
            assert abs(refit.margin[column] - witness) <= refit.error[column] + 2e-6
            assert refit.error[column] <= (0.25 * abs(witness) * 1.5 if sign_only else 2e-6 * max(1, abs(witness)))


def test_the_error_bound_holds_wherever_the_iteration_is_stopped():
    """Stopped after any number of steps, the true margin lies within what is claimed."""
    model = fitted(C=100.0, noise=0.5)
    x = np.array([2.0, -1.0, 0.5, 1.0])
    without = [np.argsort(-model.X[:, 0])[:40]]
    truth = model.margin(x, without=without[0])
    claimed = 0
    for slack in (2.0, 1.0, 0.5, 0.1, 1e-2, 1e-4):
        job = removal_refit._Leftover(model.problem, model.rows, model.point, without, 4.0, slack)
        _, score, error = job.minimise(model.point.theta[:, None].copy(), model.row(x)[:, None])
        assert abs(score[0] - model.problem.cut - truth) <= error[0] + 1e-7
        claimed += np.isfinite(error[0])
    assert claimed == 6


@pytest.mark.parametrize("options", [{}, {"class_weight": {0: 1.0, 1: 3.0}}, {"class_weight": "balanced"}])
def test_the_moves_of_single_rows_against_the_downdated_minimiser(options):
    """One Newton step with the rank-one downdate lies nearer the refit than the first-order move."""
    model = fitted(n=60, C=10.0, **options)
    x = np.array([0.5, -0.2, 1.0, 0.1])
    u = model.point.curvature.solve(model.row(x))
    moves = removal_moves(model.problem, model.rows, model.point, model.rows.margins(u))
    leverage = model.point.diagonal * model.point.curvature.row_norms(model.rows) ** 2
    start = float(model.row(x) @ model.point.theta) - model.problem.cut
    plain, downdated = 0.0, 0.0
    for i in range(20):
        truth = model.margin(x, without=[i]) - start
        plain += abs(moves[i] - truth)
        downdated += abs(moves[i] / (1 - leverage[i]) - truth)
        assert moves[i] == pytest.approx(truth, rel=0.5, abs=5e-3)
    if options.get("class_weight") != "balanced":
        assert downdated < plain


def test_a_class_is_never_emptied():
    X = np.array([[1.0], [0.9], [-1.0], [-1.1], [-0.8], [-0.9]])
    y = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    model = fitted(X=X, y=y, C=1.0)
    for found in found_by(model, np.array([[3.0], [0.0], [-3.0]]), search=True):
        left = np.delete(y, found.index)
        assert set(left) == {0.0, 1.0}
    order, total = removal._order(
        model.problem, model.rows, model.point, model.rows.margins(np.array([1.0, 0.0])), -1.0, None
    )
    assert set(np.delete(y, order)) == {0.0, 1.0}
    assert len(order) == len(total) == 1
    moves = removal_moves(model.problem, model.rows, model.point, np.ones(6))
    assert np.all(moves != 0)
    lonely = fitted(X=X[1:], y=y[1:], C=1.0)
    assert removal_moves(lonely.problem, lonely.rows, lonely.point, np.ones(5))[0] == 0.0
    refit = refit_without(lonely.problem, lonely.rows, lonely.point, [np.array([0])], np.ones((2, 1)))
    assert np.isnan(refit.margin[0])
    assert np.isinf(refit.error[0])


def test_a_refit_on_the_threshold_is_no_flip():
    """With one feature that says nothing, removal moves the margin through exact ties."""
    X = np.ones((9, 1))
    y = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    model = fitted(X=X, y=y, fit_intercept=False, C=1e4)
    found = found_by(model, np.ones((1, 1)), search=True)[0]
    assert found.k == 4  # three fewer leave three against three
    assert found.verified
    assert found.margin_verified == pytest.approx(np.log(2 / 3), abs=1e-3)


def test_max_size_bounds_the_set():
    model = fitted()
    X = np.random.default_rng(8).standard_normal((20, 4))
    free = found_by(model, X, search=True)
    bounded = found_by(model, X, search=True, max_size=5)
    for one, other in zip(free, bounded, strict=True):
        assert other.k <= 5
        assert other.found == (one.k <= 5)
        assert other.verified is other.found


def test_no_predictions_no_sets():
    model = fitted()
    assert found_by(model, np.empty((0, 4)), search=True) == []
    frame = removal_frame([], model.problem)
    assert len(frame) == 0
    assert frame["k"].dtype == "Int64"


def test_the_frame_names_rows_and_labels():
    model = fitted()
    X = 2.0 * np.random.default_rng(8).standard_normal((12, 4))
    sets = found_by(model, X)
    ids = np.array([f"row {i}" for i in range(len(model.y))])
    frame = removal_frame(sets, model.problem, row_ids=np.arange(100, 112), train_ids=ids)
    columns = ["row_id", "predicted", "margin", "k", "found", "flipped"]
    assert list(frame.columns) == [*columns, "margin_after", "margin_verified", "train_ids"]
    assert frame["row_id"].tolist() == list(range(100, 112))
    assert frame["k"].isna().equals(~frame["found"])
    assert frame["flipped"].isna().equals(~frame["found"])
    assert frame["predicted"].tolist() == [float(found.margin > 0) for found in sets]
    for found, names in zip(sets, frame["train_ids"], strict=True):
        assert names == [f"row {i}" for i in found.index]
    assert pd.api.types.is_float_dtype(frame["margin_verified"])
    with pytest.raises(RequestError, match="got 3 row ids for 12 rows"):
        removal_frame(sets, model.problem, row_ids=[1, 2, 3])


def test_requests_that_cannot_be_met_say_why():
    model = fitted(class_weight="balanced")
    X = np.zeros((1, 4))
    with pytest.raises(UnsupportedModelError, match=r"algorithm=2 and class_weight='balanced'.*pass algorithm=1"):
        found_by(model, X, algorithm=2)
    with pytest.raises(RequestError, match="got algorithm=3"):
        found_by(model, X, algorithm=3)
    with pytest.raises(RequestError, match="got scale='odds'"):
        found_by(model, X, scale="odds")
    with pytest.raises(RequestError, match="got max_size=0"):
        found_by(model, X, max_size=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(6, 40),
    p=st.integers(1, 6),
    sparse=st.booleans(),
    intercept=st.booleans(),
    power=st.integers(-2, 3),
    copies=st.booleans(),
)
def test_any_verified_set_flips_a_refit(seed, n, p, sparse, intercept, power, copies):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    y = (rng.random(n) < 0.5).astype(float)
    y[:4] = 0, 0, 1, 1
    if copies:
        X[n // 2 :] = X[: n - n // 2]
    model = fitted(X=X, y=y, sparse=sparse, fit_intercept=intercept, C=10.0**power, weighted=True, seed=seed)
    x = rng.standard_normal(p)
    found = found_by(model, x[None, :], search=True)[0]
    if found.found:
        assert found.verified
        after = model.margin(x, without=found.index)
        assert (after > 0) != (found.margin > 0) or abs(after) < 1e-6
        assert after == pytest.approx(found.margin_verified, abs=1e-5, rel=1e-4)
