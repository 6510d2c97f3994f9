"""The passes of the simultaneous refits over the rows, block by block (see `simultaneous`).

A pass needs, for every row and column, the margin z, its image along the descent direction and the response, which
are products. Where they fit in memory they are kept beside the rows between passes (`refit_rows.Kept`); where they do
not, or the rows are in other processes, every pass computes them anew from the columns' coefficients, by one wider
product. Curvature weights follow from z, and the reference's are the fitted point's but for some rows of some columns.

Coefficients come side by side, shape (coordinates, M B), the B columns of each of M outputs next to one another, so
that a product of shape (rows, M B) is also one of shape (rows M, B): a line for every row and output (`likelihood`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mlflow_relabel_audit.flips.refit.reference import SPECTRAL_LEVELS
from mlflow_relabel_audit.flips.refit.rows import OwnCells, RefitRows, Weighing
from mlflow_relabel_audit.likelihood import Likelihood
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, narrow

TINY = float(np.finfo(float).tiny)
Pass = Callable[..., tuple[FloatArray, ...]]
"""``work(block, rows, *arguments)``, the rows a block's `RefitRows`."""


def over(
    block: RowBlock,
    own: OwnCells,
    y: FloatArray,
    base: FloatArray,
    weight: FloatArray,
    fitted: FloatArray,
    squares: FloatArray,
    work: Pass,
    weighing: Weighing,
    *arguments: Any,
) -> tuple[FloatArray, ...]:
    """The step of every pass: ``work(block, rows, *arguments)`` on a block's rows."""
    by_line = (weight.ravel(), fitted.ravel(), squares.ravel())
    rows = RefitRows(y, base, *by_line, weighing, own.relabelled, own.reference, own.kept, own.ticket)
    return work(block, rows, *arguments)


def evaluate(
    block: RowBlock, rows: RefitRows, theta: FloatArray, step: FloatArray | None, u: FloatArray
) -> tuple[FloatArray, ...]:
    """Gradient of the loss, and the sums of the sign proof, at ``theta``.

    What is kept is moved by ``step`` times its image first. Returns the pull of the residual, side by side; Q and C
    (B,); what the curvature falls short of each spectral level (levels, B); the least ratio of curvatures (B,).
    """
    likelihood, columns = rows.weighing.likelihood, theta.shape[1]
    width = columns // rows.outputs
    gradient = np.zeros(theta.shape)
    q, c = np.zeros(width), np.zeros(width)
    least = np.ones(width)
    short = np.zeros((len(SPECTRAL_LEVELS), width))
    both = None if rows.kept is not None else np.concatenate([theta, u], axis=1)
    for _, piece, part in rows.pieces(block, 3 * columns):
        if part.kept is not None:
            z, response = part.kept.z, part.kept.response
            if step is not None:
                z += step * part.kept.image
        else:
            assert both is not None
            product = piece.margins(both)
            z, response = product[:, :columns].reshape(-1, width), product[:, columns:].reshape(-1, width)
        curvature = np.empty(z.shape)
        gradient += piece.pull(part.residual(z, curvature).reshape(-1, columns))
        _prove_sums(likelihood, curvature, part.references(width), response, part.squares, q, c, least, short)
    return gradient, q, c, short, least


EVALUATED = ("sum", "sum", "sum", "sum", "min")


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
    scratch, held = np.ones_like(curvature), reference > 0
    np.divide(curvature, reference, out=scratch, where=True if held.all() else held)  # a mask takes twice as long
    np.minimum(least, narrow.least(scratch), out=least)
    for level, value in enumerate(SPECTRAL_LEVELS):
        np.subtract(value * reference, curvature, out=scratch)
        np.maximum(scratch, 0.0, out=scratch)
        short[level] += squares @ scratch
    away = likelihood.difference(reference, curvature, response, weighted)
    away *= away
    with np.errstate(over="ignore"):  # a row whose curvature is gone: nothing can be proved, and inf says so
        np.maximum(curvature, TINY, out=scratch)
        away /= scratch
        q += narrow.sums(away)


def bend(block: RowBlock, rows: RefitRows, theta: FloatArray, direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Second derivative of the loss along the direction (B,), and the largest move of a row (B,)."""
    width = theta.shape[1] // rows.outputs
    total, longest = np.zeros(width), np.zeros(width)
    for part, image, z in _images(block, rows, theta, direction, reuse=False):
        scaled = rows.weighing.likelihood.product(part.curvature(z), image)
        total += np.einsum("ij,ij->j", scaled, image)
        np.maximum(longest, narrow.largest(np.abs(image)), out=longest)
    return total, longest


def slope(
    block: RowBlock, rows: RefitRows, theta: FloatArray, direction: FloatArray, step: FloatArray, slots: IntArray
) -> tuple[FloatArray, FloatArray]:
    """First and second derivative of the loss of the columns ``slots`` at ``step`` along the direction, each (b,)."""
    few, likelihood = rows.among(slots, theta.shape[1] // rows.outputs), rows.weighing.likelihood
    first, second = np.zeros(len(slots)), np.zeros(len(slots))
    if rows.kept is None:
        columns = rows.weighing.columns(slots, theta.shape[1] // rows.outputs)
        theta, direction, slots = theta[:, columns], direction[:, columns], np.arange(len(slots))
    for part, image, z in _images(block, few, theta, direction, reuse=True):
        image, z = image[:, slots], z[:, slots]
        curvature = np.empty(image.shape)
        here = part.residual(z + step * image, curvature)
        first += np.einsum("ij,ij->j", here, image)
        second += np.einsum("ij,ij->j", likelihood.product(curvature, image), image)
    return first, second


def _images(
    block: RowBlock, rows: RefitRows, theta: FloatArray, direction: FloatArray, *, reuse: bool
) -> Iterator[tuple[RefitRows, FloatArray, FloatArray]]:
    """Yield each piece's rows, their image along the direction and z."""
    columns = theta.shape[1]
    width = columns // rows.outputs
    both = None if rows.kept is not None else np.concatenate([direction, theta], axis=1)
    for _, piece, part in rows.pieces(block, 3 * columns):
        if part.kept is None:
            assert both is not None
            product = piece.margins(both)
            yield part, product[:, :columns].reshape(-1, width), product[:, columns:].reshape(-1, width)
            continue
        image = part.kept.image
        if not reuse:
            piece.margins(direction, out=image.reshape(-1, columns))
        yield part, image, part.kept.z
