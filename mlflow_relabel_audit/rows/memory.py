"""Rows in this process: an array or CSR matrix, whose blocks are views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.rows.block import RowBlock, cut
from mlflow_relabel_audit.rows.store import LocalStore, Step, block_bounds
from mlflow_relabel_audit.rows.threads import available

Transform = Callable[[Any], Any]
"""From rows as the model's fit took them to features."""
LEAST_ENTRIES = 2**20
"""Stored entries from which two threads are quicker than one for most passes; a quarter of them take half a ms more."""


def as_features(features: Any) -> Any:
    """An ndarray in C order or a CSR matrix, float32 or float64, copied only where it is not one already.

    Raises
    ------
    RequestError
        It has not two dimensions.
    """
    if sp.issparse(features):
        matrix = features if features.format == "csr" else features.tocsr()
        return matrix if matrix.dtype in (np.float32, np.float64) else matrix.astype(np.float64)
    dense = np.asarray(features)
    dtype = dense.dtype if dense.dtype in (np.float32, np.float64) else np.float64
    dense = np.ascontiguousarray(dense, dtype=dtype)
    if dense.ndim != 2:
        raise RequestError(f"training rows: got an array of {dense.ndim} dimensions; pass a table (n, features)")
    return dense


def made(transform: Transform, rows: Any, width: int, start: int, intercept: bool) -> RowBlock:
    """A block from raw rows, of which ``start`` is the first one's number.

    Raises
    ------
    StoreError
        The transform makes other than ``width`` features of them.
    """
    features = as_features(transform(rows))
    if features.shape[1] != width:
        raise StoreError(
            f"rows {start} to {start + features.shape[0]}: got {features.shape[1]} features, the first rows have "
            f"{width}; write them again with the same columns throughout"
        )
    return RowBlock(features, intercept)


class MemoryStore(LocalStore):
    """Blocks that are views of one array or CSR matrix."""

    def __init__(self, features: Any, intercept: bool) -> None:
        self.features = as_features(features)
        self.intercept = intercept
        self.shape: tuple[int, int] = self.features.shape
        self.sparse = bool(sp.issparse(self.features))
        self.nnz = int(self.features.nnz) if self.sparse else int(self.features.size)
        self.dtype: Any = self.features.dtype
        self.bounds: Sequence[tuple[int, int]] = block_bounds(self.shape[0], self.shape[1], self.sparse)
        self._made: dict[int, RowBlock] = {}

    def block(self, number: int) -> RowBlock:
        """One block; nothing is copied."""
        if number not in self._made:
            start, stop = self.bounds[number]
            part = self.features
            if len(self.bounds) > 1:
                part = cut(part, start, stop) if self.sparse else part[start:stop]
            self._made[number] = RowBlock(part, self.intercept)
        return self._made[number]

    def threads(self, step: Step) -> int:
        """One for dense rows, whose products BLAS threads, for small tables and for single rows."""
        whole = round(self.shape[0] / max(self.bounds[0][1], 1))
        if not self.sparse or self.nnz < LEAST_ENTRIES or getattr(step, "picks_rows", False):
            return 1
        return min(available(), whole)
