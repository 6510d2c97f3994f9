"""Training rows as simultaneous refits see them: relabelled, weighed and kept for each column (see `passes`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.likelihood import Likelihood
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

BYTES = 28
"""Of what is kept for one row and column at most."""
KEPT_BYTES = 2**28
"""What is kept beside the rows between passes at most; beyond that, passes compute it anew."""
MOVED_UP = 2**10
"""Lines of a table that are moved at once."""
EVEN = 0.6
"""Share of the shelves of all processes that is counted on: one may hold more of the rows than another."""


def keeps(rows: Rows, width: int) -> bool:
    """Whether what belongs to each row and column is kept between passes, by its size alone where there is room."""
    size = BYTES * rows.n * rows.outputs * width
    room = rows.store.room
    return rows.store.local and size <= (KEPT_BYTES if room is None else min(KEPT_BYTES, room // 2))


def columns_beside(rows: Rows) -> int:
    """Columns of which the other processes that hold the rows can keep what belongs to each row (see `beside`)."""
    return int(EVEN * rows.store.beside // (BYTES * max(rows.n, 1) * rows.outputs))


class Kept:
    """What is kept beside the rows for each of B columns, every array of shape (n M, B).

    The reference is there once a column has one of its own, where the columns are this process's.
    """

    NAMES = ("z", "image", "response", "reference")

    def __init__(
        self, z: FloatArray, image: FloatArray, response: FloatArray, reference: FloatArray | None = None
    ) -> None:
        self.z, self.image, self.response, self.reference = z, image, response, reference

    @classmethod
    def empty(cls, lines: int, width: int, precision: type[np.floating[Any]]) -> Kept:
        """Zeros; the response in ``precision``."""
        return cls(np.zeros((lines, width)), np.zeros((lines, width)), np.zeros((lines, width), dtype=precision))

    def part(self, start: int, stop: int) -> Kept:
        """The lines ``start:stop``, sharing memory."""
        return Kept(*(part[start:stop] for part in self._arrays()))

    def _arrays(self) -> list[FloatArray]:
        held = [getattr(self, name) for name in self.NAMES]
        return [part for part in held if part is not None]

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(int(part.nbytes) for part in self._arrays())

    def columns(self, slots: IntArray) -> Kept:
        """Only these columns."""
        return Kept(*(np.ascontiguousarray(part[:, slots]) for part in self._arrays()))

    def narrow(self, slots: IntArray) -> None:
        """Drop every column but these.

        In the memory that is held, for a copy beside it would be the most there ever is, until half of it can go.
        """
        for name in self.NAMES[: len(self._arrays())]:
            setattr(self, name, _moved_up(getattr(self, name), slots))


def _moved_up(table: FloatArray, slots: IntArray) -> FloatArray:
    """Columns ``slots`` of a contiguous table, at the beginning of its own memory, or in less of it by half."""
    lines, width = len(table), len(slots)
    out = table.reshape(-1)[: lines * width].reshape(lines, width)
    for start in range(0, lines, MOVED_UP):  # a line moves to where none is that has yet to move
        out[start : start + MOVED_UP] = table[start : start + MOVED_UP, slots]
    owner = table if table.base is None else table.base
    return out.copy() if 2 * out.size <= owner.size else out


@dataclass(frozen=True)
class Cells:
    """Values of single (row, column) cells, in the order of their rows."""

    row: IntArray
    column: IntArray
    value: FloatArray

    @classmethod
    def of(cls, index: Sequence[IntArray], value: Sequence[FloatArray] | None = None) -> Cells:
        """One list item per column: its rows and, where there are any, their values."""
        row = np.concatenate([np.zeros(0, dtype=np.int64), *index])
        column = np.repeat(np.arange(len(index)), [len(part) for part in index])
        order = np.argsort(row, kind="stable")
        values = np.zeros(len(row)) if value is None else np.concatenate([np.zeros(0), *value])
        return cls(row[order], column[order], values[order])

    def part(self, start: int, stop: int) -> Cells:
        """The cells of rows ``start:stop``, counted from ``start``."""
        if not self.row.size:
            return self
        low, high = self.row.searchsorted((start, stop))
        return Cells(self.row[low:high] - start, self.column[low:high], self.value[low:high])

    def among(self, slots: IntArray, width: int) -> Cells:
        """The cells of the columns ``slots``, which are then counted from 0."""
        place = np.full(width, -1)
        place[slots] = np.arange(len(slots))
        column = place[self.column]
        held = column >= 0
        return Cells(self.row[held], column[held], self.value[held])


@dataclass(frozen=True)
class Weighing:
    """How the rows weigh in each column's objective.

    Attributes
    ----------
    likelihood : Separate or Coupled
    by_class : ndarray of shape (2, M, B) or (K, 1, B)
        class weights under each column's relabelled set.
    balanced : bool
        whether they differ between columns.
    """

    likelihood: Likelihood
    by_class: FloatArray
    balanced: bool

    def among(self, slots: IntArray) -> Weighing:
        """Of these columns."""
        return Weighing(self.likelihood, self.by_class[..., slots], self.balanced)

    def columns(self, slots: IntArray, width: int) -> IntArray:
        """Where the coefficients of some columns are among those of all ``width``, side by side."""
        return np.asarray((np.arange(self.likelihood.outputs)[:, None] * width + slots).ravel())

    def lines(self, within: slice) -> slice:
        """The lines of some rows, one for every output."""
        return slice(within.start * self.likelihood.outputs, within.stop * self.likelihood.outputs)


@dataclass(frozen=True)
class Ticket:
    """Which moment of which refits a pass over the rows from ``start`` on is about (see `beside`).

    Attributes
    ----------
    search : str
        names the refits.
    start : int
    marks : ndarray of shape (B,)
        of the columns; another one once a column is loaded, restarted or given another reference.
    moves : int
        how often all columns have been moved, by this pass too.
    """

    search: str
    start: int
    marks: IntArray
    moves: int


@dataclass(frozen=True)
class OwnCells:
    """What one block is told beside its rows: relabelled cells and their labels, own references, what is kept."""

    relabelled: Cells
    reference: Cells
    kept: Kept | None
    ticket: Ticket | None = None


@dataclass(frozen=True)
class RefitRows:
    """Some rows as the refits of B columns see them: a block's, or a piece's of it.

    Attributes
    ----------
    y, base : ndarray of shape (rows,)
        labels as they were given, and weights without class weights.
    weight, fitted, squares : ndarray of shape (rows M,)
        weights, curvature weights at the fitted point, and squared row norms.
    weighing : Weighing
    relabelled : Cells
        by row.
    reference : Cells
        by line; see `Weighing.lines`.
    kept : Kept or None
    ticket : Ticket or None
        of a whole block.
    """

    y: FloatArray
    base: FloatArray
    weight: FloatArray
    fitted: FloatArray
    squares: FloatArray
    weighing: Weighing
    relabelled: Cells
    reference: Cells
    kept: Kept | None
    ticket: Ticket | None = None

    @property
    def outputs(self) -> int:
        """M."""
        return self.weighing.likelihood.outputs

    def part(self, within: slice) -> RefitRows:
        """The rows ``within``, sharing memory."""
        lines = self.weighing.lines(within)
        return RefitRows(
            self.y[within], self.base[within], self.weight[lines], self.fitted[lines], self.squares[lines],
            self.weighing, self.relabelled.part(within.start, within.stop),
            self.reference.part(lines.start, lines.stop),
            None if self.kept is None else self.kept.part(lines.start, lines.stop),
        )  # fmt: skip

    def among(self, slots: IntArray, width: int) -> RefitRows:
        """The same rows for the refits of some of ``width`` columns; what is kept stays whole."""
        return dataclasses.replace(
            self,
            weighing=self.weighing.among(slots),
            relabelled=self.relabelled.among(slots, width),
            reference=self.reference.among(slots, width),
        )

    def with_kept(self, kept: Kept) -> RefitRows:
        """The same with something kept."""
        return dataclasses.replace(self, kept=kept)

    def pieces(self, block: RowBlock, columns: int) -> Iterator[tuple[slice, RowBlock, RefitRows]]:
        """Yield the lines, the features and the rows of pieces that ``columns`` values per row fit beside."""
        for within, piece in block.pieces(block.piece_length(columns)):
            yield self.weighing.lines(within), piece, self.part(within)

    def residual(self, z: FloatArray, curvature: FloatArray) -> FloatArray:
        """``s (p - y)`` under each column's labels, shape (rows M, B); fills ``curvature`` with c (`likelihood`)."""
        likelihood = self.weighing.likelihood
        probability, weights, cells = self._curve(z, curvature)
        out = probability - likelihood.targets(self.y)[:, None]
        out *= weights
        if cells is not None:
            lines, across, at, own = cells
            out[lines, across] = own * (at - likelihood.targets(self.relabelled.value).reshape(at.shape))
        return np.asarray(out)

    def curvature(self, z: FloatArray) -> FloatArray:
        """Curvature weights under each column's labels, shape (rows M, B)."""
        out = np.empty(z.shape)
        self._curve(z, out)
        return out

    def _curve(
        self, z: FloatArray, curvature: FloatArray
    ) -> tuple[FloatArray, FloatArray, tuple[IntArray, IntArray, FloatArray, FloatArray] | None]:
        """Fill ``curvature``; returns probabilities, the weights at the labels as they were given, relabelled cells.

        Those by line and column, with their probabilities and weights, shape (cells, M).
        """
        likelihood, by_class = self.weighing.likelihood, self.weighing.by_class
        weights = likelihood.weights(self.base, by_class, self.y) if self.weighing.balanced else self.weight[:, None]
        probability = likelihood.probability(z)
        likelihood.fill_curvature(probability, weights, curvature)
        where, column, label = self.relabelled.row, self.relabelled.column, self.relabelled.value
        if not where.size:
            return probability, weights, None
        lines, across = where[:, None] * self.outputs + np.arange(self.outputs), column[:, None]
        own = likelihood.cell_weights(self.base[where], by_class, label, column)
        at = probability[lines, across]
        curvature[lines, across] = likelihood.curvature(at, own)
        return probability, weights, (lines, across, at, own)

    def references(self, width: int) -> FloatArray:
        """Reference weights of every column: the fitted point's, and a column's own where it has any."""
        if self.kept is not None and self.kept.reference is not None:
            return self.kept.reference
        own = self.reference
        if not own.row.size:
            return self.fitted[:, None]
        out = np.repeat(self.fitted[:, None], width, axis=1)
        out[own.row, own.column] = own.value
        return out
