"""Rows with the same features: what the labels of a row's copies say of its own.

A linear model cannot remember single rows. Where a table repeats them, the other labels of the same row are
evidence that it leaves unused: five equal applicants of whom one alone is marked as bad are a reason to look
at that one. The probability p that the model gives is pooled with the copies' labels as a Beta prior of
strength m is with counts,

    (m p + ones among the copies) / (m + copies),

with the m that predicts each label best from its copies' (leave-one-out). m is infinite, and nothing is
pooled, where copies agree no more than the model expects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows

STRENGTHS = (300.0, 100.0, 30.0, 10.0, 5.0, 3.0, 2.0, 1.0)
"""Not below 1: copies may have been labelled wrong together, so one of them never outweighs the model."""
MIN_GAIN = 3.0
"""Nats of log-likelihood that pooling must gain over the model alone: less may be chance."""
SAME = 1e-9
"""Rows are copies where two random projections agree to this share of their spread."""
PLATT_STEPS = 25
MIN_SLOPE = 1e-3
"""Margins that speak against the labels they were trained for say nothing."""


@dataclass(frozen=True)
class Pooled:
    """Margins after the copies' labels were heard.

    Attributes
    ----------
    margin : ndarray of shape (n,)
        each pooled with its copies' labels, never its own.
    strength : float
        m of the prior, ``inf`` where nothing was pooled: then the margins are those that were given.
    repeated : int
        rows that have a copy.
    """

    margin: FloatArray = field(repr=False)
    strength: float
    repeated: int


def copies(rows: Rows) -> IntArray:
    """Number the distinct feature vectors: the number of every row, int64 of shape (n,)."""
    directions = np.random.default_rng(0).standard_normal((rows.p, 2))
    place = rows.margins(directions)
    spread = np.maximum(np.abs(place).max(axis=0, initial=0.0), np.finfo(np.float64).tiny)
    # sums of one row differ in the last digits with its place in a block: neighbours are compared, not equals
    order = np.lexsort((np.round(place[:, 1] / (spread[1] * SAME)), np.round(place[:, 0] / (spread[0] * SAME))))
    step = np.abs(np.diff(place[order], axis=0)) > SAME * spread
    number = np.empty(len(place), dtype=np.int64)
    number[order] = np.concatenate([[0], np.cumsum(step.any(axis=1))]) if len(place) else 0
    return number


def pool_copies(rows: Rows, margin: FloatArray, say: FloatArray | None = None) -> Pooled:
    """Pool out-of-fold margins with the labels of identical rows, where that predicts labels better.

    Parameters
    ----------
    rows : Rows
        n rows with their given labels; those of weight 0 have no say.
    margin : ndarray of shape (n,)
        out-of-fold margins.
    say : ndarray of shape (n,), optional
        weights of the rows in the choice of the strength; all alike by default.
    """
    number = copies(rows)
    heard = (rows.base_weight > 0).astype(np.float64)
    size, ones = (np.bincount(number, weights=weight) for weight in (heard, heard * rows.y))
    others = size[number] - heard
    positive = ones[number] - heard * rows.y
    repeated = others > 0
    nothing = Pooled(margin, np.inf, int(repeated.sum()))
    if not repeated.any():
        return nothing
    trained = heard > 0
    shift, slope = _platt(margin[trained], rows.y[trained])
    calibrated = shift + slope * margin
    judged = repeated & trained
    weight = np.ones(int(judged.sum())) if say is None else say[judged]

    def loss(at: FloatArray) -> float:
        return float(weight @ (np.logaddexp(0.0, at[judged]) - rows.y[judged] * at[judged]))

    tried = {m: loss(_pooled(calibrated, others, positive, m)) for m in STRENGTHS}
    strength = min(tried, key=lambda m: tried[m])
    if loss(calibrated) - tried[strength] < MIN_GAIN:
        return nothing
    return Pooled(_pooled(calibrated, others, positive, strength), strength, int(repeated.sum()))


def _pooled(margin: FloatArray, count: FloatArray, ones: FloatArray, strength: float) -> FloatArray:
    """Log-odds of the pooled probability; the margin itself where there are no copies."""
    margin = np.clip(margin, -30.0, 30.0)  # beyond, one of the two probabilities is zero in floating point
    above = np.log(strength * sigmoid(margin) + ones)
    below = np.log(strength * sigmoid(-margin) + count - ones)
    return np.asarray(np.where(count > 0, above - below, margin))


def _platt(margin: FloatArray, label: FloatArray) -> tuple[float, float]:
    """Intercept and slope of the labels' logistic regression on the margin, by Newton's method."""
    scale = float(np.std(margin)) or 1.0
    z = np.clip(margin / scale, -30.0, 30.0)
    coefficients = np.zeros(2)
    design = np.stack([np.ones(len(z)), z])
    for _ in range(PLATT_STEPS):
        probability = sigmoid(coefficients @ design)
        gradient = design @ (probability - label) + 1e-3 * coefficients
        curvature = (design * (probability * (1.0 - probability))) @ design.T + 1e-3 * np.eye(2)
        move = np.clip(np.linalg.solve(curvature, gradient), -2.0, 2.0)
        coefficients = coefficients - move
        if np.abs(move).max() < 1e-8:
            break
    return float(coefficients[0]), float(max(coefficients[1], MIN_SLOPE) / scale)
