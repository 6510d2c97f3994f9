"""Cholesky factor of the p x p Hessian."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.linalg import blas, lapack, solve_triangular

from mlflow_relabel_audit.curvature.base import cholesky_factor
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

MAX_INVERTED = 1024
"""Order up to which H is inverted in any case; beyond, where row norms have needed the inverse."""
SAFE_CONDITION = 1e8
"""Condition up to which products with the inverse stand for solves."""
MIRROR = 512
FEW = 16
"""A right side is sparse where at most one in so many of its entries is not zero."""


class PrimalCurvature:
    """``H = L L'`` with L lower triangular, shape (p, p)."""

    kind: ClassVar[str] = "primal"

    def __init__(self, lower: FloatArray, condition: float) -> None:
        self.lower = np.asfortranarray(lower)
        self.condition = condition
        self.p = lower.shape[0]

    @classmethod
    def factor(cls, rows: Rows, diagonal: FloatArray, penalty: FloatArray) -> PrimalCurvature:
        """Form and factor H, for d of shape (n,) and the diagonal of R of shape (p,).

        Raises
        ------
        SingularHessianError
            H is singular to working precision.
        """
        hessian = rows.gram(diagonal)
        hessian[np.diag_indices(rows.p)] += penalty
        return cls(*cholesky_factor(hessian))

    @functools.cached_property
    def _inverse(self) -> FloatArray:
        """``H^-1``; products with it run in numpy's BLAS like all others, so two thread pools never contend.

        Nor do they for a small one's inversion; a large one's needs no further copy.
        """
        if self.p <= MAX_INVERTED:
            half = np.linalg.inv(self.lower)
            return np.asarray(half.T @ half)
        inverse, _ = lapack.dpotri(self.lower, lower=1)
        for start in range(0, self.p, MIRROR):
            stop = min(start + MIRROR, self.p)
            corner = np.tril(inverse[start:stop, start:stop])
            inverse[start:stop, start:stop] = corner + np.tril(corner, -1).T
            inverse[start:stop, stop:] = inverse[stop:, start:stop].T
        return np.asarray(inverse.T)

    @property
    def sparse_quick(self) -> bool:
        """Whether right sides with few entries other than zero only touch as many rows of the inverse."""
        return self.p > MAX_INVERTED and self._inverted

    @property
    def _inverted(self) -> bool:
        at_hand = self.p <= MAX_INVERTED or "_inverse" in self.__dict__
        return at_hand and self.condition <= SAFE_CONDITION

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        columns = right.reshape(self.p, -1)
        if self.sparse_quick and FEW * np.count_nonzero(columns) <= columns.size:
            return np.asarray((sp.csr_matrix(columns.T) @ self._inverse).T).reshape(right.shape)
        if self._inverted:
            return np.asarray(self._inverse @ columns).reshape(right.shape)
        half = blas.dtrsm(1.0, self.lower, columns, lower=1)
        whole = blas.dtrsm(1.0, self.lower, half, lower=1, trans_a=1, overwrite_b=1)
        return np.asarray(whole).reshape(right.shape)

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> PrimalCurvature:
        """Factor H with the weights at ``index`` moved by ``change``: only those rows are touched."""
        hessian = self.lower @ self.lower.T
        for sign in (1.0, -1.0):  # symmetric products of what is added and of what is taken away
            moved = np.flatnonzero(sign * change > 0)
            hessian += sign * rows.part_gram(index[moved], np.abs(change[moved]))
        return PrimalCurvature(*cholesky_factor(hessian))

    def row_norms(self, rows: Rows) -> FloatArray:
        """``||x_i||_{H^-1}`` of every row, shape (n,)."""
        out = np.empty(rows.n)
        if rows.sparse:  # by the explicit inverse: a sparse row touches only the square of its few entries
            rows.collect(_inverse_form, self._inverse, out=out)
        else:
            rows.collect(_triangular_form, self.lower, out=out)
        return np.sqrt(np.maximum(out, 0.0))

    def arrays(self) -> dict[str, FloatArray]:
        """The packed lower triangle, row by row, shape (p (p + 1) / 2,)."""
        return {"packed": self.lower[np.tril_indices(self.p)]}

    @classmethod
    def restore(cls, packed: FloatArray, p: int, condition: float) -> PrimalCurvature:
        """Rebuild from `arrays`."""
        lower = np.zeros((p, p))
        lower[np.tril_indices(p)] = packed
        return cls(lower, condition)


def _triangular_form(block: RowBlock, out: FloatArray, lower: FloatArray) -> None:
    for within, piece in block.pieces():
        half = solve_triangular(lower, piece.whole().T, lower=True, check_finite=False)
        out[within] = np.einsum("ij,ij->j", half, half)


def _inverse_form(block: RowBlock, out: FloatArray, inverse: FloatArray) -> None:
    for within, piece in block.pieces():
        part = piece.whole()
        out[within] = np.asarray(part.multiply(part @ inverse).sum(axis=1)).ravel()
