"""The estimate pass against its definition, and single flips against actual refits."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_relabel_audit.flips.order.influence import decided_heads, estimate
from mlflow_relabel_audit.flips.order.ranking import FIRST_HEAD, longer_order
from mlflow_relabel_audit.flips.order.response import ResponseBounds, respond, response_scale
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from tests.flips.fitting import Fitted, fitted

GRID = [
    {"sparse": sparse, "fit_intercept": intercept, "weighted": weighted}
    for sparse in (False, True)
    for intercept in (True, False)
    for weighted in (False, True)
]


def gains(model: Fitted, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Influence of every relabelling on the margin, by the definition in float64."""
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    u = model.point.curvature.solve(x)
    moves = -effect.coefficient * model.rows.margins(u) - effect.count * float(effect.shared @ u)
    margin = float(x @ model.point.theta) - model.problem.cut
    return moves * (-1.0 if margin > 0 else 1.0), margin


@pytest.mark.parametrize("options", [*GRID, {"class_weight": "balanced"}, {"class_weight": {0: 1.0, 1: 4.0}}])
def test_single_flip_influence_against_refits(options: dict[str, object]) -> None:
    model = fitted(n=400, C=0.2, **options)  # type: ignore[arg-type]
    x = np.random.default_rng(1).standard_normal(4)
    moves, margin = gains(model, model.row(x))
    toward = -1.0 if margin > 0 else 1.0
    chosen = np.argsort(-np.abs(moves))[:6]
    for i in chosen:
        y = model.y.copy()
        y[i] = 1.0 - y[i]
        actual = toward * (model.margin(x, y=y) - margin)
        assert moves[i] == pytest.approx(actual, rel=0.1 if "class_weight" in options else 0.06)


@pytest.mark.parametrize("options", [*GRID, {"class_weight": "balanced", "threshold": 0.3}])
@pytest.mark.parametrize("width", [None, 3])
def test_orders_are_the_sorted_influences(options: dict[str, object], width: int | None) -> None:
    model = fitted(n=300, **options)  # type: ignore[arg-type]
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    X = np.random.default_rng(2).standard_normal((8, 4))
    evaluation = model.evaluation(X)
    blocks = estimate(model.rows, model.point, effect, evaluation, model.problem, width)
    orders = [order for block in blocks for order in block.orders]
    assert len(orders) == 8
    for x, order in zip(X, orders, strict=True):
        moves, margin = gains(model, model.row(x))
        best = np.sort(moves[moves > 0])[::-1]
        assert order.influence == pytest.approx(best[: len(order.influence)], rel=1e-4, abs=1e-7)
        assert moves[order.index] == pytest.approx(order.influence, rel=1e-4, abs=1e-7)
        total = np.cumsum(best)
        crossed = np.flatnonzero(total > abs(margin))
        assert order.k_estimate == (crossed[0] + 1 if len(crossed) else 0)
        f = 1 / (1 + np.exp(-(margin + model.problem.cut)))
        in_probability = np.flatnonzero(f * (1 - f) * total > abs(f - model.problem.threshold))
        assert order.k_paper == (in_probability[0] + 1 if len(in_probability) else 0)


def test_heads_grow_until_they_reach() -> None:
    model = fitted(n=3000, C=1e-3, noise=3.0)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    far = np.array([[40.0, 0.0, 0.0, 0.0]])
    (block,) = estimate(model.rows, model.point, effect, model.evaluation(far), model.problem)
    (order,) = block.orders
    assert order.k_estimate > 64
    assert order.influence.sum() > abs(block.margin[0])
    reach = float((np.abs(effect.coefficient) * np.sqrt(model.rows.square_norms())).max())
    (longer,) = decided_heads(model.rows, effect, block, np.array([0]), reach)
    moves, _ = gains(model, block.targets[:, 0])
    steps = 0
    while not longer.complete:
        before = longer
        longer = longer_order(model.rows, effect, block.direction[:, 0], block.toward[0], before, reach)
        assert len(longer.index) > max(len(before.index), FIRST_HEAD)
        assert np.array_equal(longer.index[: len(before.index)], before.index)
        steps += 1
    assert steps
    assert sorted(longer.index) == sorted(np.flatnonzero(moves > 0))


def test_equal_rows_keep_their_positions() -> None:
    X = np.repeat(np.random.default_rng(3).standard_normal((30, 4)), 4, axis=0)
    model = fitted(X=X, y=np.tile([0.0, 1.0, 1.0, 0.0], 30), n=120)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    (block,) = estimate(model.rows, model.point, effect, model.evaluation(X[:1]), model.problem)
    index = block.orders[0].index
    twins = [
        sorted(pair) == list(pair) for pair in zip(index[::2], index[1::2], strict=True) if pair[0] // 4 == pair[1] // 4
    ]
    assert twins
    assert all(twins)


@pytest.mark.parametrize("sparse", [False, True])
def test_float32_responses_stay_within_their_bound(sparse: bool) -> None:
    model = fitted(n=500, p=40, sparse=sparse)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    X = 10 ** np.random.default_rng(4).uniform(-3, 3, (20, 1)) * np.random.default_rng(5).standard_normal((20, 40))
    (block,) = estimate(model.rows, model.point, effect, model.evaluation(X), model.problem)
    exact = model.rows.margins(block.direction * block.toward).T
    scale, row = response_scale(model.rows, block.direction), np.sqrt(model.rows.square_norms())
    found = respond(model.rows, block.direction * block.toward, np.empty((20, 500), dtype=np.float32))[:, 0]
    assert np.all(np.abs(found - exact) <= np.outer(scale, row))


@pytest.mark.parametrize("ahead", [1, 3, 50])
@pytest.mark.parametrize("sparse", [False, True])
def test_bounds_of_responses_follow_the_queue_and_are_from_above(sparse: bool, ahead: int) -> None:
    model = fitted(n=500, p=40, sparse=sparse)
    direction = np.random.default_rng(6).standard_normal((model.rows.p, 20))
    exact = np.abs(model.rows.margins(direction)).T
    queue = [1, 2, 5, 7, 8, 9, 12, 13, 19]
    bounds = ResponseBounds(model.rows, direction, model.rows.square_norms(), queue, ahead)
    given = []
    for count in (4, 0, 1, 4):
        for some, bound in bounds.next(count):
            asked = queue[len(given) + some.start : len(given) + some.stop]
            assert bound.dtype == np.float32
            assert np.all(bound >= exact[asked])
            assert np.all(bound <= exact[asked] + 1e-3)
        given += queue[len(given) : len(given) + count]
    assert given == queue
