"""What removing training rows does to the training objective, to first order.

The gradient loses ``e_i x_i`` with ``e_i = s_i (p_i - y_i)`` for every row removed, so theta moves by
``H^-1 e_i x_i``. Balanced class weights are those of the rows that stay, so there every row's share of the
gradient changes; that change is taken exactly.
"""

from __future__ import annotations

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows


def removal_moves(problem: Problem, rows: Rows, point: StationaryPoint, response: FloatArray) -> FloatArray:
    """First-order move of a margin when each training row alone is removed; (n,) for ``response = X u``.

    A row that is the last of its class moves nothing, since no model can be fitted without it.
    """
    base, y = rows.base_weight, rows.y
    counts = class_counts(rows)
    side = np.stack([1.0 - y, y])
    pulls = base * (point.probability - y) * response
    sums = np.array([pulls[y < 0.5].sum(), pulls[y > 0.5].sum()])
    left = counts[:, None] - base * side
    fittable = np.all(left > 1e-12 * counts[:, None], axis=0)
    return np.where(fittable, combined_moves(problem, counts, left, sums, pulls * side), 0.0)


def class_counts(rows: Rows) -> FloatArray:
    """Base-weighted counts of classes 0 and 1, shape (2,)."""
    positive = float(rows.base_weight @ rows.y)
    return np.array([float(rows.base_weight.sum()) - positive, positive])


def combined_moves(
    problem: Problem, counts: FloatArray, left: FloatArray, sums: FloatArray, gone: FloatArray
) -> FloatArray:
    """First-order move of a margin when sets of rows are removed, shape (m,).

    Parameters
    ----------
    counts, sums : ndarray of shape (2,)
        by class, over all rows: the base weights, and the pulls ``b_i (p_i - y_i) x_i . u``.
    left : ndarray of shape (2, m)
        the counts without each set.
    gone : ndarray of shape (2, m)
        the pulls of each set.
    """
    before = class_weights(problem, counts[:, None])
    after = class_weights(problem, left)
    return np.asarray((after * gone - (after - before) * sums[:, None]).sum(axis=0))


def class_weights(problem: Problem, counts: FloatArray) -> FloatArray:
    """Weights of the two classes at weighted class counts, both of shape (2, m); 0 for an empty class."""
    if not problem.class_weight.balanced:
        return np.broadcast_to(np.reshape(problem.class_weight.fixed, (2, 1)), counts.shape)
    out = np.zeros_like(counts)
    np.divide(counts.sum(axis=0), 2.0 * counts, out=out, where=counts > 0)
    return out
