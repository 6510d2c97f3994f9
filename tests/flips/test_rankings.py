"""Each ranking against its definition by hand, and the influences against scikit-learn refits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.rankings import METHODS, direction_norms, rank
from mlflow_relabel_audit.likelihood import sigmoid
from tests.flips.fitting import Fitted, fitted

GRID = [
    {},
    {"sparse": True},
    {"weighted": True, "sparse": True},
    {"fit_intercept": False},
    {"solver": "liblinear", "weighted": True},
    {"class_weight": {0: 1.0, 1: 3.0}},
    {"class_weight": "balanced", "weighted": True},
    {"threshold": 0.3},
    {"kind": "dual"},
    {"kind": "cg", "sparse": True},
]


def name(options: dict[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items()) or "plain"


def by_hand(model: Fitted, x: np.ndarray, method: str) -> np.ndarray:
    """The scores by explicit matrices, straight from the definitions."""
    features = model.X.toarray() if model.rows.sparse else model.X
    design = np.column_stack([features, np.ones(len(features))]) if model.rows.intercept else features
    p, y, s = model.point.probability, model.y, model.point.weight
    hessian = design.T @ np.diag(s * p * (1 - p)) @ design + np.diag(model.problem.penalty)
    inverse = np.linalg.inv(hessian)
    gradients = (s * (p - y))[:, None] * design
    z = float(x @ model.point.theta)
    predicted = float(z > model.problem.cut)
    toward = 1.0 - 2.0 * predicted
    own = (sigmoid(np.array(z)) - predicted) * x
    return {
        "ip-relabel": -toward * (s * (2 * y - 1))[:, None] * design @ inverse @ x[:, None],
        "ip-remove": toward * gradients @ inverse @ x[:, None],
        "influence": gradients @ inverse @ own[:, None],
        "rif": (gradients @ inverse @ own / np.linalg.norm(gradients @ inverse, axis=1))[:, None],
        "gd": gradients @ own[:, None],
        "gc": (gradients @ own / np.linalg.norm(gradients, axis=1) / np.linalg.norm(own))[:, None],
    }[method][:, 0]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
@pytest.mark.parametrize(
    "options",
    [g for g in GRID if "class_weight" not in g],
    ids=[name(g) for g in GRID if "class_weight" not in g],
)
def test_scores_are_the_definitions(options, method):
    model = fitted(**options)
    for seed in range(2):
        x = model.row(np.random.default_rng(seed).standard_normal(4))
        found = rank(model.problem, model.rows, model.point, x, method=method)
        expected = by_hand(model, x, method)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(found.order, np.argsort(-found.scores, kind="stable"))
        assert np.all(np.diff(found.scores[found.order]) <= 0)


def test_gradient_methods_on_rows_worked_out_on_paper():
    # theta = 0 exactly: the data are their own mirror image, so every probability is 1/2
    X = np.array([[3.0, 4.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    y = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    model = fitted(X=X, y=y, fit_intercept=False, C=1.0, threshold=0.6)
    assert np.abs(model.point.theta).max() < 1e-15
    x = np.array([1.0, 1.0])  # probability 1/2 below 0.6: predicted negative, own gradient (1/2) x
    dots = rank(model.problem, model.rows, model.point, x, method="gd").scores
    # the other row's gradient is (1/2 - y) x_i, so the product is (1/2)(1/2 - y) x.x_i
    np.testing.assert_allclose(dots, [1.75, -1.75, 0.25, -0.25, 0.5, -0.5], atol=1e-15)
    cosines = rank(model.problem, model.rows, model.point, x, method="gc").scores
    root = np.sqrt(2.0)
    expected = [7 / (5 * root), -7 / (5 * root), 1 / root, -1 / root, 1 / root, -1 / root]
    np.testing.assert_allclose(cosines, expected, atol=1e-15)
    # H = 1/4 X'X + I = [[6, 6], [6, 11]], H^-1 = [[11, -6], [-6, 6]] / 30; relative influence of rows 2 and 4
    found = rank(model.problem, model.rows, model.point, x, method="rif").scores
    first = 0.25 * 5 / 30 / (0.5 * np.sqrt(11**2 + 6**2) / 30)  # x.H^-1 x_2 = 5/30
    third = 0.0  # x.H^-1 x_4 = 2 (-6 + 6) / 30
    np.testing.assert_allclose(found[[2, 3, 4, 5]], [first, -first, third, -third], atol=1e-14)


@pytest.mark.parametrize("options", GRID, ids=[name(g) for g in GRID])
def test_ip_scores_are_the_slope_of_the_refitted_margin(options):
    """A row that counts little is removed, or relabelled, and the model fitted again."""
    model = fitted(n=400, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(4)
    start = float(model.row(x) @ model.point.theta) - model.problem.cut
    toward = -1.0 if start > 0 else 1.0
    removed = rank(model.problem, model.rows, model.point, model.row(x), method="ip-remove").scores
    relabelled = rank(model.problem, model.rows, model.point, model.row(x), method="ip-relabel").scores
    for i in rng.integers(0, len(model.y), 4):
        other = model.y.copy()
        other[i] = 1 - other[i]
        moved = toward * (model.margin(x, without=[i]) - start)
        assert moved == pytest.approx(removed[i], rel=0.1, abs=2e-4)
        moved = toward * (model.margin(x, y=other) - start)
        assert moved == pytest.approx(relabelled[i], rel=0.1, abs=4e-4)


def test_label_turns_the_loss_methods_round():
    model = fitted()
    x = model.row(np.array([1.0, 0.5, 0.0, -1.0]))
    predicted = float(x @ model.point.theta > 0)
    for method in ("influence", "rif", "gd", "gc"):
        same = rank(model.problem, model.rows, model.point, x, method=method, label=predicted)
        assert np.array_equal(same.order, rank(model.problem, model.rows, model.point, x, method=method).order)
        other = rank(model.problem, model.rows, model.point, x, method=method, label=1 - predicted)
        assert np.all(other.scores * same.scores <= 0)


def test_influence_orders_as_removal_does():
    model = fitted(weighted=True, class_weight={0: 2.0, 1: 1.0})
    x = model.row(np.array([0.2, -1.0, 0.3, 0.4]))
    removal = rank(model.problem, model.rows, model.point, x, method="ip-remove")
    loss = rank(model.problem, model.rows, model.point, x, method="influence")
    np.testing.assert_allclose(loss.scores / np.abs(loss.scores).max(), removal.scores / np.abs(removal.scores).max())


def test_random_is_seeded_and_a_permutation():
    model = fitted()
    x = model.row(np.zeros(4))
    first, again, other = (
        rank(model.problem, model.rows, model.point, x, method="random", seed=seed) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.order, again.order)
    assert not np.array_equal(first.order, other.order)
    assert sorted(first.order) == list(range(model.rows.n))
    assert np.array_equal(np.argsort(-first.scores), first.order)


@pytest.mark.parametrize("kind", ["primal", "dual", "cg"])
@pytest.mark.parametrize("sparse", [False, True])
def test_direction_norms_whatever_the_curvature(kind, sparse):
    model = fitted(n=300, kind=kind, sparse=sparse)
    part = model.rows.take(np.arange(model.rows.n))
    part = part.toarray() if sparse else part
    expected = np.linalg.norm(model.point.curvature.solve(part.T), axis=0)
    np.testing.assert_allclose(direction_norms(model.rows, model.point), expected, rtol=1e-8)


def test_a_row_without_weight_scores_zero():
    X = np.random.default_rng(0).standard_normal((30, 3))
    y = (X[:, 0] > 0).astype(float)
    model = fitted(X=X, y=y)
    model.rows.base_weight[5] = 0.0
    model.point.weight[5] = 0.0
    x = model.row(np.ones(3))
    for method in METHODS[:-1]:
        scores = rank(model.problem, model.rows, model.point, x, method=method).scores
        assert scores[5] == 0.0
        assert np.all(np.isfinite(scores))


def test_requests_that_cannot_be_met_say_why():
    model = fitted()
    with pytest.raises(RequestError, match=r"got method 'shapley'.*gc, random"):
        rank(model.problem, model.rows, model.point, model.row(np.zeros(4)), method="shapley")
    with pytest.raises(RequestError, match=r"shape \(4,\) for a model of 5"):
        rank(model.problem, model.rows, model.point, np.zeros(4))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 40),
    p=st.integers(1, 8),
    sparse=st.booleans(),
    intercept=st.booleans(),
    power=st.integers(-3, 3),
)
def test_any_model_gives_finite_scores_and_orders_that_agree(seed, n, p, sparse, intercept, power):
    y = np.arange(n) % 2
    model = fitted(n=n, p=p, seed=seed, y=y, sparse=sparse, fit_intercept=intercept, C=10.0**power, weighted=True)
    x = model.row(np.random.default_rng(seed + 1).standard_normal(p))
    rankings = {m: rank(model.problem, model.rows, model.point, x, method=m) for m in METHODS}
    for ranking in rankings.values():
        assert np.all(np.isfinite(ranking.scores))
        assert np.array_equal(np.sort(ranking.order), np.arange(n))
    # relabelling and removing a row move the margin the same way; relabelling moves it further
    relabel, remove = rankings["ip-relabel"].scores, rankings["ip-remove"].scores
    assert np.all(relabel * remove >= 0)
    assert np.all(np.abs(remove) <= np.abs(relabel) * (1 + 1e-9))
    assert np.all(np.abs(rankings["gc"].scores) <= 1 + 1e-9)
