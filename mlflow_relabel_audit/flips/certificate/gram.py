"""What relabelling at most k rows can do to each row, summed from the kernels for the certificate.

With relabelling coefficients of sizes ``|a_i| <= load_i``, ``c_S = sum_{i in S} a_i x_i`` and ``M = H^-1/2 R
H^-1/2``, the certificate (see `flips.certificate.bound`) needs bounds, for every training row j and for all sets S of
at most k rows, of

    reach_j     |x_j . H^-1 c_S|
    ahead_j     sum over i in S, i != j, of (a_i K'_ji)_+;     behind_j  the same of (-a_i K'_ji)_+
    pair_j      a share of j with c_S' H^-1 X'DX H^-1 c_S <= sum_{j in S} pair_j
    own_j       the positive and the negative part of a_j K'_jj

with ``K = X H^-1 X'``, ``K^R = X H^-1 R H^-1 X'``, ``K' = K - 2 K^R``, ``K^D = K - K^R``. `NormSums` bounds
them from norms of single rows by Cauchy-Schwarz; `GramSums` streams the n x n kernels once, in blocks of rows,
and keeps sums of the largest entries of each row. Both add the rounding of ``solve``, at most ``rounding``
times both rows' norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import solve_triangular

from mlflow_relabel_audit.curvature import Curvature
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

BLOCK_BYTES = 2**24
EXACT_FLOPS = 2e11
"""Work above which the norms of ``K^D`` and ``K'`` are not worth their time; the row norms bound them."""


@dataclass(frozen=True)
class SetSums:
    """Bounds over all sets of at most k rows; every array has shape (n,)."""

    reach: FloatArray
    ahead: FloatArray
    behind: FloatArray
    pair: FloatArray
    own_ahead: FloatArray
    own_behind: FloatArray


class Sums(Protocol):
    """Set sums at the levels a form can give."""

    def at(self, k: int) -> SetSums:
        """Bounds for sets of at most k rows."""
        ...

    def spread(self, curvature_bound: FloatArray) -> FloatArray:
        """``max_{l != j} curvature_bound_l |K_jl|`` of every row j, shape (n,)."""
        ...


@dataclass(frozen=True)
class KernelNorms:
    """Norms of the rows that bound the kernels' entries by products, shape (n,) each, upper bounds.

    Attributes
    ----------
    full : ndarray
        ``||x_i||_{H^-1}``: ``|K_ij| <= full_i full_j``.
    data : ndarray
        root of ``K^D_ii``.
    turned : ndarray
        root of ``x_i' H^-1/2 |I - 2M| H^-1/2 x_i``: ``|K'_ij| <= turned_i turned_j``.
    ahead, behind : ndarray
        positive and negative part of ``K'_ii``.
    """

    full: FloatArray
    data: FloatArray
    turned: FloatArray
    ahead: FloatArray
    behind: FloatArray


def kernel_norms(
    rows: Rows, curvature: Curvature, penalty: FloatArray, full: FloatArray, rounding: float
) -> KernelNorms:
    """Compute the norms in the joint eigenbasis of H and R, or bound them by ``full`` where that would take long.

    With ``V'HV = I`` and ``V'RV = diag(mu)``, ``x' H^-1/2 f(M) H^-1/2 x = sum_k f(mu_k) (V'x)_k^2``. As
    ``0 <= M <= I``, ``full`` bounds the other norms.
    """
    square = full**2
    lower = getattr(curvature, "lower", None)
    if curvature.kind != "primal" or lower is None or 30.0 * rows.p**3 + 2.0 * rows.n * rows.p**2 > EXACT_FLOPS:
        return KernelNorms(full, full, full, square, square)
    half = solve_triangular(lower, np.diag(np.sqrt(penalty)), lower=True, check_finite=False)
    mu, turn = np.linalg.eigh(half @ half.T)
    basis = solve_triangular(lower, turn, lower=True, trans="T", check_finite=False)
    functions = np.stack([1.0 - mu, np.abs(1.0 - 2.0 * mu), 1.0 - 2.0 * mu], axis=1)
    forms = rows.forms(basis, functions)
    slack = 8.0 * rounding * square
    data, turned, centre = forms.T
    return KernelNorms(
        full=full,
        data=np.sqrt(np.clip(data + slack, 0.0, square)),
        turned=np.sqrt(np.clip(turned + slack, 0.0, square)),
        ahead=np.minimum(np.maximum(centre, 0.0) + slack, square),
        behind=np.minimum(np.maximum(-centre, 0.0) + slack, square),
    )


class NormSums:
    """Set sums from row norms, at any level."""

    def __init__(self, norms: KernelNorms, load: FloatArray, sign: FloatArray) -> None:
        self.norms = norms
        self._load = load
        self._sign = sign
        self._full, self._data, self._turned = (
            np.cumsum(np.sort(load * norm)[::-1]) for norm in (norms.full, norms.data, norms.turned)
        )

    def at(self, k: int) -> SetSums:
        """Bounds for sets of at most k rows: each kernel entry by the product of its rows' norms."""
        norms, load = self.norms, self._load
        around = norms.turned * self._turned[k - 1]
        own_ahead = load * np.where(self._sign > 0, norms.ahead, norms.behind)
        own_behind = load * np.where(self._sign > 0, norms.behind, norms.ahead)
        return SetSums(
            reach=norms.full * self._full[k - 1],
            ahead=around,
            behind=around,
            pair=load * norms.data * self._data[k - 1],
            own_ahead=own_ahead,
            own_behind=own_behind,
        )

    def spread(self, curvature_bound: FloatArray) -> FloatArray:
        """``full_j`` times the largest ``curvature_bound_l full_l``."""
        return np.asarray(self.norms.full * (curvature_bound * self.norms.full).max(initial=0.0))


class GramSums:
    """Set sums from the kernels themselves, at the levels they were summed for."""

    def __init__(
        self,
        rows: Rows,
        curvature: Curvature,
        penalty: FloatArray,
        norms: KernelNorms,
        load: FloatArray,
        sign: FloatArray,
        curvature_bound: FloatArray,
        levels: tuple[int, ...],
        rounding: float,
    ) -> None:
        self._levels = levels
        n, depth = rows.n, levels[-1]
        signed = sign * load
        order = np.asarray(levels) - 1
        self._reach, self._ahead, self._behind, self._pair = (np.empty((len(levels), n)) for _ in range(4))
        self._own = np.empty(n)
        self._spread = np.empty(n)
        error = 8.0 * rounding * norms.full
        largest = np.cumsum(np.sort(load * norms.full)[::-1])[order]
        length = max(1, min(_block_length(rows.p), BLOCK_BYTES // (8 * n)))
        for start in range(0, n, length):
            index = np.arange(start, min(start + length, n))
            here, local = index, np.arange(len(index))
            solved = curvature.solve(rows.columns(index))
            kernel = np.ascontiguousarray(rows.margins(solved).T)
            penalised = np.ascontiguousarray(rows.margins(curvature.solve(penalty[:, None] * solved)).T)
            around = np.abs(kernel)
            around[local, here] = 0.0
            around *= curvature_bound
            self._spread[here] = around.max(axis=1)
            up, down = _tails(kernel * signed, depth)
            self._reach[:, here] = np.maximum(up, down)[:, order].T
            kernel -= penalised
            data = kernel * signed
            data *= signed[here, None]
            diagonal = data[local, here].copy()
            data[local, here] = 0.0
            top, _ = _tails(data, depth)
            top = np.hstack([np.zeros((len(index), 1)), top])
            self._pair[:, here] = diagonal + top[:, order].T
            kernel -= penalised
            kernel *= signed
            self._own[here] = kernel[local, here]
            kernel[local, here] = 0.0
            up, down = _tails(kernel, depth)
            self._ahead[:, here], self._behind[:, here] = up[:, order].T, down[:, order].T
        self._reach += error * largest[:, None]
        self._ahead += error * largest[:, None]
        self._behind += error * largest[:, None]
        self._pair += error * load * largest[:, None]
        self._spread += error * (curvature_bound * norms.full).max(initial=0.0)
        self._own_error = error * load * norms.full

    def at(self, k: int) -> SetSums:
        """Bounds for sets of at most k rows, k one of the levels it was made with."""
        level = self._levels.index(k)
        return SetSums(
            reach=self._reach[level],
            ahead=self._ahead[level],
            behind=self._behind[level],
            pair=self._pair[level],
            own_ahead=np.maximum(self._own, 0.0) + self._own_error,
            own_behind=np.maximum(-self._own, 0.0) + self._own_error,
        )

    def spread(self, curvature_bound: FloatArray) -> FloatArray:
        """As summed, for the curvature bound given to the constructor."""
        del curvature_bound
        return self._spread


def _block_length(p: int) -> int:
    return int(np.clip(BLOCK_BYTES // (8 * p), 32, 1024))


def _tails(values: FloatArray, depth: int) -> tuple[FloatArray, FloatArray]:
    """Sums of the 1, 2 ... ``depth`` largest positive parts of each row, and of its negative parts."""
    n = values.shape[1]
    depth = min(depth, n)
    if n > 2 * depth:
        values = np.partition(values, (depth - 1, n - depth), axis=1)
    high, low = np.sort(values[:, n - depth :], axis=1)[:, ::-1], np.sort(values[:, :depth], axis=1)
    if n <= 2 * depth:
        ordered = np.sort(values, axis=1)
        high, low = ordered[:, ::-1][:, :depth], ordered[:, :depth]
    return np.cumsum(np.maximum(high, 0.0), axis=1), np.cumsum(np.maximum(-low, 0.0), axis=1)
