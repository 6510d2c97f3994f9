"""Training rows: features wherever they are kept, labels and weights here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import steps
from mlflow_relabel_audit.rows.block import RowBlock
from mlflow_relabel_audit.rows.memory import MemoryStore
from mlflow_relabel_audit.rows.picked import Picks
from mlflow_relabel_audit.rows.progress import Progress
from mlflow_relabel_audit.rows.store import Call, Fold, Join, Kept, Step, Store

Each = Callable[[int, int], tuple[Any, ...] | None]


class Rows:
    """Training rows: features, labels and base weights; and the linear outputs that a model gives each row.

    With M outputs, coefficients are those of each output one after the other, shape (p,) with p = M times the
    coordinates of a row, and values of rows and outputs are flat, shape (n M,), the outputs of one row side by side.

    Parameters
    ----------
    features : ndarray or CSR array of shape (n, features), or a store of blocks
        float32 or float64, kept as it is (C order). The column of ones is virtual.
    labels : ndarray of shape (n,)
        class codes 0.0, 1.0, ...
    base_weight : ndarray of shape (n,)
        sample weights without class weights, non-negative, float64.
    intercept : bool
        whether the model fits one; it is then the last coordinate of a row.
    outputs : int
        M.
    """

    def __init__(
        self, features: Any, labels: FloatArray, base_weight: FloatArray, *, intercept: bool, outputs: int = 1
    ) -> None:
        kept: Any = features if hasattr(features, "bounds") else MemoryStore(features, intercept)
        self.store: Store = kept
        self.sparse = self.store.sparse
        self.n, self.features_in = self.store.shape
        self.intercept = intercept
        self.outputs = outputs
        self.coordinates = self.features_in + int(intercept)
        self.p = outputs * self.coordinates
        self.y = np.asarray(labels, dtype=np.float64)
        self.base_weight = np.asarray(base_weight, dtype=np.float64)
        self._starts = np.array([start for start, _ in self.store.bounds])
        self._sampled: dict[int, Any] = {}
        self._picks = Picks(self.store, self.coordinates, keep=not self.held)

    def relabelled(self, index: IntArray, label: IntArray | None = None) -> Rows:
        """The same rows with the labels at ``index`` changed, to the other of two by default; features are shared."""
        other = copy.copy(self)
        other.y = self.y.copy()
        other.y[index] = 1.0 - other.y[index] if label is None else label
        return other

    def of_one_output(self) -> Rows:
        """The same rows for a model of one output; the features are shared."""
        other = copy.copy(self)
        other.outputs, other.p = 1, self.coordinates
        return other

    def side_by_side(self, theta: FloatArray) -> FloatArray:
        """Coefficients of all outputs next to one another: (p, B) to (coordinates, M B)."""
        if self.outputs == 1:
            return theta
        apart = theta.reshape(self.outputs, self.coordinates, -1).transpose(1, 0, 2)
        return np.ascontiguousarray(apart).reshape(self.coordinates, -1)

    def stacked(self, columns: FloatArray) -> FloatArray:
        """The way back from `side_by_side`: (coordinates, M B) to (p, B)."""
        if self.outputs == 1:
            return columns
        apart = columns.reshape(self.coordinates, self.outputs, -1).transpose(1, 0, 2)
        return np.ascontiguousarray(apart).reshape(self.p, -1)

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

    @contextmanager
    def telling(self, progress: Progress | None) -> Iterator[Progress | None]:
        """Tell ``progress`` of passes that last, for None whoever is told already; yields who is told."""
        before = self.store.progress
        self.store.progress = progress or before
        try:
            yield self.store.progress
        finally:
            self.store.progress = before

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
        join : tuple of {"sum", "min", "max", "larger"}
            how each item of the results is joined (`store.JOINS`).
        along : sequence of arrays whose first axis is n, or of what was kept
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

    def keep(self, step: Step, *arguments: Any, along: Sequence[Any] = ()) -> Kept:
        """Run ``step(block, *slices, *arguments)`` on every block and leave what it returns where the blocks are.

        It is passed ``along`` to other steps, which do not write to it. A step returns arrays, or tuples of them.
        """
        return self.store.keep(step, self._calls(None), along, arguments)

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
        """``X @ theta`` in float64: (p,) to (n M,), or (p, B) to (n M, B)."""
        columns = self.side_by_side(theta.reshape(self.p, -1))
        out = self.collect(steps.margins, columns, out=np.empty((self.n, columns.shape[1])))
        return np.asarray(out.reshape((self.n * self.outputs, *theta.shape[1:])))

    def pull(self, residual: FloatArray) -> FloatArray:
        """``X' @ residual`` in float64: (n M,) to (p,), or (n M, B) to (p, B)."""
        columns = residual.reshape(self.n, -1)
        (out,) = self._reduced(steps.pull, along=(columns,), join=("sum",))
        return np.asarray(self.stacked(out).reshape((self.p, *residual.shape[1:])))

    def normal(self, diagonal: FloatArray, theta: FloatArray) -> FloatArray:
        """``X' diag(diagonal) X @ theta`` in one pass: (n,) and (p, B) to (p, B)."""
        return np.asarray(self._reduced(steps.normal, theta, along=(diagonal,), join=("sum",))[0])

    def gram(self, diagonal: FloatArray) -> FloatArray:
        """``X' diag(diagonal) X`` over the coordinates of a row, for a non-negative diagonal of shape (n,)."""
        if self.sparse:
            return np.asarray(self.sparse_gram(diagonal).toarray())
        inner, pulled = self._reduced(steps.gram, along=(diagonal,), join=("sum", "sum"))
        if not self.intercept:
            return np.asarray(inner)
        out = np.empty((self.coordinates, self.coordinates))
        out[:-1, :-1] = inner
        out[-1] = out[:, -1] = pulled[:, 0]
        return out

    def sparse_gram(self, diagonal: FloatArray) -> Any:
        """`gram` of sparse rows as a CSR matrix."""
        inner, pulled = self._reduced(steps.gram, along=(diagonal,), join=("sum", "sum"))
        if not self.intercept:
            return sp.csr_matrix(inner)
        edge = sp.csr_matrix(pulled[:-1])
        return sp.bmat([[inner, edge], [edge.T, sp.csr_matrix(pulled[-1:])]], format="csr")

    def part_gram(self, index: IntArray, diagonal: FloatArray) -> FloatArray:
        """`gram` over the rows at ``index`` (ascending), diagonal >= 0."""
        found = self.reduce(steps.part_gram, each=self.split(index, diagonal), join=("sum",))
        if found is None:
            return np.zeros((self.coordinates, self.coordinates))
        return np.asarray(found[0].toarray() if sp.issparse(found[0]) else found[0])

    def spread(
        self, index: IntArray, column: IntArray, amount: FloatArray, width: int, output: IntArray | None = None
    ) -> FloatArray:
        """Sum ``amount_j x_j`` over rows ``index_j`` into column ``column_j`` of an output's, shape (p, width)."""
        if not len(index):
            return np.zeros((self.p, width))
        order = np.argsort(index, kind="stable")
        index, amount = index[order], amount[order]
        place = (column if output is None else output * width + column)[order]
        taken = self._picks.of(index, self.take)
        found: Any
        if taken is None:
            each = self.split(index, place, amount)
            (found,) = self.reduce(steps.spread, self.outputs * width, join=("sum",), each=each) or (None,)
        else:  # the same sums in the same order as where the blocks are
            folding = Fold(("sum",))
            number = np.searchsorted(self._starts, index, side="right") - 1
            for block, part in steps.spread_taken(taken, number, place, amount, self.outputs * width):
                folding.add(block, (part,))
            (found,) = folding.result() or (None,)
        return self.stacked(np.asarray(found))

    def column_squares(self, diagonal: FloatArray) -> FloatArray:
        """Diagonal of ``X' diag(diagonal) X`` over the coordinates of a row, for a diagonal of shape (n,)."""
        return np.asarray(self._reduced(steps.column_squares, along=(diagonal,), join=("sum",))[0])

    def square_norms(self) -> FloatArray:
        """Squared Euclidean norms of the rows, the one included, shape (n,)."""
        return np.asarray(self.collect(steps.square_norms, out=np.empty(self.n)))

    def forms(self, basis: FloatArray, functions: FloatArray) -> FloatArray:
        """``(X @ basis)^2 @ functions``: (p, q) and (q,) or (q, r) to (n,) or (n, r)."""
        return np.asarray(self.collect(steps.forms, basis, functions, out=np.empty((self.n, *functions.shape[1:]))))

    def take(self, index: IntArray) -> Any:
        """Rows at ``index`` in float64 with the column of ones: ndarray or CSR of shape (len(index), coordinates)."""
        index = np.asarray(index)
        if self.held:
            return RowBlock(self.features, self.intercept).take(index)
        ascending = bool(np.all(index[1:] >= index[:-1]))
        order = None if ascending else np.argsort(index, kind="stable")
        each = self.split(index if order is None else index[order])
        parts = list(self.store.map(steps.take, self._calls(each), (), ()))
        if not parts:
            return sp.csr_matrix((0, self.coordinates)) if self.sparse else np.zeros((0, self.coordinates))
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
        """Rows at ``index`` dense and turned, shape (coordinates, len(index))."""
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
