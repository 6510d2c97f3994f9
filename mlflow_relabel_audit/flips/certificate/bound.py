r"""A proved lower bound on the number of labels whose relabelling can flip a prediction (``k_lower``).

Notation. sigma is the logistic function, ``z_j = x_j . theta``, ``p_j = sigma(z_j)``, s_j the weights, y_j the
labels, ``d_j = s_j p_j (1 - p_j)`` and ``H = X'DX + R``, all at the fitted theta; ``r = grad F(theta)``, nearly
0 but kept, ``eps >= ||r||_{H^-1}``. For a set S of relabelled rows theta_S is the new minimiser, ``Delta =
theta_S - theta``, ``delta_j = x_j . Delta``, ``e_j = s_j delta_j (sigma(z_j + delta_j) - sigma(z_j)) >= 0``,
``E_D = sum_j e_j``. The gradient gains ``c = sum_{i in S} a_i x_i``, ``a_i = s_i (2 y_i - 1)``, so theta_S
solves

    sum_j s_j (sigma(z_j + delta_j) - sigma(z_j)) x_j + R Delta + c + r = 0.                              (1)

``K = X H^-1 X'``, ``K^R = X H^-1 R H^-1 X'``, ``K^D = K - K^R``, ``K' = K - 2 K^R``, ``h_j = ||x_j||_{H^-1}``.
For a prediction x_t with margin m_t: ``P_j = x_j . H^-1 x_t`` and ``dir = -sign(m_t)``. (v)_+ is max(v, 0).

**1. The remainder is exact, signed and bounded.** Let ``gamma(d) = 1 / (1 - e^-d) - 1 / d``, which increases
from 0 to 1 through ``gamma(0) = 1/2``. Then

    sigma(z + d) - sigma(z) - sigma'(z) d = kappa d (sigma(z + d) - sigma(z)),    kappa = 1 - p - gamma(d).

Proof: ``sigma(z + d) - sigma(z) = sigma(z + d) sigma(-z) (1 - e^-d)``, so with the secant slope q, ``sigma'(z)
/ q = p d / (1 - e^-d) + (1 - p) (-d) / (1 - e^d) = 1 + d (gamma(d) - (1 - p))``. So ``|delta_j| <= rho_j`` puts
kappa_j between ``1/2 - p_j -+ (gamma(rho_j) - 1/2)``, always within ``[-p_j, 1 - p_j]``, and (1) becomes

    H Delta = -(c + r) - sum_j x_j kappa_j e_j.                                                           (2)

As sigma' is even and falls away from 0, the largest e_j within ``|delta_j| <= rho_j`` is that of a move by
rho_j toward z = 0 (psi_j, `largest_change`), and the least secant slope that of a move outward by rho_j
(`least_secant`).

**2. Energy.** (1) times Delta is ``E_D = -(c + r).Delta - Delta'R Delta``. Let ``D0 = -H^-1 (c + r)``. By (2)
``-(c + r).Delta = D0'H D0 - sum_j (x_j . D0) kappa_j e_j``; ``R >= 0`` gives ``Delta'R Delta >= 2 D0'R Delta -
D0'R D0``; expanding R Delta by (2) as well,

    E_D <= (c + r)'H^-1 X'DX H^-1 (c + r) + sum_j kappa_j e_j v_j,   |v_j - sum_{i in S} a_i K'_ji| <= h_j eps

(the last because ``-I <= I - 2 H^-1/2 R H^-1/2 <= I``). The first term is at most ``(1 + eps) c'(..)c + eps +
eps^2``, as ``2ab <= eps a^2 + b^2 / eps`` and ``X'DX <= H``; and ``c'(..)c <= sum_{i in S} pair_i``, pair_i the
diagonal entry plus the k - 1 largest positive others of row i of ``a_i a_l K^D_il``. In the second, the term i
= j is at most ``own_j``, taken with e_j <= psi_j and charged to row j of S; the others at most ``eta_j e_j``
with ``eta_j = max(kappa_j^+ ahead_j, kappa_j^- behind_j) + |kappa_j| h_j eps``, where ahead_j and behind_j are
the sums of the k largest positive and negative parts of ``a_i K'_ji``, i != j. For every tau in [0, 1), ``sum_j
eta_j e_j <= tau E_D + sum_j (eta_j - tau)_+ psi_j``, so (`energy`)

    E_D <= [eps + eps^2 + sum_j (eta_j - tau)_+ psi_j + sum_{i in S} (pair_i (1 + eps) + own_i)] / (1 - tau).

Also (`given`) ``E_D <= -(c + r).Delta <= sum_{i in S} |a_i| rho_i + eps ||Delta||_H``, and ``d_j delta_j^2 =
e_j (1 - kappa_j delta_j)`` gives ``||Delta||_H^2 <= (1 + max rho) (E_D + Delta'R Delta)``, which bounds
||Delta||_H.

**3. Localisation.** By (2) ``|delta_j| <= reach_j + h_j eps + sum_l |kappa_l K_jl| e_l``, reach_j the largest
``|sum_{i in S} a_i K_ji|``. The sum is at most h_j times the knapsack ``max sum_l max(p_l, 1 - p_l) h_l e_l``
over ``e_l <= psi_l``, ``sum_l e_l <= E_D``, and at most ``spread_j E_D + K_jj max(p_j, 1 - p_j) min(psi_j,
E_D)``, spread_j the largest ``max(p_l, 1 - p_l) |K_jl|``, l != j (`expand`). These right sides presuppose a box
``|delta| <= rho``. Suppose that for a trial rho all are strictly below rho. Let ``F^t = (1 - t) (F - r.theta) +
t F_S``, 0 <= t < 1. Its minimiser exists and is unique, as ``F - r.theta`` has one with a positive definite
Hessian and F_S is convex and bounded below; it moves continuously from theta, and obeys (1) with t (c + r) for
c + r. Inside the box every right side holds for it with terms no larger. At a first exit some ``|delta_j|``
would equal rho_j and be below it: there is none. So the box and the energy bound hold for all t < 1, Delta
stays bounded, F_S has its minimiser, and they hold for it. Inside a proved box every right side is a bound, so
the box may be shrunk to them.

**4. Localisation by secants.** Inside a box let ``dbar_j = e_j / delta_j^2`` and ``Hbar = X' diag(dbar) X +
R``. Then ``Hbar >= H_lo``, the same with the least secants, and (1) reads ``Hbar Delta = -(c + r)``. So with
``l_j = ||x_j||_{H_lo^-1}`` and ``H_lo >= kappa H``: ``|delta_j| <= l_j (sum_{i in S} |a_i| l_i + eps /
sqrt(kappa))`` (`enclose`); a box is proved by this as in 3.

**5. The prediction.** By (2) ``dir x_t.Delta <= sum_{i in S} g_i + h_t eps + sum_j w_j e_j`` with ``g_i = -dir
a_i P_i`` and ``w_j = (-dir P_j kappa_j)_+`` at the worse end of kappa_j's range. With ``E_D <= C + sum_{i in S}
B_i``, for every tau >= 0

    dir x_t.Delta <= [sum of the k largest (g_i + tau B_i)_+] + tau C + h_t eps + sum_j (w_j - tau)_+ psi_j. (3)

While (3) is below |m_t| no set of k rows flips the prediction. What is computed for level L holds for all sets
of at most L rows, so levels are bisected first, then k within a level. (3) is convex in tau, with a minimum
where the maximising set's energy equals the sum of psi_j over w_j > tau; one step toward it is nearly all there
is to gain.

**6. Class weights.** With weights ``b_i w[y_i]`` relabelling row i replaces its term, and (1) holds with ``a_i
= (2 y_i - 1) b_i [w_0 sigma(z_i + delta_i) + w_1 sigma(-z_i - delta_i)]``: of known sign, of size at most
``load_i = b_i max(w)``, and within a box in a narrower range. All sums above take positive parts or sizes, so 2
to 4 hold with load_i for |a_i|, and (3) with the worse end of the range in g_i; the path in 3 is the same with
t a_i. Under ``"balanced"`` a relabelling changes every row's weight through the counts, which is not of this
form: nothing is certified.

**7. Rounding.** Bounds are float64 sums of terms of one sign, raised by 1e-11 or more of themselves. ``solve``
errs by at most `Rounding.form` relative to the H-norms, from the backward error of forming and factoring H
times the condition number; that covers the rounding of z in p and d too, d changing by no larger a ratio than
z's change. Norms are raised by it, kernel entries and P_j widened by it times both norms. eps takes in the
rounding of the gradient; m_t and the cut are widened by theirs. The rounding of P_j itself (float32 products)
is the caller's to bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.flips.certificate.gram import GramSums, NormSums, Sums, kernel_norms
from mlflow_relabel_audit.flips.certificate.localisation import (
    MAX_ROUNDING,
    LevelBound,
    RowState,
    SecantBoxes,
    bound_level,
)
from mlflow_relabel_audit.flips.certificate.prospect import Asked, Level, Prospects, RowTerms
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Kept, Rows

GRAM_ROWS = 4000
"""Up to this many rows the Gram form takes a few seconds and is the default."""
LEVELS = (*range(1, 21), 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
SECANT_FLOPS = 2e10
"""Work of one factorisation of H_lo above which section 4 is left out."""
UNIT = 2.0**-53
LEVEL_BYTES = 2**29
"""Of all levels together, at six vectors each and one to spare."""


@dataclass(frozen=True)
class Rounding:
    """Stated error terms of the float64 arithmetic.

    Attributes
    ----------
    form : float
        relative error of ``x' H^-1 y``, in units of ``||x||_{H^-1} ||y||_{H^-1}``.
    residual : float
        bound of ``||grad F(theta)||_{H^-1}``, rounding of the gradient included.
    margin : float
        rounding of x . theta, in units of ``||x||_{H^-1}``.
    """

    form: float
    residual: float
    margin: float

    @classmethod
    def of(cls, problem: Problem, rows: Rows, point: StationaryPoint, lengths: FloatArray) -> Rounding:
        """State the terms for one fitted objective and its rows' Euclidean norms."""
        kind, condition = point.curvature.kind, 10.0 * point.curvature.condition
        depth = min(rows.n, 8192 + rows.n // 64)  # longest chain of additions in a blocked sum
        trace = float(point.diagonal @ lengths**2 + problem.penalty.sum())
        penalty = float(problem.penalty[: rows.features_in].min(initial=np.inf))
        largest = float(lengths.max(initial=0.0))
        pulled = 4.0 * depth * UNIT * float(point.weight @ lengths)
        if kind == "primal":
            form = rows.p * (depth + rows.p) * UNIT * condition
            gradient = pulled * np.sqrt(condition * rows.p / trace)
        else:
            total = max(float(point.diagonal.sum()), 1e-300)
            ones = 4.0 * depth * UNIT * float(point.weight.sum())
            gradient = np.hypot((pulled + ones * largest) / np.sqrt(max(penalty, 1e-300)), ones / np.sqrt(total))
            # the dual factor's rounding is relative to ||x||_{R^-1}, at most its largest eigenvalue above H's
            eigenvalue = 1.0 + float(point.diagonal @ lengths**2) / max(penalty, 1e-300)
            dual = rows.n * (rows.n + rows.p) * UNIT * condition * eigenvalue
            form = dual if kind == "dual" else 1e-9 * np.sqrt(condition)
        margin = 4.0 * (rows.p + 3) * UNIT * float(np.linalg.norm(point.theta)) * np.sqrt(trace)
        residual = point.stationarity.residual * (1.0 + form) + gradient
        return cls(float(form), float(residual), float(margin))


def few_levels(levels: list[int], n: int) -> tuple[int, ...]:
    """As many of the levels as fit in `LEVEL_BYTES`, evenly spread, two at least.

    By the rows alone, whatever the memory limit: it may not change what is certified.
    """
    most = max(2, LEVEL_BYTES // (56 * max(n, 1)))
    if len(levels) <= most:
        return tuple(levels)
    return tuple(levels[place] for place in np.linspace(0, len(levels) - 1, most).round().astype(int))


class Certificate:
    """Level bounds of one fitted objective, ready to bound any prediction's flip set from below.

    They are worked out in this process, from a few vectors of length n, and then left where the rows are.

    Attributes
    ----------
    levels : tuple of Level
        of rising k; empty where nothing can be certified.
    """

    def __init__(
        self, rows: Rows, terms: Kept | None, levels: tuple[Level, ...], rounding: Rounding, cut: float
    ) -> None:
        self.levels = levels
        self._rows, self._terms, self._rounding, self._cut = rows, terms, rounding, cut

    @classmethod
    def prepare(
        cls,
        problem: Problem,
        rows: Rows,
        point: StationaryPoint,
        *,
        gram: bool | None = None,
        max_level: int = 128,
        row_norms: FloatArray | None = None,
    ) -> Certificate:
        """Bound the moves and the energy of all sets of at most k rows, for a ladder of levels k.

        Parameters
        ----------
        problem, rows, point
            the fitted objective.
        gram : bool, optional
            sum the kernels' own entries: tighter, in time n^2 p. By default up to 4,000 rows.
        max_level : int
            largest set considered; ``k_lower`` cannot exceed it by more than one.
        row_norms : ndarray of shape (n,), optional
            ``||x_i||_{H^-1}`` or upper bounds, where they are known.
        """
        lengths = np.sqrt(rows.square_norms())
        terms = Rounding.of(problem, rows, point, lengths)
        norms = point.curvature.row_norms(rows) if row_norms is None else row_norms
        norms = norms * (1.0 + terms.form)
        weights = problem.class_weight
        load = point.weight if weights.fixed[0] == weights.fixed[1] else rows.base_weight * max(weights.fixed)
        state = RowState(
            margin=point.margin,
            probability=point.probability,
            weight=point.weight,
            load=load,
            base=rows.base_weight,
            by_class=(weights.fixed[0], weights.fixed[1]),
            norm=norms,
            residual=terms.residual,
        )
        sound = np.isfinite(norms).all() and terms.form < MAX_ROUNDING and terms.residual < MAX_ROUNDING
        sizes = few_levels([k for k in LEVELS if k <= min(max_level, rows.n)], rows.n)
        if weights.balanced or not sound or not sizes:
            return cls(rows, None, (), terms, problem.cut)
        sign = 2.0 * rows.y - 1.0
        kernel = kernel_norms(rows, point.curvature, problem.penalty, norms, terms.form)
        sums: Sums
        if rows.n <= GRAM_ROWS if gram is None else gram:
            sums = GramSums(
                rows, point.curvature, problem.penalty, kernel, load, sign, state.extreme, sizes, terms.form
            )
        else:
            sums = NormSums(kernel, load, sign)
        boxes = None
        dense = 0.0 if rows.sparse else 3.0 * rows.n * rows.p**2
        if point.curvature.kind == "primal" and dense + rows.p**3 <= SECANT_FLOPS:
            boxes = SecantBoxes(rows, point, problem.penalty, state, terms.form)
        levels = tuple(Level.keep(rows, bound) for bound in level_bounds(sums, state, sizes, boxes))
        return cls(rows, RowTerms.keep(rows, state, lengths), levels, terms, problem.cut)

    def lower_bounds(
        self, margin: FloatArray, response: Any, response_error: FloatArray, norms: FloatArray
    ) -> IntArray:
        """Prove, for each of B predictions, how many labels it takes to flip it at least.

        Parameters
        ----------
        margin : ndarray of shape (B,)
            ``x_t . theta - cut``, float64.
        response : Kept, or ndarray of shape (n, B)
            ``x_i . H^-1 x_t`` turned toward the flip: times -1 where the margin is positive (as the estimate pass
            leaves it). float32 or float64. Kept where the rows are, each block's has shape (rows, B).
        response_error : ndarray of shape (B,)
            the response of row i errs by at most this times ``||x_i||``, the Euclidean norm.
        norms : ndarray of shape (B,)
            ``||x_t||_{H^-1}``, that is the root of ``x_t . u_t``.

        Returns
        -------
        ndarray of shape (B,), int64
            no set of fewer than ``k_lower`` rows flips the prediction; 1 where nothing can be certified.
        """
        if not self.levels or not len(margin):
            return np.ones(len(margin), dtype=np.int64)
        goal = np.abs(margin)
        return 1 + self.prospects(response, response_error, norms).certified(goal - self.slack(goal, norms))

    def prospects(self, response: Any, response_error: FloatArray, norms: FloatArray) -> Prospects:
        """The predictions of `lower_bounds` against the levels."""
        assert self._terms is not None
        form = self._rounding.form * (1.0 + self._rounding.form) * norms
        return Prospects(self._rows, self._terms, self.levels, response, Asked(response_error, form))

    def slack(self, goal: FloatArray, norms: FloatArray) -> FloatArray:
        """Parts of the bound that do not depend on the set: residual and rounding of the margin; shape (B,)."""
        terms = self._rounding
        wide = norms * (1.0 + terms.form)
        return np.asarray(wide * (terms.residual + terms.margin) + 8.0 * UNIT * (abs(self._cut) + goal))


def level_bounds(sums: Sums, state: RowState, sizes: Sequence[int], boxes: SecantBoxes | None) -> Iterator[LevelBound]:
    """Yield the bounds for rising sizes of the sets, up to the first that no box holds."""
    spread = sums.spread(state.extreme)
    warm = None
    for k in sizes:
        at_level = sums.at(k)
        found = bound_level(at_level, spread, state, k, boxes, warm)
        if found is None:
            return
        yield found
        warm = found.rho / np.maximum(at_level.reach, 1e-300)
