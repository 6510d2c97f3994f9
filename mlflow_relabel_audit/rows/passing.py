"""Rows that pass by: transformed a block at a time when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse as sp

from mlflow_relabel_audit.rows.block import RowBlock
from mlflow_relabel_audit.rows.memory import Transform, as_features, made
from mlflow_relabel_audit.rows.store import LocalStore, places

PASSING_BYTES = 2**23
"""Dense bytes of a block."""


class PassingStore(LocalStore):
    """Blocks of which the last one asked for is held: for rows that are read in order, once or twice.

    Parameters
    ----------
    source : ParquetSource, frame, series, CSR matrix or ndarray
    transform : callable
        from rows as the model's fit took them to features.
    like
        what it makes of the first rows.
    intercept : bool
    """

    def __init__(self, source: Any, transform: Transform, like: Any, intercept: bool) -> None:
        self._source, self._transform, self._intercept = source, transform, intercept
        sample = as_features(like)
        n = len(source) if hasattr(source, "read") else source.shape[0]
        self.shape: tuple[int, int] = (n, sample.shape[1])
        self.sparse, self.dtype = bool(sp.issparse(sample)), sample.dtype
        self.nnz = n * sample.shape[1]
        length = max(64, PASSING_BYTES // (8 * max(sample.shape[1], 1)))
        self.bounds: Sequence[tuple[int, int]] = [(start, min(start + length, n)) for start in range(0, n, length)] or [
            (0, 0)
        ]
        self._last: tuple[int, RowBlock] | None = None

    def block(self, number: int) -> RowBlock:
        """One block, transformed anew unless it was the last one.

        Raises
        ------
        StoreError
            It has other columns than the first rows.
        """
        if self._last is None or self._last[0] != number:
            start, stop = self.bounds[number]
            source = self._source
            rows = source.read(start, stop) if hasattr(source, "read") else places(source)[start:stop]
            self._last = number, made(self._transform, rows, self.shape[1], start, self._intercept)
        return self._last[1]
