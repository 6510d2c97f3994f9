"""What relabelling does to the training objective.

Labels enter the objective linearly: relabelling row i adds ``s_i (2 y_i - 1) z_i``, so the gradient moves by
``a_i x_i`` with ``a_i = s_i (2 y_i - 1)``. Where weights depend on labels (``class_weight``), relabelled row i
also changes its own weight, from ``b_i w[y_i]`` to ``b_i w[1 - y_i]``, and

    a_i = (2 y_i - 1) b_i [w_0 p_i + w_1 (1 - p_i)];

under ``"balanced"`` the class counts move too, which to first order adds ``b_i (2 y_i - 1) v`` with one shared
vector ``v = (w_1 / n_1) e_1 - (w_0 / n_0) e_0``, ``e_c = sum_{y_j = c} b_j (p_j - y_j) x_j``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows


@dataclass(frozen=True)
class RelabelEffect:
    """First-order effect of every single relabelling at the fitted point.

    Relabelling row i moves the gradient by ``coefficient_i x_i + count_i shared``, and so the margin of x_t by
    ``g_i = -(coefficient_i response_i + count_i shared . u_t)`` with ``u_t = H^-1 x_t`` and
    ``response_i = x_i . u_t``.

    Attributes
    ----------
    coefficient : ndarray of shape (n,)
    count : ndarray of shape (n,)
        what the relabelling takes from the positive class's weighted count, ``b_i (2 y_i - 1)``.
    shared : ndarray of shape (p,)
        zero unless class weights are balanced.
    linear : bool
        whether weights do not depend on labels, so that ``coefficient`` is exact at every theta.
    """

    coefficient: FloatArray
    count: FloatArray
    shared: FloatArray
    linear: bool

    @classmethod
    def at(cls, problem: Problem, rows: Rows, point: StationaryPoint) -> RelabelEffect:
        """Read the effects off the fitted point."""
        rule = problem.class_weight
        base, y = rows.base_weight, rows.y
        positive, total = float(base @ y), float(base.sum())
        by_class = rule.at(positive, total)
        count = base * (2.0 * y - 1.0)
        mixed = by_class[0] * point.probability + by_class[1] * (1.0 - point.probability)
        shared: FloatArray = np.zeros(rows.p)
        if rule.balanced:
            error = base * (point.probability - y)
            scale = np.where(y > 0.5, by_class[1] / positive, -by_class[0] / (total - positive))
            shared = rows.pull(error * scale)
        linear = not rule.balanced and rule.fixed[0] == rule.fixed[1]
        return cls(count * mixed, count, shared, linear)
