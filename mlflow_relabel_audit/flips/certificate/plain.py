r"""A lower bound of k for several outputs, from self-concordance alone.

Relabelling a set S moves the gradient at theta by c_S, so that ``theta_S - theta = delta`` solves
``c_S + Hbar delta = 0`` with the secant Hessian ``Hbar >= phi(rho) H``, ``rho`` the largest move of an output against
another one (`refit.proof`, steps 2 and 6, with kappa = 1, as theta is the minimiser). With
``eps >= ||c_S||_{H^-1}`` and h the largest row norm, ``1 - exp(-rho) <= h eps``. For ``u = H^-1 x_t``, steps 3 and 4
read

    -x_t . delta  <=  u . c_S + w / phi ||x_t|| eps   and   |x_t . delta| <= ||x_t|| eps / phi,   w = phi(-rho) - 1,

as Q = 0 and C <= ||x_t||^2 at theta. Over all sets of k rows, and all their new labels, ``u . c_S`` is at most the sum
of the k largest first-order moves, which the influence order has, and ``||c_S||`` at most the sum of the k largest
``a_i h_i``. No set of k labels flips the margin where one of the two stays below it; k_lower is one more than the
largest such k. Weights must not depend on labels: otherwise the bound is 1. It holds for every other class, and the
least of them is the prediction's.
"""

from __future__ import annotations

import numpy as np

from mlflow_relabel_audit.flips.order.influence import EstimateBlock
from mlflow_relabel_audit.flips.refit.proof import Near
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.likelihood import FloatArray, IntArray

SLACK = 1e-6
"""Relative to the sums: first-order moves are float32 numbers of float64 products."""


def plain_lower_bounds(block: EstimateBlock, effect: RelabelEffect, row_norms: FloatArray) -> IntArray:
    """Bound k of every margin of a block from below, shape (B,).

    Parameters
    ----------
    block : EstimateBlock
    effect : RelabelEffect
    row_norms : ndarray of shape (n M,)
        or upper bounds.
    """
    out = np.ones(len(block.orders), dtype=np.int64)
    if not effect.linear:
        return out
    longest = max((len(order.change) for order in block.orders), default=0)
    reach = np.cumsum(-np.sort(-effect.reaches(row_norms))[: longest + 1]) * (1.0 + SLACK)
    near = Near.of(reach, np.ones(len(reach)), np.full(len(reach), row_norms.max(initial=0.0)))
    radius = near.radius
    with np.errstate(invalid="ignore"):  # beyond reach, where the radius is inf
        bent = (near.grown - 1.0) * radius
    norms = np.sqrt(np.maximum(np.einsum("ij,ij->j", block.targets, block.direction), 0.0)) * (1.0 + SLACK)
    for t, order in enumerate(block.orders):
        total = np.cumsum(order.influence) * (1.0 + SLACK)
        k = len(total)
        if k < len(reach) and order.complete:  # further labels only pull the other way
            total = np.append(total, np.full(len(reach) - k, total[-1] if k else 0.0))
            k = len(total)
        moved = np.fmin(total + norms[t] * bent[:k], norms[t] * radius[:k])
        safe = moved < abs(block.margin[t]) * (1.0 - SLACK)
        out[t] += k if safe.all() else int(np.argmin(safe))
    return out
