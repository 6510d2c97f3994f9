"""Cholesky factor of an n x n matrix, for more features than rows.

With ``E = D^1/2``, ``K = X_f R_f^-1 X_f'`` over the penalised columns and ``B = I + E K E = L L'``, the matrix
inversion lemma and the Schur complement of an unpenalised intercept give, for a right side (f, g),

    t = B^-1 E X_f R_f^-1 f,   e = E 1,   b = (g - e't) / (e' B^-1 e),   w = R_f^-1 (f - X_f' E (t + b B^-1 e)).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.linalg import cho_solve, lapack

from mlflow_relabel_audit.curvature.base import cholesky_factor, singular, solved_row_norms
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

DROWNED = 1e-6
"""A row's share ``d_i h_i^2`` of the identity above: below, its digits are rounding."""


class DualCurvature:
    """``I + E K E = L L'`` with L lower triangular, shape (n, n), and the rows it came from."""

    kind: ClassVar[str] = "dual"
    sparse_quick: ClassVar[bool] = False

    def __init__(
        self, lower: FloatArray, condition: float, rows: Rows, diagonal: FloatArray, penalty: FloatArray
    ) -> None:
        self.lower = lower
        self.condition = condition
        self.p = rows.p
        self.order = len(lower)
        self._rows = rows
        self._root = np.sqrt(diagonal)
        self._penalty = penalty
        # an unpenalised intercept is bordered on; its row of R^-1 is 0 so that products skip it
        self._bordered = bool(rows.intercept and penalty[-1] == 0.0)
        self._inverse_penalty = np.divide(1.0, penalty, out=np.zeros_like(penalty), where=penalty > 0)
        self._ones = self._inner(self._root) if self._bordered else self._root
        self._schur = float(self._root @ self._ones)
        if self._bordered and not self._schur > 0.0:
            raise singular("no row carries curvature, so nothing holds the intercept")

    @classmethod
    def factor(cls, rows: Rows, diagonal: FloatArray, penalty: FloatArray) -> DualCurvature:
        """Form and factor the n x n matrix, for d of shape (n,) and the diagonal of R of shape (p,).

        Raises
        ------
        SingularHessianError
            A feature is not penalised (the dual needs R to be invertible there), or rounding broke the factor.
        """
        if np.any(penalty[: rows.features_in] <= 0):
            raise singular("more features than rows and no penalty")
        root = np.sqrt(diagonal)
        inverse = 1.0 / penalty[: rows.features_in]
        kernel = np.empty((rows.n, rows.n))
        everything = rows.take(np.arange(rows.n))[:, : rows.features_in]
        scaled = (everything.multiply(inverse) if rows.sparse else everything * inverse).T
        rows.collect(_against, scaled, out=kernel)
        if rows.intercept and penalty[-1] > 0:
            kernel += 1.0 / penalty[-1]
        kernel *= root[:, None]
        kernel *= root
        kernel[np.diag_indices(rows.n)] += 1.0
        lower, condition = cholesky_factor(kernel)
        return cls(lower, condition, rows, diagonal, penalty)

    def _inner(self, right: FloatArray) -> FloatArray:
        return np.asarray(cho_solve((self.lower, True), right, check_finite=False))

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        columns = right.reshape(self.p, -1)
        scaled = self._inverse_penalty[:, None] * columns
        inner = self._inner(self._root[:, None] * self._rows.margins(scaled))
        shift = np.zeros(columns.shape[1])
        if self._bordered:
            shift = (columns[-1] - self._root @ inner) / self._schur
            inner += self._ones[:, None] * shift
        out = self._inverse_penalty[:, None] * (columns - self._rows.pull(self._root[:, None] * inner))
        if self._bordered:
            out[-1] = shift
        return np.asarray(out.reshape(right.shape))

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> DualCurvature:
        """Factor anew with other weights; nothing of the present factor helps."""
        return DualCurvature.factor(rows, diagonal, penalty)

    def row_norms(self, rows: Rows) -> FloatArray:
        """``||x_i||_{H^-1}`` of every row, shape (n,).

        For the rows that H is made of, ``E X H^-1 X' E = I - B^-1``, with the free intercept bordered on; rows whose
        part of it would drown in rounding are solved for.
        """
        if rows.store is not self._rows.store:
            return solved_row_norms(self, rows, np.arange(rows.n))
        inverse, _ = lapack.dtrtri(self.lower, lower=1)
        carried = 1.0 - np.einsum("ij,ij->j", inverse, inverse)
        if self._bordered:
            carried += self._ones**2 / self._schur
        clear = carried > DROWNED
        out = np.empty(rows.n)
        out[clear] = np.sqrt(carried[clear]) / self._root[clear]
        faint = np.flatnonzero(~clear)
        out[faint] = solved_row_norms(self, rows, faint)
        return out

    def arrays(self) -> dict[str, FloatArray]:
        """The packed lower triangle, row by row, shape (n (n + 1) / 2,), and d."""
        return {"packed": self.lower[np.tril_indices(len(self.lower))], "diagonal": self._root**2}

    @classmethod
    def restore(
        cls, packed: FloatArray, diagonal: FloatArray, condition: float, rows: Rows, penalty: FloatArray
    ) -> DualCurvature:
        """Rebuild from `arrays` and the rows."""
        lower = np.zeros((rows.n, rows.n))
        lower[np.tril_indices(rows.n)] = packed
        return cls(lower, condition, rows, diagonal, penalty)


def _against(block: RowBlock, out: FloatArray, others: Any) -> None:
    """Products of a block's rows with all rows, which are few where the dual form is chosen."""
    for within, piece in block.pieces():
        product = piece.features @ others
        out[within] = product.toarray() if piece.sparse else product
