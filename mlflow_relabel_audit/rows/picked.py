"""Single rows of blocks, kept here once they were asked for where the blocks are elsewhere.

A search moves labels to and fro along one order: the gradient moves by a few rows, mostly those of the move before. A
pass for each move would cost a trip to every block; the rows themselves are few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import IntArray
from mlflow_relabel_audit.rows.store import Store

PICKED_BYTES = 2**25
"""What is kept at most, and an eighth of what a memory limit leaves; then all is dropped."""
COPIED_BYTES = 2**20
"""What is copied of rows that are an array here; more of them are gathered where they are, part by part."""


class Picks:
    """Picked rows of a store.

    Parameters
    ----------
    store : Store
    p : int
        coordinates, the one included.
    keep : bool
        whether rows are worth keeping: not where they are an array in this process.
    """

    def __init__(self, store: Store, p: int, *, keep: bool) -> None:
        self._keep = keep
        self._each = 8 * p if not store.sparse else 12 * (store.nnz // max(store.shape[0], 1) + 2)
        most = PICKED_BYTES if keep else COPIED_BYTES
        self._most = most if store.room is None else min(most, store.room // 8)
        self._index: IntArray = np.zeros(0, dtype=np.int64)
        self._place: IntArray = np.zeros(0, dtype=np.int64)
        self._rows: Any = None

    def of(self, index: IntArray, take: Callable[[IntArray], Any]) -> Any:
        """Rows at an ascending index, ndarray or CSR with the column of ones; None where they are too many.

        ``take`` brings the rows at an ascending index from the store.
        """
        if self._each * len(index) > self._most:
            return None
        if not self._keep:
            return take(index)
        wanted = index[np.append(True, index[1:] != index[:-1])[: len(index)]]
        new = self._missing(wanted)
        if self._each * (len(self._index) + len(new)) > self._most:
            self._index, self._place, self._rows = self._index[:0], self._place[:0], None
            new = wanted
        if len(new):
            self._add(new, take(new))
        return self._rows[self._place[np.searchsorted(self._index, index)]]

    def _missing(self, wanted: IntArray) -> IntArray:
        if not len(self._index):
            return wanted
        near = np.minimum(np.searchsorted(self._index, wanted), len(self._index) - 1)
        return wanted[self._index[near] != wanted]

    def _add(self, index: IntArray, rows: Any) -> None:
        held = len(self._index)
        if self._rows is None:
            self._rows = rows
        else:
            stack = (self._rows, rows)
            self._rows = sp.vstack(stack, format="csr") if sp.issparse(rows) else np.concatenate(stack)
        index = np.concatenate([self._index, index])
        place = np.concatenate([self._place, np.arange(held, len(index))])
        order = np.argsort(index, kind="stable")
        self._index, self._place = index[order], place[order]
