"""What is asked of one block of rows; functions of a module, so that they can run in another process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows.block import RowBlock
from mlflow_relabel_audit.rows.store import Step

PICKED = 2**16
"""Entries of picked rows that are worked on at once."""
SPARSE_PICKED = 2**13
"""Picked rows that are, where they are sparse."""


def picks_rows(step: Step) -> Step:
    """Mark a step that asks a block for single rows only, or for none, so that the others need not be read."""
    step.picks_rows = True  # type: ignore[attr-defined]
    return step


def margins(block: RowBlock, out: FloatArray, theta: FloatArray) -> None:
    """``X @ theta`` into ``out``."""
    for within, piece in block.pieces():
        piece.margins(theta, out=out[within])


def pull(block: RowBlock, residual: FloatArray) -> tuple[FloatArray]:
    """``X' @ residual``."""
    out = np.zeros((block.p, residual.shape[1]))
    for within, piece in block.pieces():
        out += piece.pull(residual[within])
    return (out,)


def normal(block: RowBlock, diagonal: FloatArray, theta: FloatArray) -> tuple[FloatArray]:
    """``X' diag(diagonal) X @ theta``."""
    out = np.zeros(theta.shape)
    for within, piece in block.pieces():
        out += piece.pull(diagonal[within, None] * piece.margins(theta))
    return (out,)


def gram(block: RowBlock, diagonal: FloatArray) -> tuple[Any, FloatArray]:
    """``X' diag(diagonal) X`` of the features, and their pull of the diagonal."""
    if block.sparse:
        features = block.features.astype(np.float64, copy=False)
        inner: Any = features.T @ features.multiply(diagonal[:, None]).tocsr()
        return inner, pull(block, diagonal[:, None])[0]
    root = np.sqrt(diagonal)
    width = block.features.shape[1]
    inner = np.zeros((width, width))
    pulled = np.zeros((block.p, 1))
    length = max(256, block.piece_length())
    buffer = np.empty((min(length, block.rows), width))
    for within, piece in block.pieces(length):
        scaled = np.multiply(piece.features, root[within, None], out=buffer[: piece.rows])
        inner += scaled.T @ scaled
        pulled += piece.pull(diagonal[within, None])
    return inner, pulled


@picks_rows
def part_gram(block: RowBlock, index: IntArray, diagonal: FloatArray) -> tuple[Any]:
    """``X_S' diag(diagonal) X_S`` over the rows at ``index``, ones included, by a symmetric product."""
    out: Any = 0.0 if block.sparse else np.zeros((block.p, block.p))
    width = block.features.shape[1]
    # a copy of so many rows at a time, not of them all
    length = SPARSE_PICKED if block.sparse else max(128, PICKED // block.p)
    for start in range(0, len(index), length):
        some = slice(start, start + length)
        root = np.sqrt(diagonal[some])
        if block.sparse:
            part = block.take(index[some]).multiply(root[:, None]).tocsr()
            out = part.T @ part if start == 0 else out + part.T @ part
            continue
        part = block.features[index[some]].astype(np.float64, copy=False)
        part *= root[:, None]
        out[:width, :width] += part.T @ part
        if block.intercept:  # the column of ones is not copied beside dense rows
            out[-1] += np.append(root @ part, root @ root)
    if block.intercept and not block.sparse:
        out[:-1, -1] = out[-1, :-1]
    return (out,)


@picks_rows
def spread(block: RowBlock, index: IntArray, column: IntArray, amount: FloatArray, width: int) -> tuple[FloatArray]:
    """``sum of amount_j x_j`` over the rows at ``index``, gathered by ``column``, shape (p, width)."""
    out = np.zeros((block.p, width))
    length = _gathered_at_once(block.p, sparse=block.sparse)
    for start in range(0, len(index), length):
        some = slice(start, start + length)
        moved = _gathered(block.take(index[some]), column[some], amount[some], width)
        out += (moved.toarray() if sp.issparse(moved) else moved).T
    return (out,)


def spread_taken(
    taken: Any, number: IntArray, column: IntArray, amount: FloatArray, width: int
) -> Iterator[tuple[int, FloatArray]]:
    """What `spread` gives for each block, with its number, from the rows themselves and the rising numbers of theirs.

    All blocks are gathered by one product; a sum adds the same numbers in the same order, in the chunks of `spread`.
    """
    blocks, first, counts = np.unique(number, return_index=True, return_counts=True)
    length = _gathered_at_once(taken.shape[1], sparse=sp.issparse(taken))
    chunk = (np.arange(len(number)) - np.repeat(first, counts)) // length
    chunks = int(chunk.max()) + 1
    cells, line = np.unique((number * chunks + chunk) * width + column, return_inverse=True)
    moved = _gathered(taken, line, amount, len(cells))
    edges = np.append(np.searchsorted(cells, blocks * chunks * width), len(cells))
    for block, (low, high) in zip(blocks.tolist(), pairwise(edges.tolist()), strict=True):
        part = moved[low:high]
        part = part.toarray() if sp.issparse(part) else part
        out = np.zeros((taken.shape[1], width))
        np.add.at(out.T, cells[low:high] % width, part)
        yield block, out


def _gathered_at_once(p: int, *, sparse: bool) -> int:
    """Rows of one product that gathers them."""
    return SPARSE_PICKED if sparse else max(64, PICKED // p)


def _gathered(taken: Any, line: IntArray, amount: FloatArray, lines: int) -> Any:
    """Rows, times an amount each, summed into lines in their order."""
    size = len(line)
    if sp.issparse(taken):
        return sp.csr_matrix((amount, (line, np.arange(size))), shape=(lines, size)) @ taken
    return sp.csc_matrix((amount, line, np.arange(size + 1)), shape=(lines, size)) @ taken  # soonest made


def square_norms(block: RowBlock, out: FloatArray) -> None:
    """Squared norms of the rows, the one included."""
    for within, piece in block.pieces():
        part = piece.features
        square = part.multiply(part).sum(axis=1) if piece.sparse else np.einsum("ij,ij->i", part, part)
        out[within] = np.asarray(square).ravel()
    if block.intercept:
        out += 1.0


def column_squares(block: RowBlock, diagonal: FloatArray) -> tuple[FloatArray]:
    """Diagonal of ``X' diag(diagonal) X``."""
    out = np.zeros(block.p)
    features = block.features.shape[1]
    for within, piece in block.pieces():
        part = piece.features
        out[:features] += (part.multiply(part) if piece.sparse else part * part).T @ diagonal[within]
    if block.intercept:
        out[-1] = diagonal.sum()
    return (out,)


def quadratic(block: RowBlock, out: FloatArray, matrix: FloatArray) -> None:
    """``x_i' matrix x_i`` of every row into ``out``, not below zero."""
    for within, piece in block.pieces():
        part = piece.whole()
        turned = part @ matrix
        square = part.multiply(turned).sum(axis=1) if piece.sparse else np.einsum("ij,ij->i", part, turned)
        out[within] = np.maximum(np.asarray(square).ravel(), 0.0)


def lowest(block: RowBlock) -> tuple[float]:
    """The smallest entry of the features."""
    features = block.features
    return (float(features.min()) if min(features.shape) else 0.0,)


@picks_rows
def take(block: RowBlock, index: IntArray) -> Any:
    """Rows at ``index``."""
    return block.take(index)


@picks_rows
def cells(block: RowBlock, index: IntArray, column: IntArray, turned: FloatArray) -> FloatArray:
    """``x_j . turned_c`` of single cells, each summed by itself."""
    out = np.empty(len(index))
    length = block.piece_length() if block.sparse else max(64, PICKED // block.p)
    for start in range(0, len(index), length):
        some = slice(start, start + length)
        part, wanted = block.take(index[some]), column[some]
        if block.sparse:
            who = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
            terms = part.data * turned[wanted[who], part.indices]
            out[some] = np.bincount(who, weights=terms, minlength=part.shape[0])
        else:
            out[some] = np.einsum("ij,ij->i", part, turned[wanted])
    return out


def forms(block: RowBlock, out: FloatArray, basis: FloatArray, functions: FloatArray) -> None:
    """``(X @ basis)^2 @ functions`` into ``out``."""
    for within, piece in block.pieces():
        out[within] = piece.margins(basis) ** 2 @ functions


def digest(block: RowBlock) -> bytes:
    """SHA-256 of the block's entries."""
    features, out = block.features, hashlib.sha256()
    parts = [features.data, features.indices, features.indptr] if block.sparse else [features]
    for part in parts:
        if part.dtype.kind == "i":
            part = part.astype(np.int64, copy=False)
        out.update(str(part.dtype).encode())
        out.update(np.ascontiguousarray(part).data)
    return out.digest()
