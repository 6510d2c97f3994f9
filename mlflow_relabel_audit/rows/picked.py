"""Single rows of blocks that are elsewhere, kept here once they were asked for.

A search moves labels to and fro along one order: the gradient moves by a few rows, mostly those of the move before. A
pass for each move would cost a trip to every block; the rows themselves are few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import IntArray
from mlflow_relabel_audit.rows import steps
from mlflow_relabel_audit.rows.store import Call, Store

PICKED_BYTES = 2**25
"""What is kept at most, and an eighth of what a memory limit leaves; then all is dropped."""


class PickedRows:
    """Rows of one block by their position in it; steps that pick rows take it for the block.

    Attributes
    ----------
    p : int
        coordinates, the one included.
    """

    def __init__(self, p: int) -> None:
        self.p = p
        self._index: IntArray = np.zeros(0, dtype=np.int64)
        self._rows: Any = None

    def missing(self, index: IntArray) -> IntArray:
        """Those of the positions that are not here, ascending."""
        return np.setdiff1d(index, self._index)

    def add(self, index: IntArray, rows: Any) -> None:
        """Keep rows, at positions that are not here."""
        if self._rows is not None:
            stack = (self._rows, rows)
            rows = sp.vstack(stack, format="csr") if sp.issparse(rows) else np.concatenate(stack)
            index = np.concatenate([self._index, index])
        order = np.argsort(index)
        self._index, self._rows = index[order], rows[order]

    def take(self, index: IntArray) -> Any:
        """Rows at ``index``, as of the block itself."""
        return self._rows[np.searchsorted(self._index, index)]


class Picks:
    """The picked rows of every block of a store."""

    def __init__(self, store: Store, p: int) -> None:
        self._store, self._p = store, p
        self._each = 8 * p if not store.sparse else 12 * (store.nnz // max(store.shape[0], 1) + 2)
        self._most = PICKED_BYTES if store.room is None else min(PICKED_BYTES, store.room // 8)
        self._blocks: dict[int, PickedRows] = {}
        self._held = 0

    def of(self, calls: list[Call]) -> dict[int, PickedRows] | None:
        """The blocks that are asked for the rows that their calls begin with; None where those are too many."""
        wanted = {number: np.unique(own[0]) for number, own in calls}
        if self._each * sum(map(len, wanted.values())) > self._most:
            return None
        asked = self._missing(wanted)
        if self._each * (self._held + sum(len(own[0]) for _, own in asked)) > self._most:
            self._blocks.clear()
            self._held = 0
            asked = self._missing(wanted)
        taken = list(self._store.map(steps.take, asked, (), ())) if asked else []
        for (number, own), rows in zip(asked, taken, strict=True):
            self._blocks.setdefault(number, PickedRows(self._p)).add(own[0], rows)
            self._held += len(own[0])
        return {number: self._blocks[number] for number in wanted}

    def _missing(self, wanted: dict[int, IntArray]) -> list[Call]:
        asked: list[Call] = []
        for number, index in wanted.items():
            held = self._blocks.get(number)
            new = index if held is None else held.missing(index)
            if len(new):
                asked.append((number, (new,)))
        return asked
