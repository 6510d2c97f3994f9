"""How far the refit may move the training rows' margins, and the energy that takes, for all sets of at most k rows.

The inequalities are proved in `flips.certificate.bound`; here each is one function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from mlflow_relabel_audit.curvature import Curvature, StationaryPoint, factor
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.flips.certificate.gram import SetSums
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

ROUNDING = 1e-11
"""Relative slack for the float64 arithmetic of the bounds: sums of up to 1e5 terms of one sign."""
MAX_ROUNDS = 60
SHRINKS = 4
BINS = 256
GRID = 1.25
LOOSE = 1.15
"""A closed box this many times the first-order reach is worth tightening by secants."""
MAX_ROUNDING = 0.05
"""Relative error of the row norms beyond which nothing is claimed."""
FAR = 60.0
"""A move of the margin beyond which a box is given up: on confident models secants close boxes as wide as 50."""


@dataclass(frozen=True)
class RowState:
    """The training rows at the fitted point; every array has shape (n,).

    Attributes
    ----------
    margin, probability, weight
        z_j, p_j and s_j.
    load : ndarray
        largest size of row j's relabelling coefficient.
    base : ndarray
        weight without class weights.
    by_class : tuple of two floats
        fixed class weights.
    norm : ndarray
        ``||x_j||_{H^-1}``, or an upper bound.
    residual : float
        bound of ``||grad F(theta)||_{H^-1}``, rounding included.
    """

    margin: FloatArray
    probability: FloatArray
    weight: FloatArray
    load: FloatArray
    base: FloatArray
    by_class: tuple[float, float]
    norm: FloatArray
    residual: float

    @property
    def extreme(self) -> FloatArray:
        """``max(p, 1 - p)``: the largest ``|kappa|`` whatever the move."""
        return np.maximum(self.probability, 1.0 - self.probability)

    def load_range(self, rho: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Least and largest size of the relabelling coefficients for ``|delta_j| <= rho_j``."""
        if self.by_class[0] == self.by_class[1]:
            return self.load, self.load
        ends = []
        for z in (self.margin - rho, self.margin + rho):
            ends.append(self.base * (self.by_class[0] * sigmoid(z) + self.by_class[1] * sigmoid(-z)))
        return np.minimum(*ends) * (1.0 - ROUNDING), np.minimum(np.maximum(*ends) * (1.0 + ROUNDING), self.load)


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


def excess(worth: FloatArray, limit: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``sum_j limit_j`` and ``sum_j (worth_j - tau)_+ limit_j`` at a falling ladder of tau from the largest worth to 0.

    Every sum is over bins of worth, so it serves to choose a tau; the bound at that tau is then summed exactly.
    """
    ceiling = float(worth.max(initial=0.0))
    if ceiling <= 0.0:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    place = np.minimum((worth * (BINS / ceiling)).astype(np.intp), BINS - 1)
    width = np.cumsum(np.bincount(place, limit, BINS)[::-1])
    value = np.cumsum(np.bincount(place, limit * worth, BINS)[::-1])
    tau = ceiling * np.arange(BINS - 1, -1, -1) / BINS
    return (
        np.append(ceiling, tau),
        np.append(0.0, width),
        np.append(0.0, np.maximum(value - tau * width, 0.0)),
    )


def knapsack(worth: FloatArray, limit: FloatArray, budget: float) -> float:
    """``max sum_j worth_j e_j`` over ``0 <= e_j <= limit_j``, ``sum_j e_j <= budget``, from above by its dual."""
    tau, _, over = excess(worth, limit)
    price = float(tau[np.argmin(over + np.where(tau > 0, tau * budget, 0.0))]) if np.isfinite(budget) else 0.0
    spent = price * budget if price > 0 else 0.0
    return float(spent + np.maximum(worth - price, 0.0) @ limit) * (1.0 + ROUNDING)


def energy(sums: SetSums, state: RowState, rho: FloatArray, k: int) -> Energy:
    """Bound E_D by the expansion around the first-order move, given ``|delta_j| <= rho_j`` (section 2)."""
    low, high = kappa_range(state.probability, rho)
    positive, negative = np.maximum(high, 0.0), np.maximum(-low, 0.0)
    change = largest_change(state.weight, state.margin, rho)
    eta = np.maximum(positive * sums.ahead, negative * sums.behind)
    eta += np.maximum(positive, negative) * (state.norm * state.residual)
    own = np.maximum(positive * sums.own_ahead, negative * sums.own_behind) * change
    charge = sums.pair * (1.0 + state.residual) + own
    most = top(charge, k)
    free = state.residual * (1.0 + state.residual)
    tau, _, over = excess(eta, change)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(tau < 1.0 - 1e-9, (most + free + over) / (1.0 - tau), np.inf)
    best = int(np.argmin(bound))
    if not np.isfinite(bound[best]):
        return Energy(np.inf, np.full_like(charge, np.inf), np.inf)
    scale = (1.0 + ROUNDING) / (1.0 - tau[best])
    offset = (float(np.maximum(eta - tau[best], 0.0) @ change) + free) * scale
    return Energy(offset, charge * scale, offset + most * scale)


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
    load_low, load_high : ndarray
        range of the relabelling coefficient's size.
    """

    k: int
    rho: FloatArray
    low: FloatArray
    high: FloatArray
    change: FloatArray
    energy: Energy
    load_low: FloatArray
    load_high: FloatArray


Box = tuple[FloatArray, Energy]
"""Bounds that hold while ``|delta_j| <= rho_j``: of the moves, shape (n,), and of the energy."""


@dataclass(frozen=True)
class Secant:
    """The least Hessian ``H_lo`` in a box.

    Attributes
    ----------
    least : ndarray of shape (n,)
        its diagonal weights.
    norms : ndarray of shape (n,)
        ``||x_j||_{H_lo^-1}``.
    ratio : float
        kappa with ``H_lo >= kappa H``.
    """

    least: FloatArray
    norms: FloatArray
    ratio: float


class SecantBoxes:
    """Row norms in the metric of ``H_lo``, the least Hessian in boxes ``|delta_j| <= radius h_j``.

    The radii form a geometric grid, so that all levels share the few factorisations.
    """

    def __init__(
        self, rows: Rows, point: StationaryPoint, penalty: FloatArray, state: RowState, rounding: float
    ) -> None:
        self._rows, self._penalty, self._state, self._rounding = rows, penalty, state, rounding
        self._diagonal = point.diagonal
        self._kind = point.curvature.kind
        self._least = float(state.load.max(initial=0.0) * state.norm.max(initial=0.0)) / 8.0
        self._known: dict[int, Secant | None] = {}

    def radius(self, step: int) -> float:
        """Radius of a grid step."""
        return self._least * GRID**step

    def covering(self, rho: FloatArray) -> int:
        """First step whose box holds the box rho."""
        held = self._state.norm > 0
        need = float(np.max(rho[held] / self._state.norm[held], initial=0.0))
        step = max(0, int(np.ceil(np.log(max(need / self._least, 1.0)) / np.log(GRID))))
        return step if self.radius(step) >= need else step + 1

    def at(self, step: int) -> Secant | None:
        """The least Hessian in the box of a grid step; None where it is singular."""
        if step not in self._known:
            least = least_secant(self._state, self.radius(step) * self._state.norm)
            held = self._diagonal > 0
            ratio = min(1.0, float(np.min(least[held] / self._diagonal[held], initial=1.0)))
            inflation = self._rounding / max(ratio, 1e-300)
            try:
                factored = factor(self._rows, least, self._penalty, self._kind)
                found = self._norms(factored)
            except SingularHessianError:
                inflation = np.inf
            sound = inflation < MAX_ROUNDING
            self._known[step] = Secant(least, found * (1.0 + inflation), ratio) if sound else None
        return self._known[step]

    def _norms(self, curvature: Curvature) -> FloatArray:
        """Row norms by one product with the inverse factor, which for dense rows is quicker than solving."""
        lower = getattr(curvature, "lower", None)
        if lower is None or self._rows.sparse:
            return curvature.row_norms(self._rows)
        basis = np.ascontiguousarray(solve_triangular(lower, np.eye(len(lower)), lower=True).T)
        return np.sqrt(self._rows.forms(basis, np.ones(len(lower))))


def expand(sums: SetSums, spread: FloatArray, state: RowState, rho: FloatArray, k: int) -> Box:
    """Right sides of the expansion around the first-order move (section 3)."""
    change = largest_change(state.weight, state.margin, rho)
    bound = least_energy(energy(sums, state, rho, k), given(state, rho, k))
    drift = knapsack(state.extreme * state.norm, change, bound.total)
    single = state.norm**2 * state.extreme * np.minimum(change, bound.total)
    further = np.minimum(state.norm * drift, spread * bound.total + single)
    return (sums.reach + state.norm * state.residual + further) * (1.0 + ROUNDING), bound


def given(state: RowState, rho: FloatArray, k: int) -> Energy:
    """Bound E_D by ``-(c + r).Delta <= sum_{i in S} load_i rho_i + eps ||Delta||_H`` (section 2)."""
    charge = state.load * rho
    widest = 1.0 + float(rho.max(initial=0.0))
    length = np.sqrt(top(charge, k) * widest) + state.residual * widest
    offset = float(state.residual * length * (1.0 + ROUNDING))
    return Energy(offset, charge, offset + top(charge, k))


def enclose(state: RowState, secant: Secant, rho: FloatArray, k: int) -> FloatArray:
    """Bound the moves by the least Hessian in the box (section 4), shape (n,)."""
    reach = top(state.load * secant.norms, k)
    return np.asarray(secant.norms * ((reach + state.residual / np.sqrt(secant.ratio)) * (1.0 + ROUNDING)))


def least_energy(first: Energy, second: Energy) -> Energy:
    """Whichever of two bounds has the smaller maximum."""
    return first if first.total <= second.total else second


def bound_level(
    sums: SetSums,
    spread: FloatArray,
    state: RowState,
    k: int,
    boxes: SecantBoxes | None,
    warm: FloatArray | None = None,
) -> LevelBound | None:
    """Bound the moves and the energy for every set of at most k rows; None where no box closes.

    A box is proved once every right side lies strictly inside it (section 3); from then on right sides are
    bounds, and shrink it. ``warm`` is the last level's rho over its reach, a place to begin.
    """
    found = _close(sums, spread, state, k, warm)
    if boxes is not None and (found is None or (found[0] > LOOSE * sums.reach).any()):
        found = _close_secant(sums, spread, state, k, boxes, found)
    if found is None:
        return None
    rho, bound = found
    for _ in range(SHRINKS):
        moves, tighter = expand(sums, spread, state, rho, k)
        rho, bound = np.minimum(rho, moves), least_energy(bound, tighter)
    low, high = kappa_range(state.probability, rho)
    change = largest_change(state.weight, state.margin, rho)
    bound = least_energy(bound, given(state, rho, k))
    return LevelBound(k, rho, low, high, change, bound, *state.load_range(rho))


def _close(sums: SetSums, spread: FloatArray, state: RowState, k: int, warm: FloatArray | None) -> Box | None:
    """Grow a box from the first-order reach, or from ``warm`` times it, until the expansion closes it."""
    for stretch in (1.05,) if warm is None else (1.05 * warm, 1.05):
        rho = stretch * sums.reach + 1e-9
        for _ in range(MAX_ROUNDS):
            moves, bound = expand(sums, spread, state, rho, k)
            if not (moves < FAR).all():
                break
            if (moves < rho).all():
                return moves, bound
            rho = np.maximum(rho, 1.02 * moves)
    return None


def _close_secant(
    sums: SetSums, spread: FloatArray, state: RowState, k: int, boxes: SecantBoxes, proved: Box | None
) -> Box | None:
    """Find the smallest box of the grid that closes, then walk down the grid inside it."""
    step = boxes.covering(1.02 * sums.reach)
    closed = False
    while not closed:
        rho = boxes.radius(step) * state.norm
        secant = boxes.at(step)
        if secant is None or rho.max(initial=0.0) > FAR:
            return proved
        moves, bound = expand(sums, spread, state, rho, k)
        moves = np.minimum(moves, enclose(state, secant, rho, k))
        closed = bool((moves < rho).all()) or (proved is not None and bool((proved[0] <= rho).all()))
        step += 1
    rho = moves
    if proved is not None:
        rho, bound = np.minimum(rho, proved[0]), least_energy(bound, proved[1])
    while (lower := boxes.covering(rho)) < step - 1:
        step = lower + 1
        secant = boxes.at(lower)
        if secant is None:
            break
        rho = np.minimum(rho, enclose(state, secant, rho, k))
    return rho, bound
