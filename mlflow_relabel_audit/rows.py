"""The training rows, behind the few reductions the mathematics asks of them.

Nothing above this module sees how rows are kept. The design matrix is never copied, densified or whitened; a
fitted intercept is a virtual last column of ones. Every reduction walks the rows in blocks, in a fixed order,
so that dense and sparse, float32 and float64 rows take one path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray, IntArray

BLOCK_BYTES = 2**22
"""Dense bytes of one row block: small enough to stay in cache while a block is worked on."""


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows ``start:stop`` of the design matrix, without the column of ones."""

    start: int
    stop: int
    features: Any
    intercept: bool

    def margins(self, theta: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Rows times ``theta``, shape (p, B) to (rows, B); written to ``out`` where it is given."""
        weights = theta[:-1] if self.intercept else theta
        if sp.issparse(self.features):
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
        pulled = self.features.T @ residual
        if not self.intercept:
            return np.asarray(pulled)
        return np.concatenate([pulled, residual.sum(axis=0, keepdims=True)])


class Rows:
    """Training rows: features, 0/1 labels and base weights.

    Parameters
    ----------
    features : ndarray or CSR array of shape (n, features)
        float32 or float64, kept as it is (C order). The column of ones is virtual.
    labels : ndarray of shape (n,)
        0.0 or 1.0.
    base_weight : ndarray of shape (n,)
        sample weights without class weights, non-negative, float64.
    intercept : bool
        whether the model fits one; it is then the last of the p coordinates.
    """

    def __init__(self, features: Any, labels: FloatArray, base_weight: FloatArray, *, intercept: bool) -> None:
        self.sparse = bool(sp.issparse(features))
        if self.sparse:
            self.features = features if features.format == "csr" else features.tocsr()
            if self.features.dtype not in (np.float32, np.float64):
                self.features = self.features.astype(np.float64)
        else:
            dense = np.asarray(features)
            dtype = dense.dtype if dense.dtype in (np.float32, np.float64) else np.float64
            self.features = np.ascontiguousarray(dense, dtype=dtype)
        if self.features.ndim != 2:
            raise RequestError(
                f"training rows: got an array of {self.features.ndim} dimensions; pass a table (n, features)"
            )
        self.n, self.features_in = self.features.shape
        self.intercept = intercept
        self.p = self.features_in + int(intercept)
        self.y = np.asarray(labels, dtype=np.float64)
        self.base_weight = np.asarray(base_weight, dtype=np.float64)

    def relabelled(self, index: IntArray) -> Rows:
        """The same rows with the labels at ``index`` the other way round; the features are shared."""
        other = copy.copy(self)
        other.y = self.y.copy()
        other.y[index] = 1.0 - other.y[index]
        return other

    @property
    def nnz(self) -> int:
        """Stored entries of the design matrix, ones excluded."""
        return int(self.features.nnz) if self.sparse else self.n * self.features_in

    def block_length(self, columns: int = 64) -> int:
        """Rows per block so that a block, and ``columns`` values per row beside it, stay in cache."""
        per_row = 8 * ((self.nnz // max(self.n, 1)) + columns)
        return int(np.clip(BLOCK_BYTES // max(per_row, 1), 64, 8192))

    def blocks(self, dtype: Any = np.float64, length: int | None = None) -> Iterator[RowBlock]:
        """Yield the rows in order, as blocks of ``dtype`` (None: as they are kept); copied only to convert."""
        length = length or self.block_length()
        dtype = dtype or self.features.dtype
        for start in range(0, self.n, length):
            stop = min(start + length, self.n)
            if self.sparse:
                ptr = self.features.indptr
                part = slice(ptr[start], ptr[stop])
                data = self.features.data[part].astype(dtype, copy=False)
                block: Any = sp.csr_matrix(
                    (data, self.features.indices[part], ptr[start : stop + 1] - ptr[start]),
                    shape=(stop - start, self.features_in),
                    copy=False,
                )
            else:
                block = self.features[start:stop].astype(dtype, copy=False)
            yield RowBlock(start, stop, block, self.intercept)

    def margins(self, theta: FloatArray) -> FloatArray:
        """``X @ theta`` in float64: (p,) to (n,), or (p, B) to (n, B)."""
        columns = theta.reshape(self.p, -1)
        out = np.empty((self.n, columns.shape[1]))
        for block in self.blocks():
            block.margins(columns, out=out[block.start : block.stop])
        return out.reshape((self.n, *theta.shape[1:]))

    def pull(self, residual: FloatArray) -> FloatArray:
        """``X' @ residual`` in float64: (n,) to (p,), or (n, B) to (p, B)."""
        columns = residual.reshape(self.n, -1)
        out = np.zeros((self.p, columns.shape[1]))
        for block in self.blocks():
            out += block.pull(columns[block.start : block.stop])
        return out.reshape((self.p, *residual.shape[1:]))

    def gram(self, diagonal: FloatArray) -> FloatArray:
        """``X' diag(diagonal) X``, shape (p, p), for a non-negative diagonal of shape (n,)."""
        out = np.zeros((self.p, self.p))
        inner = out[: self.features_in, : self.features_in]
        if self.sparse:
            for block in self.blocks(length=max(self.n, 1)):
                scaled = block.features.multiply(diagonal[:, None]).tocsr()
                product = (block.features.T @ scaled).tocoo()
                inner[product.row, product.col] = product.data
        else:
            root = np.sqrt(diagonal)
            for block in self.blocks(length=max(512, self.block_length())):
                scaled = block.features * root[block.start : block.stop, None]
                inner += scaled.T @ scaled
        if self.intercept:
            out[-1] = out[:, -1] = self.pull(diagonal)
        return out

    def take(self, index: IntArray) -> Any:
        """Rows at ``index`` in float64 with the column of ones: ndarray or CSR of shape (len(index), p)."""
        if not self.sparse:
            taken = np.ones((len(index), self.p))
            taken[:, : self.features_in] = self.features[index]
            return taken
        part = self.features[index].astype(np.float64)
        if not self.intercept:
            return part
        return sp.hstack([part, sp.csr_matrix(np.ones((part.shape[0], 1)))], format="csr")

    def square_norms(self) -> FloatArray:
        """Squared Euclidean norms of the rows, the one included, shape (n,)."""
        out = np.empty(self.n)
        for block in self.blocks():
            part = block.features
            square = part.multiply(part).sum(axis=1) if self.sparse else np.einsum("ij,ij->i", part, part)
            out[block.start : block.stop] = np.asarray(square).ravel()
        return out + 1.0 if self.intercept else out
