"""Refits with relabelled rows, to the end: many at once, and one by Newton as the witness of the search."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.curvature.stationary import refit
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.flips.refit.proof import ROUNDING
from mlflow_relabel_audit.flips.refit.simultaneous import CONVERGED, RefitBlock
from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows

MAX_STEPS, REFERENCE_AFTER = 120, 12
"""Iterations of a refit to the end, and after how many of them a column gets a reference of its own."""


def converged(
    block: RefitBlock,
    targets: FloatArray,
    directions: FloatArray,
    sets: list[Relabelling],
    enough: Callable[[int, FloatArray, float], bool] | None = None,
) -> list[tuple[FloatArray, float, Callable[[FloatArray], FloatArray]]]:
    """Refit every column to the end: coefficients, how far they can be off, and what solves with that norm's matrix.

    Parameters
    ----------
    block : RefitBlock
        of a column for each set, or more.
    targets, directions : ndarray of shape (p, b)
        see `RefitBlock.load`.
    sets : list of Relabelling
    enough : callable, optional
        ``enough(column, theta, radius)`` tells whether a column may stop short of its end; asked while the norm is
        that of the shared reference.
    """
    slots = np.arange(len(sets))
    response = np.abs(block.rows.margins(directions)).T if block.rows.outputs == 1 else None
    block.load(slots, targets, directions, response)
    block.relabel(slots, sets)
    followed = max(block.rows.n // 8, 1)
    for step in range(1, MAX_STEPS + 1):
        block.condition(slots)
        far = slots[(block.decrements()[slots] > CONVERGED) | (block.kappa[slots] <= 0)]
        if enough is not None:
            radii = block.radii()
            asked = [slot for slot in far if block.reference(int(slot)) is block.point.curvature]
            done = [slot for slot in asked if enough(int(slot), block.theta[:, slot], float(radii[slot]))]
            far = np.setdiff1d(far, done)
        if not far.size:
            break
        if step % REFERENCE_AFTER == 0:
            for slot in far:
                with contextlib.suppress(SingularHessianError):  # a class is all but gone: nothing is claimed of it
                    block.refresh(int(slot), followed)
            block.condition(far)
            followed = min(8 * followed, block.rows.n)
        block.descend()
    radii = block.radii()
    return [(block.theta[:, slot], float(radii[slot]), block.reference(int(slot)).solve) for slot in slots]


def exact_margin(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    change: Relabelling,
    theta: FloatArray,
    target: FloatArray,
) -> tuple[float, float, FloatArray]:
    """Margin of one row after a refit by damped Newton steps to the end, its error, and theta.

    The error is the plain bound of `proof`, with the refit's Hessian for H, so kappa = 1.

    Raises
    ------
    SingularHessianError
        The relabelled objective has no minimiser (labels of one class, without a penalty).
    """
    found = refit(problem, rows.relabelled(change.index, change.label), theta, point.curvature.kind)
    epsilon = found.stationarity.residual * (1.0 + ROUNDING) + ROUNDING
    a = float(found.curvature.row_norms(rows).max(initial=0.0)) * epsilon
    norm = math.sqrt(max(float(target @ found.curvature.solve(target)), 0.0))
    margin = float(target @ found.theta) - problem.cut
    error = norm * epsilon / (1.0 - a) if a < 1.0 else np.inf
    return margin, error + ROUNDING * (1.0 + abs(margin) + norm), found.theta
