"""Shrinking a verified flip set by ranking again at its refit.

Influences are taken at the fitted point, but the set acts over the whole path from there to the refit. Ranking
by the mean of ``H^-1 x_t`` at both ends of that path finds rows that the first order missed; a prefix of the new
order is kept only where it is smaller and verified like the first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mlflow_relabel_audit.flips.order.influence import EstimateBlock
from mlflow_relabel_audit.flips.order.ranking import InfluenceOrder
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.flips.search.flip_set import VERIFIED, FlipSet
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.problem import FloatArray, IntArray

SOLVE_TOLERANCE = 1e-3
SOLVE_ITERATIONS = 25
GROUP = 64
GROUP_BYTES = 2**31


def shrink(
    searcher: VerifiedSearch,
    effect: RelabelEffect,
    block: EstimateBlock,
    found: list[FlipSet],
    rounds: int = 2,
) -> list[FlipSet]:
    """Try to replace every verified set of a block by a smaller verified one; never returns a larger set.

    Parameters
    ----------
    searcher : VerifiedSearch
        the search that found the sets.
    effect : RelabelEffect
    block : EstimateBlock
        of B predictions.
    found : list of FlipSet
        one per prediction, with the coefficients near the refit.
    rounds : int
        how often a set that shrank is tried again.
    """
    best = list(found)
    candidates = [t for t, item in enumerate(best) if item.status == VERIFIED and item.k > 1 and item.theta is not None]
    for _ in range(rounds):
        if not candidates:
            break
        orders = list(block.orders)
        upper = [0] * len(best)
        size = int(np.clip(GROUP_BYTES // (64 * max(searcher.rows.n, 1)), 1, GROUP))
        for start in range(0, len(candidates), size):
            group = np.asarray(candidates[start : start + size])
            for t, order in zip(group, _rank_again(searcher, effect, block, best, group), strict=True):
                orders[t], upper[t] = order, best[t].k
        smaller = searcher.run(block, orders=orders, upper=upper, keep_theta=True)
        candidates = [t for t in candidates if smaller[t].status == VERIFIED]
        for t in candidates:
            best[t] = smaller[t]
        candidates = [t for t in candidates if best[t].k > 1]
    return [dataclasses.replace(item, theta=None) for item in best]


def _rank_again(
    searcher: VerifiedSearch,
    effect: RelabelEffect,
    block: EstimateBlock,
    found: list[FlipSet],
    group: IntArray,
) -> list[InfluenceOrder]:
    rows, point = searcher.rows, searcher.point
    theta = np.stack([found[t].theta for t in group], axis=1)
    likelihood = searcher.problem.likelihood
    probability = likelihood.probability(rows.margins(theta))
    curvature = np.empty(probability.shape)
    likelihood.fill_curvature(probability, point.weight[:, None], curvature)
    direction = _solve_at(searcher, curvature, block.targets[:, group], block.direction[:, group])
    mean = 0.5 * (direction + block.direction[:, group]) * block.toward[group]
    response = rows.margins(mean).reshape(rows.n, rows.outputs, -1).transpose(2, 1, 0)
    gain, along, shift = effect.gain, effect.along(np.float64), effect.shift(mean)
    gains = gain.best(along, response, shift)
    orders = []
    for column, t in enumerate(group):
        size = min(rows.n, found[t].k + 1)
        head = np.argpartition(-gains[column], size - 1)[:size]
        head = np.sort(head)
        ranked = head[np.argsort(-gains[column, head], kind="stable")]
        ranked = ranked[gains[column, ranked] > 0]
        few, own = effect.among(ranked), response[column : column + 1, :, ranked]
        label = gain.labels(few.along(np.float64), own, shift[column : column + 1], few.label)[0]
        first, change = block.orders[t], Relabelling(ranked, label)
        orders.append(InfluenceOrder(change, gains[column, ranked], np.inf, first.k_estimate, first.k_paper))
    return orders


def _solve_at(searcher: VerifiedSearch, curvature: FloatArray, right: FloatArray, start: FloatArray) -> FloatArray:
    """Solve with each column's own Hessian by conjugate gradients, the cached factor as preconditioner."""
    rows, penalty, likelihood = searcher.rows, searcher.problem.penalty[:, None], searcher.problem.likelihood
    solve = searcher.point.curvature.solve

    def image(columns: FloatArray) -> FloatArray:
        return rows.pull(likelihood.product(curvature, rows.margins(columns))) + penalty * columns

    solution = start.copy()
    residual = right - image(solution)
    conditioned = solve(residual)
    direction = conditioned.copy()
    rho = np.einsum("ij,ij->j", residual, conditioned)
    goal = SOLVE_TOLERANCE**2 * np.einsum("ij,ij->j", right, start)
    for _ in range(SOLVE_ITERATIONS):
        if np.all(rho <= goal):
            break
        turned = image(direction)
        bend = np.einsum("ij,ij->j", direction, turned)
        moving = (bend > 0) & (rho > goal)  # a column that is done stays as it is, whatever the others need
        step = np.divide(rho, bend, out=np.zeros_like(rho), where=moving)
        solution += step * direction
        residual -= step * turned
        conditioned = solve(residual)
        previous, rho = rho, np.einsum("ij,ij->j", residual, conditioned)
        direction = conditioned + np.divide(rho, previous, out=np.zeros_like(rho), where=previous > 0) * direction
    return solution
