"""The passes of the simultaneous refits over the rows, block by block (see `refit`).

A pass needs, for every row and column, the margin z, its image along the descent direction, the curvature weight,
the response and the reference weight. Where they fit in memory they are kept beside the rows between passes
(`Kept`); where they do not, or the rows are in other processes, every pass computes them anew from the columns'
coefficients, by one wider product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.curvature.stationary import sigmoid
from mlflow_relabel_audit.flips.reference import SPECTRAL_LEVELS
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock

BYTES = 36
"""Of what is kept for one row and column."""


class Kept:
    """What is kept beside the rows for each of B columns, every array of shape (n, B)."""

    NAMES = ("z", "image", "curvature", "response", "reference")

    def __init__(
        self, z: FloatArray, image: FloatArray, curvature: FloatArray, response: FloatArray, reference: FloatArray
    ) -> None:
        self.z, self.image, self.curvature = z, image, curvature
        self.response, self.reference = response, reference

    @classmethod
    def empty(cls, n: int, width: int) -> Kept:
        """Zeros; the response, an upper bound, in float32."""
        z, image, curvature, reference = (np.zeros((n, width)) for _ in range(4))
        return cls(z, image, curvature, np.zeros((n, width), dtype=np.float32), reference)

    def part(self, start: int, stop: int) -> Kept:
        """The rows ``start:stop``, sharing memory."""
        return Kept(*(getattr(self, name)[start:stop] for name in self.NAMES))

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
    def of(cls, index: list[IntArray], value: list[FloatArray] | None = None) -> Cells:
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
    by_class : ndarray of shape (2, B)
        class weights under each column's relabelled set.
    balanced : bool
        whether they differ between columns.
    """

    by_class: FloatArray
    balanced: bool


@dataclass(frozen=True)
class OwnCells:
    """What one block is told beside its rows: the relabelled cells, own reference weights, what is kept."""

    relabelled: Cells
    reference: Cells
    kept: Kept | None


def residual(
    z: FloatArray,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    weighing: Weighing,
    relabelled: Cells,
    curvature: FloatArray,
) -> FloatArray:
    """``s (sigma(z) - y)`` under each column's labels; fills ``curvature`` with ``s sigma(z) sigma(-z)``."""
    by_class = weighing.by_class
    weights = base[:, None] * by_class[y.astype(np.intp)] if weighing.balanced else weight[:, None]
    probability = sigmoid(z)
    out = probability - y[:, None]
    out *= weights
    np.multiply(probability, 1.0 - probability, out=curvature)
    curvature *= weights
    where, column = relabelled.row, relabelled.column
    if where.size:
        flipped = 1.0 - y[where]
        own = base[where] * by_class[flipped.astype(np.intp), column]
        at = probability[where, column]
        out[where, column] = own * (at - flipped)
        curvature[where, column] = own * at * (1.0 - at)
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

    What is kept is moved by ``step`` times its image first. Returns the pull of the residual (p, B); Q and C (B,);
    what the curvature falls short of each spectral level (levels, B); the least ratio of curvatures (B,).
    """
    width, kept = theta.shape[1], own.kept
    gradient = np.zeros(theta.shape)
    q, c = np.zeros(width), np.zeros(width)
    least = np.ones(width)
    short = np.zeros((len(SPECTRAL_LEVELS), width))
    both = None if kept is not None else np.concatenate([theta, u], axis=1)
    for within, piece in block.pieces(block.piece_length(3 * width)):
        if kept is not None:
            z, curvature = kept.z[within], kept.curvature[within]
            response, reference = kept.response[within], kept.reference[within]
            if step is not None:
                z += step * kept.image[within]
        else:
            assert both is not None
            product = piece.margins(both)
            z, response = product[:, :width], np.abs(product[:, width:])
            curvature = np.empty(z.shape)
            reference = _reference(fitted[within], own.reference.part(within.start, within.stop), width)
        cells = own.relabelled.part(within.start, within.stop)
        gradient += piece.pull(residual(z, y[within], base[within], weight[within], weighing, cells, curvature))
        _prove_sums(curvature, reference, response, squares[within], q, c, least, short)
    return gradient, q, c, short, least


EVALUATED = ("sum", "sum", "sum", "sum", "min")


def _reference(fitted: FloatArray, own: Cells, width: int) -> FloatArray:
    """Reference weights of every column: the fitted point's, and a column's own where it has any."""
    if not own.row.size:
        return fitted[:, None]
    out = np.repeat(fitted[:, None], width, axis=1)
    out[own.row, own.column] = own.value
    return out


def _prove_sums(
    curvature: FloatArray,
    reference: FloatArray,
    response: FloatArray,
    squares: FloatArray,
    q: FloatArray,
    c: FloatArray,
    least: FloatArray,
    short: FloatArray,
) -> None:
    weighted = curvature * response
    c += np.einsum("ij,ij->j", weighted, response)
    ratio = np.divide(curvature, reference, out=np.ones_like(curvature), where=reference > 0)
    np.minimum(least, ratio.min(axis=0), out=least)
    for level, value in enumerate(SPECTRAL_LEVELS):
        short[level] += squares @ np.maximum(value * reference - curvature, 0.0)
    away = reference - curvature
    away *= response
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
    width = theta.shape[1]
    total, longest = np.zeros(width), np.zeros(width)
    for cells, within, image, z in _images(block, own, theta, direction, reuse=False):
        if own.kept is not None:
            curvature = own.kept.curvature[within]
        else:
            curvature = np.empty(image.shape)
            residual(z, y[within], base[within], weight[within], weighing, cells, curvature)
        scaled = curvature * image
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
    few = Weighing(weighing.by_class[:, slots], weighing.balanced)
    first, second = np.zeros(len(slots)), np.zeros(len(slots))
    chosen = OwnCells(own.relabelled.among(slots, theta.shape[1]), own.reference, own.kept)
    if own.kept is None:
        theta, direction, slots = theta[:, slots], direction[:, slots], np.arange(len(slots))
    for cells, within, image, z in _images(block, chosen, theta, direction, reuse=True):
        image, z = image[:, slots], z[:, slots]
        curvature = np.empty(image.shape)
        here = residual(z + step * image, y[within], base[within], weight[within], few, cells, curvature)
        first += np.einsum("ij,ij->j", here, image)
        curvature *= image
        second += np.einsum("ij,ij->j", curvature, image)
    return first, second


def _images(block: RowBlock, own: OwnCells, theta: FloatArray, direction: FloatArray, *, reuse: bool) -> Any:
    """Yield each piece's relabelled cells, place, image along the direction and z."""
    width, kept = theta.shape[1], own.kept
    both = None if kept is not None else np.concatenate([direction, theta], axis=1)
    for within, piece in block.pieces(block.piece_length(3 * width)):
        cells = own.relabelled.part(within.start, within.stop)
        if kept is None:
            assert both is not None
            product = piece.margins(both)
            yield cells, within, product[:, :width], product[:, width:]
        elif reuse:
            yield cells, within, kept.image[within], kept.z[within]
        else:
            yield cells, within, piece.margins(direction, out=kept.image[within]), kept.z[within]
