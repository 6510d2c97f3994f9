"""Two sets of rows seen as one, each where it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mlflow_relabel_audit.rows.rows import Rows
from mlflow_relabel_audit.rows.store import Call, Fold, Join, Kept, Step, Store


class JoinedStore:
    """The blocks of one store, then those of another; nothing is copied."""

    def __init__(self, first: Store, second: Store) -> None:
        self.parts = (first, second)
        n, features = first.shape
        self.shape: tuple[int, int] = (n + second.shape[0], features)
        self.sparse = first.sparse
        self.nnz = first.nnz + second.nnz
        self.dtype: Any = first.dtype
        self.local = first.local and second.local
        self.room = first.room
        self.beside = first.beside + second.beside
        self.progress = first.progress
        self.bounds: Sequence[tuple[int, int]] = [
            *first.bounds,
            *((start + n, stop + n) for start, stop in second.bounds),
        ]

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run the step on the blocks of the first store, then on those of the second."""
        for part, asked, slices in self._split(calls, along):
            yield from part.map(step, asked, slices, arguments)

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """Run the step on every block and join the results of each store, then those of the two."""
        joining = Fold(join)
        for number, (part, asked, slices) in enumerate(self._split(calls, along)):
            found = part.reduce(step, asked, slices, arguments, join)
            if found is not None:
                joining.add(number, found)
        return joining.result()

    def keep(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Kept:
        """Run the step on every block; what is kept is kept by each store."""
        return Kept([part.keep(step, asked, slices, arguments) for part, asked, slices in self._split(calls, along)])

    def _split(self, calls: Iterable[Call], along: Sequence[Any]) -> Iterator[tuple[Store, list[Call], list[Any]]]:
        first, second = self.parts
        edge, n = len(first.bounds), first.shape[0]
        asked = list(calls)
        apart = [values.parts if isinstance(values, Kept) else (values[:n], values[n:]) for values in along]
        yield first, [call for call in asked if call[0] < edge], [values[0] for values in apart]
        later = [(number - edge, own) for number, own in asked if number >= edge]
        yield second, later, [values[1] for values in apart]


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of two sets as one, those of the first before those of the second.

    Parameters
    ----------
    first, second : Rows
        of the same features, both sparse or both dense.
    """
    labels = np.concatenate([first.y, second.y])
    weight = np.concatenate([first.base_weight, second.base_weight])
    return Rows(JoinedStore(first.store, second.store), labels, weight, intercept=first.intercept)
