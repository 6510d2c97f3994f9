"""Flip sets of several classes against refits by scikit-learn, and against every small relabelling there is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.curvature.stationary import refit, row_weights
from mlflow_relabel_audit.flips.certificate.plain import plain_lower_bounds
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.order.ranking import longer_order
from mlflow_relabel_audit.flips.refit.exact import converged
from mlflow_relabel_audit.flips.refit.simultaneous import RefitBlock
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.flips.search.closest import search_closest
from mlflow_relabel_audit.flips.search.flip_set import VERIFIED
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.likelihood import Coupled, Likelihood, Separate
from mlflow_relabel_audit.rows import Rows, Spool
from tests.flips.fitting import FittedClasses, fitted_classes

LIKELIHOODS = [Separate(3), Coupled(3)]
WEIGHTS: list[Any] = [None, "balanced", "uneven"]


def weights(rule: Any, likelihood: Likelihood) -> Any:
    """Class weights as the estimator of this likelihood takes them."""
    if rule != "uneven":
        return rule
    return {0: 2.0, 1: 0.5, 2: 1.0} if likelihood.coupled else {0: 0.5, 1: 2.0}


def drawn(model: FittedClasses, rng: np.random.Generator, size: int) -> Relabelling:
    """Rows with new labels, none its present one."""
    index = rng.choice(model.rows.n, size, replace=False)
    return Relabelling(index, (model.y[index] + rng.integers(1, model.rows.outputs, size)) % model.rows.outputs)


def relabelled(model: FittedClasses, change: Relabelling) -> np.ndarray:
    y = model.y.copy()
    y[change.index] = change.label
    return y


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("rule", WEIGHTS)
@pytest.mark.parametrize("keep", [True, False])
def test_proved_intervals_hold_the_refitted_margin(likelihood: Likelihood, rule: Any, keep: bool) -> None:
    model = fitted_classes(likelihood, weighted=True, class_weight=weights(rule, likelihood))
    rng = np.random.default_rng(4)
    effect, norms = (
        RelabelEffect.at(model.problem, model.rows, model.point),
        model.point.curvature.row_norms(model.rows),
    )
    X, width = 2.0 * rng.standard_normal((8, 4)), 8
    targets = np.concatenate([model.targets(X[[t]], t % 3, (t + 1) % 3) for t in range(width)], axis=1)
    sets = [drawn(model, rng, size) for size in rng.integers(1, 25, width)]
    exact = []
    for t, change in enumerate(sets):
        scores = model.scores(X[[t]], relabelled(model, change))[0]
        exact.append(scores[t % 3] - scores[(t + 1) % 3])
    state = RefitBlock(model.problem, model.rows, model.point, effect, norms, width, keep=keep)
    slots, u = np.arange(width), model.point.curvature.solve(targets)
    state.load(slots, targets, u, None)
    state.relabel(slots, sets)
    tightest = []
    for step in range(9):
        state.condition(slots)
        margins, errors = state.prove()
        assert np.all(np.abs(margins - exact) <= errors + 1e-6)
        tightest.append(np.median(errors))
        if step == 2:
            for t in range(0, width, 2):
                state.refresh(t, 15 if t == 0 else model.rows.n)
            state.condition(slots)
            margins, errors = state.prove()
            assert np.all(np.abs(margins - exact) <= errors + 1e-6)
        state.descend()
    assert tightest[-1] < 1e-3
    state.load(slots, targets, u, None)
    for (theta, radius, _), target, margin in zip(converged(state, targets, u, sets), targets.T, exact, strict=True):
        assert theta @ target == pytest.approx(margin, abs=1e-6)
        assert radius < 1e-6


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("rule", WEIGHTS)
def test_first_order_moves_and_the_best_new_labels(likelihood: Likelihood, rule: Any) -> None:
    model = fitted_classes(likelihood, n=60, weighted=True, class_weight=weights(rule, likelihood))
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    X = np.random.default_rng(1).standard_normal((2, 4))
    for block in estimate(model.rows, model.point, effect, model.evaluation(X), model.problem):
        for t, order in enumerate(block.orders):
            whole = longer_order(model.rows, effect, block.direction[:, t], -1.0, order, 0.0)
            while not whole.complete:
                whole = longer_order(model.rows, effect, block.direction[:, t], -1.0, whole, 0.0)
            moves = np.full((60, 3), -np.inf)  # one Newton step for every row and label: exact to first order
            for i, label in itertools.product(range(60), range(3)):
                if label != model.y[i]:
                    rows = model.rows.relabelled(np.array([i]), np.array([label]))
                    moves[i, label] = -step_of(model, rows) @ block.targets[:, t]
            if rule is None:  # linear in the labels, so the step is what the order ranks by
                best = moves.max(axis=1)
                assert whole.influence == pytest.approx(best[whole.index], rel=1e-4, abs=1e-6)
                assert np.array_equal(moves[whole.index].argmax(axis=1), whole.change.label)
                assert sorted(whole.index) == sorted(np.flatnonzero(best > 1e-9))
            else:
                told = moves[whole.index, whole.change.label]
                assert np.corrcoef(told, whole.influence)[0, 1] > 0.99


def step_of(model: FittedClasses, rows: Rows) -> np.ndarray:
    """Newton's step at the fitted point under other labels, with the fitted Hessian."""
    error = model.point.probability - model.problem.likelihood.targets(rows.y)
    gradient = rows.pull(row_weights(model.problem, rows) * error) + model.problem.penalty * model.point.theta
    return -model.point.curvature.solve(gradient)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("rule", WEIGHTS)
@pytest.mark.parametrize("search", ["prefix", "adaptive"])
def test_verified_at_k_and_not_at_one_less(likelihood: Likelihood, rule: Any, search: Any) -> None:
    model = fitted_classes(likelihood, class_weight=weights(rule, likelihood))
    fitted = model.estimator.fit(model.X, model.y)
    X = 1.5 * np.random.default_rng(7).standard_normal((10, 4))
    result = Auditor(fitted, model.X, model.y).robustness(X, search=search)
    assert (result.predictions["status"] == VERIFIED).all()
    assert (result.predictions["k_lower"] <= result.predictions["k"]).all()
    assert result.predictions["k_paper"].isna().all()
    for row in result.predictions.itertuples():
        found = result.flip_sets[result.flip_sets["row_id"] == row.row_id]
        assert not found["train_id"].duplicated().any()
        assert (found["train_label"] != found["new_label"]).all()
        for k in (row.k, row.k - 1):
            change = Relabelling(*(found[name].to_numpy(dtype=np.intp)[:k] for name in ("train_id", "new_label")))
            scores = model.scores(X[[row.row_id]], relabelled(model, change))[0]
            assert (scores.argmax() == row.predicted) == (k < row.k)
            if k == row.k:
                assert scores[row.flips_to] > scores[row.predicted]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_orders_of_rows_elsewhere_are_those_of_one_array(likelihood: Likelihood) -> None:
    model = fitted_classes(likelihood, n=400, class_weight="balanced", sparse=True)
    spool = Spool()
    spool.add(sp.csr_matrix(model.X))
    rows = Rows(spool.store(True, 2**20), model.rows.y, model.rows.base_weight, intercept=True, outputs=3)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    asked = model.evaluation(np.random.default_rng(2).standard_normal((12, 4)))
    here, there = (
        [order for block in estimate(each, model.point, effect, asked, model.problem) for order in block.orders]
        for each in (model.rows, rows)
    )
    assert len(here) == 24
    for one, two in zip(here, there, strict=True):
        size = min(len(one.change), len(two.change))
        assert size >= one.k_estimate == two.k_estimate
        assert one.change.first(size).begins(two.change.first(size))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize(("n", "C", "far"), [(12, 1.0, 1.5), (30, 0.02, 6.0), (60, 0.003, 6.0)])
@pytest.mark.parametrize("seed", range(2))
def test_no_relabelling_smaller_than_the_bound_flips(
    likelihood: Likelihood, n: int, C: float, far: float, seed: int
) -> None:
    """Every single row with every new label is refitted, and many sets of two and three."""
    model = fitted_classes(likelihood, n=n, p=2, seed=seed, spread=2.0, C=C)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    norms = model.point.curvature.row_norms(model.rows)
    rng = np.random.default_rng(seed)
    evaluation = model.evaluation(far * rng.standard_normal((15, 2)))
    (block,) = estimate(model.rows, model.point, effect, evaluation, model.problem)
    lower = plain_lower_bounds(block, effect, norms)
    bound = np.array([lower[block.asked.owner == t].min() for t in range(15)])
    searcher = VerifiedSearch(model.problem, model.rows, model.point, effect, norms)
    found, _ = search_closest(searcher, block, adaptive=False)
    scores = evaluation.margins(model.point.theta).reshape(15, 3)
    singles = [([i], [step]) for i in range(n) for step in (1, 2)]
    drawn_sets = [(rng.choice(n, k, replace=False), rng.integers(1, 3, k)) for k in (2, 3) for _ in range(60)]
    heads = [
        (order.index[:k], (order.change.label - model.y[order.index])[:k]) for order in block.orders for k in (2, 3)
    ]
    fewest = np.full(15, 4)
    for index, steps in [*singles, *drawn_sets, *heads]:
        label = (model.y[index] + np.asarray(steps)) % 3
        there = refit(model.problem, model.rows.relabelled(np.asarray(index), label), model.point.theta)
        after = evaluation.margins(there.theta).reshape(15, 3)
        flips = after.argmax(axis=1) != scores.argmax(axis=1)
        fewest = np.where(flips, np.minimum(fewest, len(index)), fewest)
    assert np.all(bound <= fewest)
    verified = [t for t in range(15) if found[t].status == VERIFIED]
    assert all(bound[t] <= found[t].k for t in verified)
    assert all(found[t].k > 1 for t in verified if fewest[t] > 1)
    if n > 12:
        assert (bound > 1).sum() > 1
