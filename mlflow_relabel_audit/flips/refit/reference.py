"""How a reference Hessian compares with another, and how long rows are under it (steps 1 and 2 of `proof`)."""

from __future__ import annotations

import math

import numpy as np

from mlflow_relabel_audit.curvature import Curvature
from mlflow_relabel_audit.curvature.base import solved_row_norms
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

EXACT_NORMS = 1024
"""Rows whose norms under an own reference are computed; the others are bounded."""
SPECTRAL_LEVELS = (0.35, 0.7)
"""Values of q tried in the spectral bound."""

LEAST_KAPPA = 1e-100
"""Below this a spectral bound says nothing."""


def spectral_bound(now: FloatArray, reference: FloatArray, squares: FloatArray, scale: float = 1.0) -> float:
    """Kappa of one column: the Hessian of weights ``now`` is at least kappa times that of ``reference``.

    ``scale`` times ``squares`` bounds the rows' squared norms under the reference, shape (n,).
    """
    known = reference > 0
    least = float((now[known] / reference[known]).min(initial=1.0))
    if not np.isfinite(scale):
        return least
    short = [scale * float(squares @ np.maximum(level * reference - now, 0.0)) for level in SPECTRAL_LEVELS]
    return max(least, *(level - missing for level, missing in zip(SPECTRAL_LEVELS, short, strict=True)))


def largest_norm(rows: Rows, own: Curvature, squares: FloatArray, below: float, count: int) -> float:
    """Bound of the largest row norm under ``own``, which is at least ``below`` times the shared reference.

    Exact for the ``count`` rows that are largest under the shared one, whose squared norms are ``squares``; the
    others, and all of several outputs, can grow by ``below^-1/2`` at most.
    """
    if count >= rows.n:
        return float(own.row_norms(rows).max())
    if rows.outputs > 1:
        return math.sqrt(float(squares.max()) / below) if below > 0 else np.inf
    order = np.argpartition(-squares, count - 1)
    exact = float(solved_row_norms(own, rows, np.sort(order[:count])).max()) ** 2
    others = float(squares[order[count:]].max(initial=0.0))
    if below <= 0:
        return np.inf if others > 0 else math.sqrt(max(exact, 0.0))
    return math.sqrt(max(exact, others / below))
