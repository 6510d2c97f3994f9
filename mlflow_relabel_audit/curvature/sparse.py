"""The p x p Hessian of sparse rows: columns that never meet are eliminated, the rest is inverted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.linalg import blas, lapack
from scipy.sparse.linalg import LinearOperator, onenormest

from mlflow_relabel_audit.curvature.base import (
    MAX_CONDITION,
    SAFE_CONDITION,
    cholesky_factor,
    singular,
    solved_row_norms,
)
from mlflow_relabel_audit.curvature.elimination import Elimination
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

MIRROR = 128
FEW = 16
"""A right side is sparse where at most one in so many of its entries is not zero."""
PAIRS = 2**20


class SparsePrimalCurvature:
    """``H`` after elimination (see `elimination`): one dense m x m matrix is held, the inverse of what is left of H.

    Where H is so badly conditioned that products with an inverse would not do, it is the lower factor instead.
    """

    kind: ClassVar[str] = "primal"

    def __init__(self, elimination: Elimination, dense: FloatArray, inverted: bool, condition: float) -> None:
        self.condition = condition
        self.p, self.order = len(elimination.order), elimination.left
        self._elimination = elimination
        self._dense = dense
        self._inverted = inverted

    @classmethod
    def factor(cls, rows: Rows, diagonal: FloatArray, penalty: FloatArray) -> SparsePrimalCurvature:
        """Form H, eliminate and factor, for d of shape (n,) and the diagonal of R of shape (p,).

        Raises
        ------
        SingularHessianError
            H is singular to working precision.
        """
        hessian = rows.sparse_gram(diagonal) + sp.diags(penalty, format="csr")
        norm = float(np.abs(hessian).sum(axis=0).max())
        elimination, rest = Elimination.of(hessian)
        del hessian
        dense, condition = cholesky_factor(rest.toarray())
        inverted = condition <= SAFE_CONDITION
        curvature = cls(elimination, invert(dense) if inverted else np.asfortranarray(dense), inverted, condition)
        solver = LinearOperator((rows.p, rows.p), matvec=curvature.solve, rmatvec=curvature.solve, dtype=np.float64)
        curvature.condition = max(condition, norm * float(onenormest(solver, t=1)))
        if not curvature.condition < MAX_CONDITION:
            raise singular(f"condition number {curvature.condition:.1e}")
        return curvature

    @property
    def sparse_quick(self) -> bool:
        """Whether right sides with few entries other than zero only touch as many rows of the inverse."""
        return self._inverted

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        columns = right.reshape(self.p, -1)
        if not self._inverted or FEW * np.count_nonzero(columns) > columns.size:
            forwarded = self._elimination.forward(columns)
            forwarded[self.p - self.order :] = self._solve_dense(forwarded[self.p - self.order :])
            return self._elimination.backward(forwarded).reshape(right.shape)
        out = np.zeros(columns.shape)
        held = np.flatnonzero(columns.any(axis=0))
        out[:, held] = self._solve_few(np.ascontiguousarray(columns[:, held].T))
        return out.reshape(right.shape)

    def _solve_few(self, right: FloatArray) -> FloatArray:
        """Solve for right sides with few entries, shape (B, p) to (p, B)."""
        start = self.p - self.order
        forwarded = self._elimination.forward_rows(sp.csr_matrix(right))
        out = forwarded.T.toarray(order="C")
        few = FEW * np.diff(forwarded.indptr) <= self.order
        if few.any():
            out[start:, few] = (forwarded[few][:, start:] @ self._dense).T
        if not few.all():
            out[start:, ~few] = self._solve_dense(out[start:, ~few])
        return self._elimination.backward(out)

    def _solve_dense(self, right: FloatArray) -> FloatArray:
        if self._inverted:
            return np.asarray(self._dense @ right)
        half = blas.dtrsm(1.0, self._dense, right, lower=1)
        return np.asarray(blas.dtrsm(1.0, self._dense, half, lower=1, trans_a=1, overwrite_b=1))

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> SparsePrimalCurvature:
        """Factor anew with other weights; forming H is the least of it."""
        return SparsePrimalCurvature.factor(rows, diagonal, penalty)

    def row_norms(self, rows: Rows) -> FloatArray:
        """``||x_i||_{H^-1}`` of every row, shape (n,), from the inverse's entries at pairs of columns that meet."""
        dense = self._dense if self._inverted else invert(self._dense.copy(order="F"))
        entries = replace(inverse_entries(self._elimination, dense), place=np.argsort(self._elimination.order))
        out = rows.collect(inverse_forms, entries, out=np.empty(rows.n))
        unmet = np.flatnonzero(np.isnan(out))  # they hold columns that met in no row with curvature
        out[unmet] = solved_row_norms(self, rows, unmet) ** 2
        return np.sqrt(np.maximum(out, 0.0))

    def arrays(self) -> dict[str, Any]:
        """The packed lower triangle of the dense part, row by row, whether it is an inverse, and the elimination."""
        packed = self._dense[np.tril_indices(len(self._dense))]
        return {"packed": packed, "inverted": np.array(self._inverted), **self._elimination.arrays()}

    @classmethod
    def restore(cls, arrays: dict[str, Any], condition: float) -> SparsePrimalCurvature:
        """Rebuild from `arrays`."""
        elimination = Elimination.restore(arrays)
        dense = np.zeros((elimination.left, elimination.left), order="F")
        dense[np.tril_indices(len(dense))] = arrays["packed"]
        inverted = bool(arrays["inverted"])
        return cls(elimination, mirrored(dense) if inverted else dense, inverted, condition)


def invert(lower: FloatArray) -> FloatArray:
    """``(L L')^-1``; a lower factor in column order is overwritten."""
    inverse, _ = lapack.dpotri(lower, lower=1, overwrite_c=1)
    return mirrored(inverse)


def mirrored(matrix: FloatArray) -> FloatArray:
    """The symmetric matrix of a lower triangle, in its place, with rows in one piece."""
    p = len(matrix)
    for start in range(0, p, MIRROR):
        stop = min(start + MIRROR, p)
        corner = np.tril(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner + np.tril(corner, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
    return np.asarray(matrix.T if matrix.flags.f_contiguous else matrix)


@dataclass(frozen=True)
class InverseEntries:
    """Entries of a symmetric matrix, wherever they are known.

    Attributes
    ----------
    place : ndarray of shape (p,)
        of each column in an order whose last m columns are those of ``dense``.
    dense : ndarray of shape (m, m)
    keys : ndarray of int64, ascending
        ``a p + b`` for places a <= b, a before the last m.
    values : ndarray
        the entries there.
    """

    place: IntArray
    dense: FloatArray
    keys: IntArray
    values: FloatArray

    def at(self, left: IntArray, right: IntArray) -> FloatArray:
        """Entries at pairs of columns, NaN where they are not known."""
        one, other = self.place[left], self.place[right]
        first, second = np.minimum(one, other), np.maximum(one, other)
        start = len(self.place) - len(self.dense)
        out = np.full(len(first), np.nan)
        inside = first >= start
        out[inside] = self.dense[first[inside] - start, second[inside] - start]
        if len(self.keys):
            key = (first * len(self.place) + second)[~inside]
            found = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
            out[~inside] = np.where(self.keys[found] == key, self.values[found], np.nan)
        return out


def _pairs(rows: Any) -> Iterator[tuple[int, int, IntArray, IntArray]]:
    """Every stored entry of a CSR matrix beside each entry of its row, some rows ``start:stop`` at a time."""
    counts = np.diff(rows.indptr).astype(np.int64)
    ends = np.cumsum(counts**2)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS, side="right")))
        size, first = counts[start:stop], rows.indptr[start:stop].astype(np.int64)
        length = np.repeat(size, size)
        left = np.repeat(np.arange(rows.indptr[start], rows.indptr[stop]), length)
        right = np.arange(len(left)) - np.repeat(np.cumsum(length) - length - np.repeat(first, size), length)
        yield start, stop, left, right
        start = stop


def inverse_entries(elimination: Elimination, dense: FloatArray) -> InverseEntries:
    """The inverse's entries wherever the elimination has weights, columns counted in its order.

    ``dense`` is the inverse of what is left. With Z the inverse of what a round leaves, ``H^-1`` is ``D^-1 + W' Z W``
    for the round itself and ``-W' Z`` beside it, so each round's entries follow from those of later ones at pairs of
    the same columns (Takahashi, Fagan and Chen, 1973). Where a pair has cancelled to nothing, NaN says so.
    """
    p = len(elimination.order)
    known = InverseEntries(np.arange(p), dense, np.zeros(0, dtype=np.int64), np.zeros(0))
    for each in reversed(elimination.rounds):
        turned = each.weight.T.tocsr()
        column = turned.indices.astype(np.int64) + each.stop
        beside = np.empty(turned.nnz)
        for start, stop, left, right in _pairs(turned):
            own = slice(turned.indptr[start], turned.indptr[stop])
            product = known.at(column[left], column[right]) * turned.data[right]
            beside[own] = -np.bincount(left - own.start, product, own.stop - own.start)
        where = np.repeat(np.arange(each.stop - each.start), np.diff(turned.indptr))
        diagonal = 1.0 / each.pivot - np.bincount(where, turned.data * beside, len(each.pivot))
        places = np.arange(each.start, each.stop)
        keys = np.concatenate([known.keys, places * p + places, (where + each.start) * p + column])
        order = np.argsort(keys)
        values = np.concatenate([known.values, diagonal, beside])
        known = replace(known, keys=keys[order], values=values[order])
    return known


def sparse_forms(rows: Any, entries: InverseEntries) -> FloatArray:
    """``x' M x`` of every CSR row x, shape (n,): only M's entries at pairs of x's few columns are asked for."""
    out = np.empty(rows.shape[0])
    for start, stop, left, right in _pairs(rows):
        value = entries.at(rows.indices[left], rows.indices[right]) * rows.data[left] * rows.data[right]
        owner = np.repeat(np.arange(stop - start), np.diff(rows.indptr[start : stop + 1]).astype(np.int64) ** 2)
        out[start:stop] = np.bincount(owner, value, stop - start)
    return out


def inverse_forms(block: RowBlock, out: FloatArray, entries: InverseEntries) -> None:
    """`sparse_forms` of a block's rows."""
    for within, piece in block.pieces():
        out[within] = sparse_forms(piece.whole(), entries)
