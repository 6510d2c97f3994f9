"""How far the refit may move the training rows' margins, and the energy that takes, for all sets of at most k rows.

The inequalities are proved in `flips.certificate`; here each is one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.curvature.stationary import sigmoid
from mlflow_relabel_audit.flips.gram import SetSums
from mlflow_relabel_audit.problem import FloatArray

ROUNDING = 1e-11
"""Relative slack for the float64 arithmetic of the bounds: sums of up to 1e5 terms of one sign."""
MAX_ROUNDS = 60
SECANT_ROUNDS = 12
SHRINKS = 4
FAR = 60.0
"""A move of the margin beyond which a box is given up."""


@dataclass(frozen=True)
class RowState:
    """The training rows at the fitted point; every array has shape (n,).

    Attributes
    ----------
    margin, probability, weight
        z_j, p_j and s_j.
    load : ndarray
        largest size of row j's relabelling coefficient.
    norm : ndarray
        ``||x_j||_{H^-1}``, or an upper bound.
    residual : float
        bound of ``||grad F(theta)||_{H^-1}``, rounding included.
    """

    margin: FloatArray
    probability: FloatArray
    weight: FloatArray
    load: FloatArray
    norm: FloatArray
    residual: float

    @property
    def extreme(self) -> FloatArray:
        """``max(p, 1 - p)``: the largest ``|kappa|`` whatever the move."""
        return np.maximum(self.probability, 1.0 - self.probability)


@dataclass(frozen=True)
class Energy:
    """``E_D(S) <= offset + sum_{i in S} charge_i`` for all sets of at most k rows, and the maximum of that."""

    offset: float
    charge: FloatArray
    total: float


def kappa_range(probability: FloatArray, rho: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and largest ``kappa_j`` for ``|delta_j| <= rho_j``: ``1/2 - p -+ (gamma(rho) - 1/2)``, in [-p, 1 - p]."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        excess = 0.5 / np.tanh(0.5 * rho) - 1.0 / rho
    excess = np.where(rho < 0.01, rho / 12.0, excess)  # gamma(rho) - 1/2 <= rho / 12
    excess = np.minimum(excess + 1e-12, 0.5)
    middle = 0.5 - probability
    return np.maximum(middle - excess, -probability), np.minimum(middle + excess, 1.0 - probability)


def largest_change(weight: FloatArray, margin: FloatArray, rho: FloatArray) -> FloatArray:
    """``psi_j = s_j rho_j (sigma(|z_j|) - sigma(|z_j| - rho_j))``, the largest e_j for ``|delta_j| <= rho_j``."""
    size = np.abs(margin)
    with np.errstate(invalid="ignore"):
        change = weight * rho * sigmoid(size) * sigmoid(rho - size) * -np.expm1(-rho)
    return np.where(weight > 0, change * (1.0 + ROUNDING), 0.0)


def least_secant(state: RowState, rho: FloatArray) -> FloatArray:
    """Least ``dbar_j = s_j (sigma(z + delta) - sigma(z)) / delta`` for ``|delta_j| <= rho_j``: the move outward."""
    size = np.abs(state.margin)
    with np.errstate(invalid="ignore", divide="ignore"):
        secant = sigmoid(-size) * sigmoid(size + rho) * -np.expm1(-rho) / rho
    return state.weight * np.where(rho > 0, secant, sigmoid(size) * sigmoid(-size)) * (1.0 - ROUNDING)


def top(values: FloatArray, k: int) -> float:
    """Sum of the k largest of non-negative values."""
    if k >= len(values):
        return float(values.sum())
    return float(np.partition(values, len(values) - k)[len(values) - k :].sum())


def knapsack(worth: FloatArray, limit: FloatArray, budget: float) -> float:
    """``max sum_j worth_j e_j`` over ``0 <= e_j <= limit_j``, ``sum_j e_j <= budget``, by its dual."""
    order = np.argsort(-worth)
    last = int(np.searchsorted(np.cumsum(limit[order]), budget))
    price = worth[order[last]] if last < len(worth) else 0.0
    spent = price * budget if price > 0 else 0.0
    return float(spent + np.maximum(worth - price, 0.0) @ limit) * (1.0 + ROUNDING)


def energy(sums: SetSums, state: RowState, rho: FloatArray, k: int) -> Energy:
    """Bound E_D by the expansion around the first-order move, given ``|delta_j| <= rho_j``.

    ``sum_j (eta_j - tau)_+ psi_j`` falls and ``1 / (1 - tau)`` rises with tau; the best tau is one of the eta_j.
    """
    low, high = kappa_range(state.probability, rho)
    positive, negative = np.maximum(high, 0.0), np.maximum(-low, 0.0)
    change = largest_change(state.weight, state.margin, rho)
    eta = np.maximum(positive * sums.ahead, negative * sums.behind)
    eta += np.maximum(positive, negative) * (state.norm * state.residual)
    with np.errstate(invalid="ignore"):
        own = np.maximum(positive * sums.own_ahead, negative * sums.own_behind)
        own = np.where(own > 0, own * change, 0.0)
    charge = sums.pair * (1.0 + state.residual) + own
    base = top(charge, k) + state.residual * (1.0 + state.residual)
    order = np.argsort(-eta)
    ordered, widths = eta[order], change[order]
    with np.errstate(invalid="ignore"):
        above = np.cumsum(ordered * widths) - ordered * np.cumsum(widths)  # sum of (eta - tau)_+ psi at tau = eta_m
    above = np.append(np.maximum(above, 0.0), np.sum(ordered * widths))
    tau = np.append(ordered, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(tau < 1.0 - 1e-9, (base + above) / (1.0 - tau), np.inf)
    bound = np.where(np.isnan(bound), np.inf, bound)
    best = int(np.argmin(bound))
    if not np.isfinite(bound[best]):
        return Energy(np.inf, np.full_like(charge, np.inf), np.inf)
    scale = (1.0 + ROUNDING) / (1.0 - tau[best])
    excess = float(np.maximum(ordered - tau[best], 0.0) @ widths)
    offset = (excess + state.residual * (1.0 + state.residual)) * scale
    return Energy(offset, charge * scale, float(offset + top(charge, k) * scale))


@dataclass(frozen=True)
class LevelBound:
    """What holds for every set of at most k rows; arrays have shape (n,).

    Attributes
    ----------
    k : int
    rho : ndarray
        ``|delta_j| <= rho_j``.
    low, high : ndarray
        range of kappa_j.
    change : ndarray
        largest e_j.
    energy : Energy
    """

    k: int
    rho: FloatArray
    low: FloatArray
    high: FloatArray
    change: FloatArray
    energy: Energy


Box = tuple[FloatArray, Energy]
"""Bounds that hold while ``|delta_j| <= rho_j``: of the moves, shape (n,), and of the energy."""

SecantNorms = Callable[[FloatArray], tuple[FloatArray, float]]
"""From rho to the row norms ``||x_j||_{H_lo^-1}`` and kappa with ``H_lo >= kappa H`` (see `certificate`)."""


def expand(sums: SetSums, spread: FloatArray, state: RowState, rho: FloatArray, k: int) -> Box:
    """Right sides of the expansion around the first-order move (section 3)."""
    bound = energy(sums, state, rho, k)
    change = largest_change(state.weight, state.margin, rho)
    drift = knapsack(state.extreme * state.norm, change, bound.total)
    single = state.norm**2 * state.extreme * np.minimum(change, bound.total)
    further = np.minimum(state.norm * drift, spread * bound.total + single)
    return (sums.reach + state.norm * state.residual + further) * (1.0 + ROUNDING), bound


def enclose(state: RowState, secant: SecantNorms, rho: FloatArray, k: int) -> Box:
    """Right sides from the least Hessian in the box (section 4)."""
    norms, ratio = secant(rho)
    loads = state.load * norms
    reach = top(loads, k)
    extra = state.residual / np.sqrt(ratio)
    length = (reach + extra) * (1.0 + ROUNDING)
    offset = extra * (2.0 * reach + extra) * (1.0 + ROUNDING)
    return norms * length, Energy(offset, loads * length, length**2)


def least(first: Energy, second: Energy) -> Energy:
    """Whichever of two bounds has the smaller maximum."""
    return first if first.total <= second.total else second


def close_box(
    sums: SetSums,
    spread: FloatArray,
    state: RowState,
    k: int,
    start: FloatArray | None = None,
    secant: SecantNorms | None = None,
) -> LevelBound | None:
    """Find rho with ``|delta_j| <= rho_j`` for every set of at most k rows; None where no box closes.

    A box is proved once every right side lies strictly inside it (section 3); from then on right sides are
    bounds. ``start`` is a box to begin with, ``secant`` adds the right sides of section 4.
    """
    rho = 1.05 * sums.reach + 1e-9
    if start is not None:
        rho = np.maximum(rho, start)
    for _ in range(MAX_ROUNDS if secant is None else SECANT_ROUNDS):
        moves, bound = expand(sums, spread, state, rho, k)
        if secant is not None:
            inner = enclose(state, secant, rho, k)
            moves, bound = np.minimum(moves, inner[0]), least(bound, inner[1])
        if not (moves < FAR).all():
            return None
        if (moves < rho).all():
            break
        rho = np.maximum(rho, 1.02 * moves)
    else:
        return None
    for _ in range(SHRINKS):
        rho = np.minimum(rho, moves)
        moves, tighter = expand(sums, spread, state, rho, k)
        bound = least(bound, tighter)
    rho = np.minimum(rho, moves)
    low, high = kappa_range(state.probability, rho)
    return LevelBound(k, rho, low, high, largest_change(state.weight, state.margin, rho), bound)
