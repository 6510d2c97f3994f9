"""One refit with relabelled rows, to the end: the witness the verified search is held against."""

from __future__ import annotations

import math

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.curvature.stationary import refit
from mlflow_relabel_audit.flips.refit import ROUNDING
from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows


def exact_margin(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    change: Relabelling,
    theta: FloatArray,
    target: FloatArray,
) -> tuple[float, float, FloatArray]:
    """Margin of one row after a refit by damped Newton steps to the end, its error, and theta.

    The error is the plain bound of the proof in `refit`, with the refit's Hessian for H, so kappa = 1.

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
