"""Cholesky factor of the p x p Hessian."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
from scipy.linalg import blas

from mlflow_relabel_audit.curvature.base import SAFE_CONDITION, cholesky_factor
from mlflow_relabel_audit.curvature.sparse import InverseEntries, inverse_forms, invert
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

MAX_INVERTED = 1024
"""Order up to which H is inverted beside its factor."""


class PrimalCurvature:
    """``H = L L'`` with L lower triangular, shape (p, p)."""

    kind: ClassVar[str] = "primal"
    sparse_quick: ClassVar[bool] = False

    def __init__(self, lower: FloatArray, condition: float) -> None:
        self.lower = np.asfortranarray(lower)
        self.condition = condition
        self.p = self.order = lower.shape[0]

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
        """``H^-1``; products with it run in numpy's BLAS like all others, so two thread pools never contend."""
        return invert(self.lower.copy(order="F"))

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        columns = right.reshape(self.p, -1)
        if self.p <= MAX_INVERTED and self.condition <= SAFE_CONDITION:
            return np.asarray(self._inverse @ columns).reshape(right.shape)
        return self._substituted(columns).reshape(right.shape)

    def _substituted(self, columns: FloatArray) -> FloatArray:
        """``H^-1 columns`` by the factor itself."""
        half = blas.dtrsm(1.0, self.lower, columns, lower=1)
        return np.asarray(blas.dtrsm(1.0, self.lower, half, lower=1, trans_a=1, overwrite_b=1))

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> PrimalCurvature:
        """Factor H with the weights at ``index`` moved by ``change``: where they are few, only they are touched."""
        if 2 * len(index) > rows.n:
            return PrimalReference.factor(rows, diagonal, penalty)
        hessian = self.lower @ self.lower.T
        for sign, move in ((1.0, np.add), (-1.0, np.subtract)):  # what is added, and what is taken away
            moved = np.flatnonzero(sign * change > 0)
            move(hessian, rows.part_gram(index[moved], np.abs(change[moved])), out=hessian)
        return PrimalReference(*cholesky_factor(hessian))

    def row_norms(self, rows: Rows) -> FloatArray:
        """``||x_i||_{H^-1}`` of every row, shape (n,)."""
        if rows.sparse:  # a sparse row touches only the square of its few entries
            entries = InverseEntries(np.arange(self.p), self._inverse, np.zeros(0, dtype=np.int64), np.zeros(0))
            out = rows.collect(inverse_forms, entries, out=np.empty(rows.n))
        else:
            out = rows.collect(_triangular_form, self.lower, out=np.empty(rows.n))
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


class PrimalReference(PrimalCurvature):
    """The curvature of one column on its way, which solves too few right sides to be worth an inverse."""

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        return self._substituted(right.reshape(self.p, -1)).reshape(right.shape)


def _triangular_form(block: RowBlock, out: FloatArray, lower: FloatArray) -> None:
    for within, piece in block.pieces():
        half = blas.dtrsm(1.0, lower, piece.whole().T, lower=1, overwrite_b=1)  # turned, so in columns: no copy
        out[within] = np.einsum("ij,ij->j", half, half)
