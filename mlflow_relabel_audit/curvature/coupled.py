"""The curvature under a softmax: ``H = sum_i x_i x_i' (x) W_i + R``, with ``W_i = diag(c_i) - c_i c_i' / sum(c_i)``.

Adding the same number to every output changes nothing, so along a coordinate without a penalty H has a null
direction, the same coefficient in every output. H leaves the space of those vectors and its complement alone, and
gradients and the differences of outputs lie in the complement: a term on the null directions alone makes H
invertible and changes nothing that is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_relabel_audit.curvature.base import cholesky_factor
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.primal import PrimalCurvature
from mlflow_relabel_audit.likelihood import Coupled, FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows, steps


class CoupledCurvature(PrimalCurvature):
    """``H = L L'`` over the coefficients of all outputs, shape (p, p)."""

    @classmethod
    def factor(cls, rows: Rows, diagonal: FloatArray, penalty: FloatArray) -> CoupledCurvature:
        """Form and factor H, for c of shape (n M,) and the diagonal of R of shape (p,).

        Raises
        ------
        SingularHessianError
            H is singular to working precision.
        """
        size = rows.coordinates
        hessian = np.zeros((rows.p, rows.p))
        for a, b, weight in _blocks(diagonal, rows.outputs):
            block = rows.gram(np.abs(weight))
            hessian[a * size : (a + 1) * size, b * size : (b + 1) * size] = block if a == b else -block
            hessian[b * size : (b + 1) * size, a * size : (a + 1) * size] = block if a == b else -block
        hessian[np.diag_indices(rows.p)] += penalty
        free = np.flatnonzero(penalty == 0)
        for j in free[free < size]:
            same = np.arange(j, rows.p, size)
            hessian[np.ix_(same, same)] += float(hessian[same, same].mean())
        return cls(*cholesky_factor(hessian))

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> CoupledCurvature:
        """Factor H with the weights at ``index`` moved by ``change``: only those rows are touched."""
        size, outputs = rows.coordinates, rows.outputs
        if 2 * len(index) > rows.n * outputs:
            return CoupledReference.factor(rows, diagonal, penalty)
        before = diagonal.copy()
        before[index] -= change
        touched = np.unique(index // outputs)
        cells = (touched[:, None] * outputs + np.arange(outputs)).ravel()
        hessian = self.lower @ self.lower.T
        old = {(a, b): weight for a, b, weight in _blocks(before[cells], outputs)}
        for a, b, weight in _blocks(diagonal[cells], outputs):
            moved = weight - old[a, b]
            for sign in (1.0, -1.0):
                some = np.flatnonzero(sign * moved > 0)
                block = sign * rows.part_gram(touched[some], np.abs(moved[some]))
                hessian[a * size : (a + 1) * size, b * size : (b + 1) * size] += block
                if a != b:
                    hessian[b * size : (b + 1) * size, a * size : (a + 1) * size] += block
        return CoupledReference(*cholesky_factor(hessian))

    def row_norms(self, rows: Rows) -> FloatArray:
        """Largest ``||x_i (x) (e_a - e_b)||_{H^-1}`` of every row, repeated for its outputs, shape (n M,).

        That is how far a unit of energy can move one output of the row against another.
        """
        size, outputs = rows.coordinates, rows.outputs
        inverse = self.solve(np.eye(rows.p)).reshape(outputs, size, outputs, size)
        square = np.zeros(rows.n)
        for a in range(outputs):
            for b in range(a):
                pair = inverse[a, :, a] + inverse[b, :, b] - inverse[a, :, b] - inverse[b, :, a]
                np.maximum(square, _quadratic(rows, pair), out=square)
        return np.repeat(np.sqrt(square), outputs)


class CoupledReference(CoupledCurvature):
    """The curvature of one column on its way, which solves too few right sides to be worth an inverse."""

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        return self._substituted(right.reshape(self.p, -1)).reshape(right.shape)


class CoupledConjugate(ConjugateCurvature):
    """H by its products with the rows of all outputs."""

    def __init__(self, rows: Rows, diagonal: FloatArray, penalty: FloatArray, condition: float = np.nan) -> None:
        self._likelihood = Coupled(rows.outputs)
        self._free = np.flatnonzero(penalty[: rows.coordinates] == 0)
        super().__init__(rows, diagonal, penalty, condition)
        self._null = np.array([self._jacobi[j :: rows.coordinates].mean() for j in self._free])

    def _column_squares(self) -> FloatArray:
        """Diagonal of H without R, shape (p,)."""
        rows, outputs = self._rows, self._rows.outputs
        single, c = rows.of_one_output(), self._diagonal.reshape(-1, outputs)
        own = c * (1.0 - _shares(c))
        return np.concatenate([single.column_squares(own[:, m]) for m in range(outputs)])

    def product(self, right: FloatArray) -> FloatArray:
        """``H right``, with a term on the null directions, shape (p, B)."""
        weighted = self._likelihood.product(self._diagonal[:, None], self._rows.margins(right))
        out = self._rows.pull(weighted) + self._penalty[:, None] * right
        if self._free.size:
            by_output = right.reshape(self._rows.outputs, self._rows.coordinates, -1)
            same = self._null[:, None] * by_output[:, self._free].sum(axis=0)
            out.reshape(by_output.shape)[:, self._free] += same
        return np.asarray(out)

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> CoupledConjugate:
        """Products with other weights; nothing of the present state helps."""
        return CoupledConjugate(rows, diagonal, penalty)

    def row_norms(self, rows: Rows) -> FloatArray:
        """Upper bounds of the largest ``||x_i (x) (e_a - e_b)||_{H^-1}`` of every row, shape (n M,).

        With every coordinate penalised the square is at most ``2 ||x_i||^2 / min R``. A free intercept is centred: for
        ``v = e_a - e_b``, ``A = sum_i W_i`` and ``G = sum_i f_i (W_i A^+ v)'`` over the features f_i, completing the
        square in the intercepts gives ``v' A^+ v + ||f_i v' - G||_F^2 / min R``.
        """
        outputs, size = rows.outputs, rows.coordinates
        by_output = self._penalty.reshape(outputs, size)
        if (by_output > 0).all():
            return np.repeat(np.sqrt(2.0 * rows.square_norms() / by_output.min()), outputs)
        if (by_output[:, : rows.features_in] == 0).any():
            return np.full(rows.n * outputs, np.inf)
        single = rows.of_one_output()
        c = self._diagonal.reshape(-1, outputs)
        total = self._likelihood.product(self._diagonal[:, None], np.tile(np.eye(outputs), (rows.n, 1)))
        inverse = np.linalg.pinv(total.reshape(rows.n, outputs, outputs).sum(axis=0), hermitian=True)
        norms = rows.square_norms() - 1.0
        square = np.zeros(rows.n)
        for a in range(outputs):
            for b in range(a):
                pair = np.zeros(outputs)
                pair[a], pair[b] = 1.0, -1.0
                weighed = self._likelihood.product(c.ravel(), np.tile(inverse @ pair, rows.n))
                pulled = single.pull(weighed.reshape(-1, outputs))[:-1]
                along = single.margins(np.append(pulled @ pair, 0.0))
                centred = 2.0 * norms - 2.0 * along + float(np.sum(pulled**2))
                found = pair @ inverse @ pair + np.maximum(centred, 0.0) / by_output[:, :-1].min()
                np.maximum(square, found, out=square)
        return np.repeat(np.sqrt(square), outputs)


def _blocks(diagonal: FloatArray, outputs: int) -> Iterator[tuple[int, int, FloatArray]]:
    """Weights of the rows in every block (a, b), b <= a, of H."""
    c = diagonal.reshape(-1, outputs)
    share = _shares(c)
    for a in range(outputs):
        for b in range(a):
            yield a, b, -c[:, a] * share[:, b]
        yield a, a, c[:, a] * (1.0 - share[:, a])


def _quadratic(rows: Rows, matrix: FloatArray) -> FloatArray:
    """``x_i' matrix x_i`` of every row, shape (n,)."""
    return np.asarray(rows.collect(steps.quadratic, matrix, out=np.empty(rows.n)))


def _shares(c: FloatArray) -> FloatArray:
    """Each output's share of its row's weight, 0 in a row without any, shape (n, M)."""
    total = c.sum(axis=1, keepdims=True)
    return np.divide(c, total, out=np.zeros_like(c), where=total > 0)
