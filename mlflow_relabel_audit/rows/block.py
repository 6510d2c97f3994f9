"""Consecutive rows of the design matrix, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import narrow

PIECE_BYTES = 2**21
"""Dense bytes of one piece of a block: small enough to stay in cache while it is worked on."""
SPARSE_PIECE_BYTES = 2**22
"""The same of sparse rows: calls take a larger share of what is done with so few entries, and hinder other threads."""
KEPT_CUTS = 3
"""Lengths of pieces at which a sparse block's are kept; they are views, with pointers of their own."""


class RowBlock:
    """Consecutive rows of the design matrix, without the column of ones.

    Parameters
    ----------
    features : ndarray or CSR matrix of shape (rows, features)
    intercept : bool
        whether a virtual column of ones follows the features.
    """

    def __init__(self, features: Any, intercept: bool) -> None:
        self._features = features
        self.intercept = intercept
        self._cut: dict[int, list[tuple[slice, RowBlock]]] = {}
        self._turned: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_features": self._features, "intercept": self.intercept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(settled(state["_features"]), state["intercept"])  # type: ignore[misc]

    def __sizeof__(self) -> int:
        features = self._features
        parts = [features.data, features.indices, features.indptr] if sp.issparse(features) else [features]
        return object.__sizeof__(self) + sum(int(part.nbytes) for part in parts if part is not None)

    @property
    def features(self) -> Any:
        """The rows themselves."""
        return self._features

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.features.shape[0])

    @property
    def sparse(self) -> bool:
        """Whether they are CSR."""
        return bool(sp.issparse(self.features))

    @property
    def p(self) -> int:
        """Coordinates, the one included."""
        return int(self.features.shape[1]) + int(self.intercept)

    def piece_length(self, columns: int = 64) -> int:
        """Rows per piece so that a piece, and ``columns`` values per row beside it, stay in cache."""
        features = self.features
        if not self.sparse:
            return int(np.clip(PIECE_BYTES // (8 * max(features.shape[1] + columns, 1)), 64, 2**13))
        stored = features.nnz // max(features.shape[0], 1)
        return int(np.clip(SPARSE_PIECE_BYTES // (8 * max(stored + columns, 1)), 64, 2**14))

    def pieces(self, length: int | None = None, dtype: Any = np.float64) -> Iterator[tuple[slice, RowBlock]]:
        """Yield parts of the block in order, with where they are in it, as ``dtype`` (None: as they are kept).

        They are copied only to convert; sparse ones, which take as long to cut out as to multiply, are kept.
        """
        length, features, rows = length or self.piece_length(), self.features, self.rows
        dtype = dtype or features.dtype
        if not self.sparse:
            for start in range(0, rows, length):
                within = slice(start, min(start + length, rows))
                yield within, RowBlock(features[within].astype(dtype, copy=False), self.intercept)
            return
        if length not in self._cut:
            if len(self._cut) >= KEPT_CUTS:
                self._cut.clear()
            spans = [slice(start, min(start + length, rows)) for start in range(0, rows, length)]
            self._cut[length] = [(at, RowBlock(cut(features, at.start, at.stop), self.intercept)) for at in spans]
        for within, piece in self._cut[length]:
            if features.dtype != dtype:
                part = piece.features
                piece = RowBlock(_view(part, part.data.astype(dtype), part.indptr, part.shape), self.intercept)
            yield within, piece

    def margins(self, theta: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Rows times ``theta``, shape (p, B) to (rows, B); written to ``out`` where it is given."""
        weights = theta[:-1] if self.intercept else theta
        if self.sparse:
            product = self.features @ weights
            if out is not None:
                out[...] = product
                product = out
        else:
            product = np.matmul(self.features, weights, out=out)
        if self.intercept:
            product += theta[-1]
        return product

    def pull(self, residual: FloatArray) -> FloatArray:
        """Rows' transpose times ``residual``, shape (rows, B) to (p, B)."""
        # turned twice: a product of dense rows with few columns is quicker from this side
        pulled = self._transpose() @ residual if self.sparse else (residual.T @ self.features).T
        if not self.intercept:
            return np.asarray(pulled)
        return np.concatenate([pulled, narrow.sums(residual)[None]])

    def _transpose(self) -> Any:
        if self._turned is None:
            rows, turned = self.features, sp.csc_matrix(self.features.shape[::-1], dtype=self.features.dtype)
            turned.data, turned.indices, turned.indptr = rows.data, rows.indices, rows.indptr
            self._turned = turned
        return self._turned

    def take(self, index: IntArray) -> Any:
        """Rows at ``index`` in float64 with the column of ones: ndarray or CSR of shape (len(index), p)."""
        return self._with_ones(self.features[index])

    def whole(self) -> Any:
        """All rows as `take` gives them."""
        return self._with_ones(self.features)

    def _with_ones(self, part: Any) -> Any:
        if not sp.issparse(part):
            taken = np.empty((part.shape[0], part.shape[1] + int(self.intercept)))
            taken[:, : part.shape[1]] = part
            taken[:, part.shape[1] :] = 1.0
            return taken
        part = part.astype(np.float64)
        if not self.intercept:
            return part
        return sp.hstack([part, sp.csr_matrix(np.ones((part.shape[0], 1)))], format="csr")


def settled(value: Any) -> Any:
    """An array that came over the wire, where it may begin anywhere, in memory of its own: BLAS sums alike there."""
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.owndata else value


def cut(matrix: Any, start: int, stop: int) -> Any:
    """Rows ``start:stop`` of a CSR matrix, sharing its memory."""
    pointers = matrix.indptr
    shape = (stop - start, matrix.shape[1])
    part = slice(pointers[start], pointers[stop])
    found = _view(matrix, matrix.data[part], pointers[start : stop + 1] - pointers[start], shape)
    found.indices = matrix.indices[part]
    return found


def _view(matrix: Any, data: Any, pointers: Any, shape: tuple[int, int]) -> Any:
    """A CSR matrix around these very arrays; scipy's constructor copies those that view a larger one."""
    out = sp.csr_matrix(shape, dtype=data.dtype)
    out.data, out.indices, out.indptr = data, matrix.indices, pointers
    return out
