"""The passes of the simultaneous refits over the rows, block by block (see `refit`).

A pass needs, for every row and column, the margin z, its image along the descent direction, the curvature weight,
the response and the reference weight. Where they fit in memory they are kept beside the rows between passes
(`Kept`); where they do not, or the rows are in other processes, every pass computes them anew from the columns'
coefficients, by one wider product.

Coefficients come side by side, shape (coordinates, M B), the B columns of each of M outputs next to one another, so
that a product of shape (rows, M B) is also one of shape (rows M, B): a line for every row and output (`likelihood`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.flips.reference import SPECTRAL_LEVELS
from mlflow_relabel_audit.likelihood import Likelihood
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

BYTES = 36
"""Of what is kept for one row and column."""
KEPT_BYTES = 2**28
"""What is kept beside the rows between passes at most; beyond that, passes compute it anew."""
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
    """What is kept beside the rows for each of B columns, every array of shape (n M, B)."""

    NAMES = ("z", "image", "curvature", "response", "reference")

    def __init__(
        self, z: FloatArray, image: FloatArray, curvature: FloatArray, response: FloatArray, reference: FloatArray
    ) -> None:
        self.z, self.image, self.curvature = z, image, curvature
        self.response, self.reference = response, reference

    @classmethod
    def empty(cls, lines: int, width: int, precision: type[np.floating[Any]]) -> Kept:
        """Zeros; the response in ``precision``."""
        z, image, curvature, reference = (np.zeros((lines, width)) for _ in range(4))
        return cls(z, image, curvature, np.zeros((lines, width), dtype=precision), reference)

    def part(self, start: int, stop: int) -> Kept:
        """The lines ``start:stop``, sharing memory."""
        return Kept(*(getattr(self, name)[start:stop] for name in self.NAMES))

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(int(getattr(self, name).nbytes) for name in self.NAMES)

    def columns(self, slots: IntArray) -> Kept:
        """Only these columns."""
        return Kept(*(np.ascontiguousarray(getattr(self, name)[:, slots]) for name in self.NAMES))


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
        low, high = np.searchsorted(self.row, (start, stop))
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


def residual(
    z: FloatArray,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    weighing: Weighing,
    relabelled: Cells,
    curvature: FloatArray,
) -> FloatArray:
    """``s (p - y)`` under each column's labels, shape (rows M, B); fills ``curvature`` with c (see `likelihood`)."""
    likelihood, by_class = weighing.likelihood, weighing.by_class
    weights = likelihood.weights(base, by_class, y) if weighing.balanced else weight[:, None]
    probability = likelihood.probability(z)
    out = probability - likelihood.targets(y)[:, None]
    out *= weights
    likelihood.fill_curvature(probability, weights, curvature)
    where, column, label = relabelled.row, relabelled.column, relabelled.value
    if where.size:
        outputs = likelihood.outputs
        lines, across = where[:, None] * outputs + np.arange(outputs), column[:, None]
        own = likelihood.cell_weights(base[where], by_class, label, column)
        at = probability[lines, across]
        out[lines, across] = own * (at - likelihood.targets(label).reshape(at.shape))
        curvature[lines, across] = likelihood.curvature(at, own)
    return np.asarray(out)


def evaluate(
    block: RowBlock,
    own: OwnCells,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    fitted: FloatArray,
    squares: FloatArray,
    theta: FloatArray,
    step: FloatArray | None,
    u: FloatArray,
    weighing: Weighing,
) -> tuple[FloatArray, ...]:
    """Gradient of the loss, and the sums of the sign proof, at ``theta``.

    What is kept is moved by ``step`` times its image first. Returns the pull of the residual, side by side; Q and C
    (B,); what the curvature falls short of each spectral level (levels, B); the least ratio of curvatures (B,).
    """
    width, kept = theta.shape[1] // weighing.likelihood.outputs, own.kept
    gradient = np.zeros(theta.shape)
    q, c = np.zeros(width), np.zeros(width)
    least = np.ones(width)
    short = np.zeros((len(SPECTRAL_LEVELS), width))
    both = None if kept is not None else np.concatenate([theta, u], axis=1)
    for within, piece in block.pieces(block.piece_length(3 * theta.shape[1])):
        lines = weighing.lines(within)
        if kept is not None:
            z, curvature = kept.z[lines], kept.curvature[lines]
            response, reference = kept.response[lines], kept.reference[lines]
            if step is not None:
                z += step * kept.image[lines]
        else:
            assert both is not None
            product = piece.margins(both)
            z = product[:, : theta.shape[1]].reshape(-1, width)
            response = product[:, theta.shape[1] :].reshape(-1, width)
            curvature = np.empty(z.shape)
            reference = references(fitted[within].ravel(), own.reference.part(lines.start, lines.stop), width)
        cells = own.relabelled.part(within.start, within.stop)
        here = residual(z, y[within], base[within], weight[within].ravel(), weighing, cells, curvature)
        gradient += piece.pull(here.reshape(-1, theta.shape[1]))
        _prove_sums(weighing.likelihood, curvature, reference, response, squares[within].ravel(), q, c, least, short)
    return gradient, q, c, short, least


EVALUATED = ("sum", "sum", "sum", "sum", "min")


def references(fitted: FloatArray, own: Cells, width: int) -> FloatArray:
    """Reference weights of every column: the fitted point's, and a column's own where it has any."""
    if not own.row.size:
        return fitted[:, None]
    out = np.repeat(fitted[:, None], width, axis=1)
    out[own.row, own.column] = own.value
    return out


def _prove_sums(
    likelihood: Likelihood,
    curvature: FloatArray,
    reference: FloatArray,
    response: FloatArray,
    squares: FloatArray,
    q: FloatArray,
    c: FloatArray,
    least: FloatArray,
    short: FloatArray,
) -> None:
    weighted = likelihood.product(curvature, response)
    c += np.einsum("ij,ij->j", weighted, response)
    ratio = np.divide(curvature, reference, out=np.ones_like(curvature), where=reference > 0)
    np.minimum(least, ratio.min(axis=0), out=least)
    for level, value in enumerate(SPECTRAL_LEVELS):
        short[level] += squares @ np.maximum(value * reference - curvature, 0.0)
    away = likelihood.difference(reference, curvature, response, weighted)
    away *= away
    with np.errstate(over="ignore"):  # a row whose curvature is gone: nothing can be proved, and inf says so
        np.divide(away, np.maximum(curvature, np.finfo(float).tiny), out=weighted)
        q += weighted.sum(axis=0)


def bend(
    block: RowBlock,
    own: OwnCells,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    direction: FloatArray,
    weighing: Weighing,
) -> tuple[FloatArray, FloatArray]:
    """Second derivative of the loss along the direction (B,), and the largest move of a row (B,)."""
    width = theta.shape[1] // weighing.likelihood.outputs
    total, longest = np.zeros(width), np.zeros(width)
    for cells, within, image, z in _images(block, own, theta, direction, weighing, reuse=False):
        if own.kept is not None:
            curvature = own.kept.curvature[weighing.lines(within)]
        else:
            curvature = np.empty(image.shape)
            residual(z, y[within], base[within], weight[within].ravel(), weighing, cells, curvature)
        scaled = weighing.likelihood.product(curvature, image)
        total += np.einsum("ij,ij->j", scaled, image)
        np.maximum(longest, np.abs(image).max(axis=0), out=longest)
    return total, longest


def slope(
    block: RowBlock,
    own: OwnCells,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    direction: FloatArray,
    step: FloatArray,
    slots: IntArray,
    weighing: Weighing,
) -> tuple[FloatArray, FloatArray]:
    """First and second derivative of the loss of the columns ``slots`` at ``step`` along the direction, each (b,)."""
    few, outputs = weighing.among(slots), weighing.likelihood.outputs
    width = theta.shape[1] // outputs
    first, second = np.zeros(len(slots)), np.zeros(len(slots))
    chosen = OwnCells(own.relabelled.among(slots, width), own.reference, own.kept)
    if own.kept is None:
        columns = weighing.columns(slots, width)
        theta, direction, slots = theta[:, columns], direction[:, columns], np.arange(len(slots))
    for cells, within, image, z in _images(block, chosen, theta, direction, weighing, reuse=True):
        image, z = image[:, slots], z[:, slots]
        curvature = np.empty(image.shape)
        place = z + step * image
        here = residual(place, y[within], base[within], weight[within].ravel(), few, cells, curvature)
        first += np.einsum("ij,ij->j", here, image)
        second += np.einsum("ij,ij->j", few.likelihood.product(curvature, image), image)
    return first, second


def _images(
    block: RowBlock, own: OwnCells, theta: FloatArray, direction: FloatArray, weighing: Weighing, *, reuse: bool
) -> Any:
    """Yield each piece's relabelled cells, place, image along the direction and z."""
    columns, kept = theta.shape[1], own.kept
    width = columns // weighing.likelihood.outputs
    both = None if kept is not None else np.concatenate([direction, theta], axis=1)
    for within, piece in block.pieces(block.piece_length(3 * columns)):
        cells, lines = own.relabelled.part(within.start, within.stop), weighing.lines(within)
        if kept is None:
            assert both is not None
            product = piece.margins(both)
            yield cells, within, product[:, :columns].reshape(-1, width), product[:, columns:].reshape(-1, width)
        elif reuse:
            yield cells, within, kept.image[lines], kept.z[lines]
        else:
            image = kept.image[lines]
            piece.margins(direction, out=image.reshape(-1, columns))
            yield cells, within, image, kept.z[lines]
