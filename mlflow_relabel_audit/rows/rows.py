"""Training rows: features wherever they are kept, labels and weights here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import steps
from mlflow_relabel_audit.rows.memory import MemoryStore
from mlflow_relabel_audit.rows.picked import Picks
from mlflow_relabel_audit.rows.store import Call, Fold, Join, Step, Store

Each = Callable[[int, int], tuple[Any, ...] | None]


class Rows:
    """Training rows: features, 0/1 labels and base weights.

    Parameters
    ----------
    features : ndarray or CSR array of shape (n, features), or a store of blocks
        float32 or float64, kept as it is (C order). The column of ones is virtual.
    labels : ndarray of shape (n,)
        0.0 or 1.0.
    base_weight : ndarray of shape (n,)
        sample weights without class weights, non-negative, float64.
    intercept : bool
        whether the model fits one; it is then the last of the p coordinates.
    """

    def __init__(self, features: Any, labels: FloatArray, base_weight: FloatArray, *, intercept: bool) -> None:
        kept: Any = features if hasattr(features, "bounds") else MemoryStore(features, intercept)
        self.store: Store = kept
        self.sparse = self.store.sparse
        self.n, self.features_in = self.store.shape
        self.intercept = intercept
        self.p = self.features_in + int(intercept)
        self.y = np.asarray(labels, dtype=np.float64)
        self.base_weight = np.asarray(base_weight, dtype=np.float64)
        self._sampled: dict[int, Any] = {}
        self._picks = Picks(self.store, self.p)

    def relabelled(self, index: IntArray) -> Rows:
        """The same rows with the labels at ``index`` the other way round; the features are shared."""
        other = copy.copy(self)
        other.y = self.y.copy()
        other.y[index] = 1.0 - other.y[index]
        return other

    @property
    def features(self) -> Any:
        """The features of rows that are in this process; others are for steps alone."""
        kept: Any = self.store
        assert isinstance(kept, MemoryStore)
        return kept.features

    @property
    def held(self) -> bool:
        """Whether the features are one array in this process, so that a product with them is soon taken again."""
        return isinstance(self.store, MemoryStore)

    @property
    def nnz(self) -> int:
        """Stored entries of the design matrix, ones excluded."""
        return self.store.nnz

    # -- the two ways in which all rows are asked ------------------------------------------------------------

    def reduce(
        self, step: Step, *arguments: Any, join: Join, along: Sequence[Any] = (), each: Each | None = None
    ) -> tuple[Any, ...] | None:
        """Run a step on every block and join the tuples it returns, in a fixed order.

        Parameters
        ----------
        step : callable
            ``step(block, *own, *slices, *arguments)``, a function of a module.
        arguments
            the same for every block.
        join : tuple of {"sum", "min", "max"}
            how each item of the results is joined.
        along : sequence of arrays whose first axis is n
            every block gets its own part.
        each : callable, optional
            ``each(start, stop)`` gives what else the block of these rows gets; None leaves the block out.

        Returns
        -------
        tuple, or None where every block was left out
        """
        return self.store.reduce(step, self._calls(each), along, arguments, join)

    def collect(self, step: Step, *arguments: Any, out: FloatArray, along: Sequence[Any] = (), axis: int = 0) -> Any:
        """Run a step that fills its block's part of ``out``, whose ``axis`` is n, and return ``out``.

        ``step(block, part, *slices, *arguments)`` writes into ``part``.
        """

        def place(start: int, stop: int) -> Any:
            return out[(slice(None),) * axis + (slice(start, stop),)]

        if self.store.local:
            calls = self._calls(lambda start, stop: (place(start, stop),))
            for _ in self.store.map(step, calls, along, arguments):
                pass
            return out
        shape = [*out.shape]

        def empty(start: int, stop: int) -> tuple[Any, ...]:
            shape[axis] = stop - start
            return step, tuple(shape), out.dtype

        for (start, stop), part in zip(
            self.store.bounds, self.store.map(_filled, self._calls(empty), along, arguments), strict=True
        ):
            place(start, stop)[...] = part
        return out

    def blocks(self, step: Step, *arguments: Any, along: Sequence[Any] = ()) -> Iterator[Any]:
        """Run ``step(block, *slices, *arguments)`` on every block and yield what it returns, in order."""
        return self.store.map(step, self._calls(None), along, arguments)

    def _calls(self, each: Each | None) -> Iterator[Call]:
        for number, (start, stop) in enumerate(self.store.bounds):
            own = () if each is None else each(start, stop)
            if own is not None:
                yield number, own

    def split(self, index: IntArray, *values: Any) -> Each:
        """Give each block its part of an ascending ``index``, counted from its start, and of values beside it."""

        def part(start: int, stop: int) -> tuple[Any, ...] | None:
            low, high = np.searchsorted(index, (start, stop))
            if low == high:
                return None
            return (index[low:high] - start, *(value[low:high] for value in values))

        return part

    # -- products and sums -----------------------------------------------------------------------------------

    def margins(self, theta: FloatArray) -> FloatArray:
        """``X @ theta`` in float64: (p,) to (n,), or (p, B) to (n, B)."""
        columns = theta.reshape(self.p, -1)
        out = self.collect(steps.margins, columns, out=np.empty((self.n, columns.shape[1])))
        return np.asarray(out.reshape((self.n, *theta.shape[1:])))

    def pull(self, residual: FloatArray) -> FloatArray:
        """``X' @ residual`` in float64: (n,) to (p,), or (n, B) to (p, B)."""
        columns = residual.reshape(self.n, -1)
        (out,) = self._reduced(steps.pull, along=(columns,), join=("sum",))
        return np.asarray(out.reshape((self.p, *residual.shape[1:])))

    def normal(self, diagonal: FloatArray, theta: FloatArray) -> FloatArray:
        """``X' diag(diagonal) X @ theta`` in one pass: (n,) and (p, B) to (p, B)."""
        return np.asarray(self._reduced(steps.normal, theta, along=(diagonal,), join=("sum",))[0])

    def gram(self, diagonal: FloatArray) -> FloatArray:
        """``X' diag(diagonal) X``, shape (p, p), for a non-negative diagonal of shape (n,)."""
        inner, pulled = self._reduced(steps.gram, along=(diagonal,), join=("sum", "sum"))
        if not self.sparse and not self.intercept:
            return np.asarray(inner)
        out = np.zeros((self.p, self.p))
        if self.sparse:
            inner = inner.tocoo()
            out[inner.row, inner.col] = inner.data
        else:
            out[: self.features_in, : self.features_in] = inner
        if self.intercept:
            out[-1] = out[:, -1] = pulled[:, 0]
        return out

    def part_gram(self, index: IntArray, diagonal: FloatArray) -> FloatArray:
        """``X_S' diag(diagonal) X_S``, shape (p, p), over the rows at ``index`` (ascending), diagonal >= 0."""
        found = self.reduce(steps.part_gram, each=self.split(index, diagonal), join=("sum",))
        if found is None:
            return np.zeros((self.p, self.p))
        return np.asarray(found[0].toarray() if sp.issparse(found[0]) else found[0])

    def spread(self, index: IntArray, column: IntArray, amount: FloatArray, width: int) -> FloatArray:
        """Sum ``amount_j x_j`` over rows ``index_j`` into column ``column_j``, shape (p, width)."""
        order = np.argsort(index, kind="stable")
        each = self.split(index[order], column[order], amount[order])
        calls = list(self._calls(each))
        picked = None if self.held or not calls else self._picks.of(calls)
        if picked is None:
            found = self.store.reduce(steps.spread, calls, (), (width,), ("sum",))
        else:  # the same sums in the same order as where the blocks are
            folding = Fold(("sum",))
            for number, own in calls:
                folding.add(number, steps.spread(picked[number], *own, width))
            found = folding.result()
        return np.zeros((self.p, width)) if found is None else np.asarray(found[0])

    def column_squares(self, diagonal: FloatArray) -> FloatArray:
        """Diagonal of ``X' diag(diagonal) X``, shape (p,)."""
        return np.asarray(self._reduced(steps.column_squares, along=(diagonal,), join=("sum",))[0])

    def square_norms(self) -> FloatArray:
        """Squared Euclidean norms of the rows, the one included, shape (n,)."""
        return np.asarray(self.collect(steps.square_norms, out=np.empty(self.n)))

    def forms(self, basis: FloatArray, functions: FloatArray) -> FloatArray:
        """``(X @ basis)^2 @ functions``: (p, q) and (q,) or (q, r) to (n,) or (n, r)."""
        return np.asarray(self.collect(steps.forms, basis, functions, out=np.empty((self.n, *functions.shape[1:]))))

    def take(self, index: IntArray) -> Any:
        """Rows at ``index`` in float64 with the column of ones: ndarray or CSR of shape (len(index), p)."""
        index = np.asarray(index)
        ascending = bool(np.all(index[1:] >= index[:-1]))
        order = None if ascending else np.argsort(index, kind="stable")
        each = self.split(index if order is None else index[order])
        parts = list(self.store.map(steps.take, self._calls(each), (), ()))
        if not parts:
            return sp.csr_matrix((0, self.p)) if self.sparse else np.zeros((0, self.p))
        if len(parts) == 1:
            taken = parts[0]
        else:
            taken = sp.vstack(parts, format="csr") if self.sparse else np.concatenate(parts)
        return taken if order is None else taken[np.argsort(order, kind="stable")]

    def every(self, stride: int) -> Any:
        """Every so-many-th row as `take` gives them, kept for the next time."""
        if stride not in self._sampled:
            self._sampled[stride] = self.take(np.arange(0, self.n, stride))
        return self._sampled[stride]

    def cells(self, index: IntArray, column: IntArray, theta: FloatArray) -> FloatArray:
        """``x_j . theta_c`` of single cells: rows and columns of shape (cells,), theta (p, B), to (cells,), float64.

        A cell's rounding depends on nothing but its row and column.
        """
        order = np.argsort(index, kind="stable")
        each = self.split(index[order], column[order])
        turned = np.ascontiguousarray(theta.T)
        out = np.empty(len(index))
        found = list(self.store.map(steps.cells, self._calls(each), (), (turned,)))
        out[order] = np.concatenate([*found, np.zeros(0)])
        return out

    def columns(self, index: IntArray) -> FloatArray:
        """Rows at ``index`` dense and turned, shape (p, len(index))."""
        part = self.take(index)
        return np.ascontiguousarray((part.toarray() if self.sparse else part).T)

    def digests(self) -> list[bytes]:
        """SHA-256 of every block's entries."""
        return list(self.blocks(steps.digest))

    def _reduced(self, step: Step, *arguments: Any, join: Join, along: Sequence[Any]) -> tuple[Any, ...]:
        found = self.reduce(step, *arguments, join=join, along=along)
        assert found is not None  # every block was asked
        return found


def _filled(block: Any, step: Step, shape: tuple[int, ...], dtype: Any, *arguments: Any) -> FloatArray:
    """Run a step where ``out`` is out of reach, and return what it wrote."""
    out = np.empty(shape, dtype=dtype)
    step(block, out, *arguments)
    return out
