"""Influences ranked where the rows are: in other processes, or on disk (see `heads`)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.flips.order.heads import (
    BINS,
    EIGHTH,
    INFINITE_BITS,
    OCTAVE,
    TINY_BITS,
    Found,
    apiece,
    between,
    bits_of,
    census,
    floors,
    positive,
    reaching,
    stride_of,
)
from mlflow_relabel_audit.flips.relabelling import Gain, RelabelEffect
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows
from mlflow_relabel_audit.rows.shelf import SHELF

FETCHED = 2**16
"""Influences of one bin that are sorted rather than counted in finer bins."""
MARGIN = 2**12
"""Steps of a float32 by which a bin is widened when it is looked into: a product's rounding hangs on its company."""
MOST_ROUNDS = 8
PROBABLY = 1.15
"""Times the goal that the sample is asked for, so that no second count is needed."""
LEAST_PIECE = 1024
"""Rows of a piece that is multiplied at once, at least: fewer are lost on calls."""
SHELVED = 0.6
"""Share of the shelves of all processes that the influences of one block of predictions may take."""


def shelved_width(rows: Rows) -> int:
    """Predictions whose influences the processes that hold the rows can keep between passes."""
    return int(SHELVED * rows.store.beside) // (4 * max(rows.n, 1))


class Apart:
    """Influences that are worked out where the rows are.

    The processes that hold them keep what they worked out for the questions to come, where it fits there; it is worked
    out anew where it is not found, as it is where the rows are read from disk.

    Parameters
    ----------
    rows : Rows
    effect : RelabelEffect
    narrow : ndarray of shape (coordinates, M, B), float32
        directions toward the flip, of every output.
    shift : ndarray
        of `RelabelEffect.shift`.
    """

    def __init__(self, rows: Rows, effect: RelabelEffect, narrow: FloatArray, shift: FloatArray) -> None:
        self.n, self.stride = rows.n, stride_of(rows.n)
        self._rows, self._narrow, self._shift = rows, narrow, shift
        self._gain, self._along = effect.gain, effect.along(np.float32)
        product = np.ascontiguousarray(np.asarray(rows.every(self.stride) @ _columns(narrow)).T)
        response = _by_output(product.astype(np.float32), narrow.shape[1])
        values = self._gain.best([part[:: self.stride] for part in self._along], response, shift)
        self.sample: FloatArray = -np.sort(-values, axis=1)
        width = narrow.shape[2]
        self._reachable = np.full(width, np.nan)
        self._kept = uuid.uuid4().hex if width <= shelved_width(rows) else None
        self._counted: dict[tuple[int, ...], tuple[IntArray, FloatArray]] = {}

    def _asked(self, step: Any, some: IntArray, *arguments: Any, sums: int) -> Any:
        """What a step says of all blocks: cells of all of them, and so many sums."""
        given = (self._gain, self._narrow[..., some], self._shift[some], *arguments)
        ticket = Ticket(self._kept, some, len(some) == len(self._reachable))
        found = self._rows.reduce(
            step, ticket, *given, along=self._along, each=lambda start, _: (start,), join=("sum",) * (1 + sums)
        )
        assert found is not None
        return found

    def reaching(self, some: IntArray, floor: FloatArray, beyond: FloatArray) -> Found:
        """See `Influences`."""
        deep = np.flatnonzero(beyond > 0)
        low = self._lowest(some[deep], beyond[deep])
        cells, self._reachable[some[deep]], counts, totals = self._asked(reaching_there, some, floor, deep, low, sums=3)
        for t, first, count, total in zip(some[deep].tolist(), low.tolist(), counts, totals, strict=True):
            self._counted[t, first, INFINITE_BITS, EIGHTH] = count, total
        return _joined(cells)

    def depths(self, some: IntArray, goal: FloatArray) -> IntArray:
        """See `Influences`."""
        found = np.zeros(len(some), dtype=np.int64)
        waiting = np.flatnonzero(~(1.001 * self._reachable[some] <= goal))  # also those of which it is not known
        low = self._lowest(some, goal)
        high, shift = np.full(len(some), INFINITE_BITS), np.full(len(some), EIGHTH)
        narrow: list[int] = []
        for _ in range(MOST_ROUNDS):
            if not waiting.size:
                break
            counts, sums = self._census(some[waiting], low[waiting], high[waiting], shift[waiting])
            place = (np.cumsum(sums[:, ::-1], axis=1) <= goal[waiting, None]).sum(axis=1)
            wide: list[int] = []
            for t, down, count in zip(waiting.tolist(), place, counts, strict=True):
                if 0 < down <= BINS:
                    there = BINS - down
                    first = low[t] + (there << shift[t])
                    if there < BINS - 1:
                        high[t] = min(high[t], first + (1 << shift[t]) + MARGIN)
                    low[t] = max(first - MARGIN, TINY_BITS)
                    done = there == BINS - 1 or count[there] <= FETCHED or 1 << shift[t] <= MARGIN
                    (narrow if done else wide).append(t)
                    shift[t] -= 8
                elif low[t] > TINY_BITS:  # all of these do not reach: count from the least float on
                    low[t], high[t], shift[t] = TINY_BITS, INFINITE_BITS, OCTAVE
                    wide.append(t)
            waiting = np.asarray(wide, dtype=np.intp)
        if narrow:
            chosen = np.asarray(narrow)
            cells, above, over = self._asked(between_there, some[chosen], low[chosen], high[chosen], sums=2)
            who, _, value = _joined(cells)
            inside = apiece(who, value, len(narrow))
            for t, part, more, weight in zip(narrow, inside, above, over, strict=True):
                total = weight + np.cumsum(-np.sort(-part), dtype=np.float64)
                found[t] = more + min(int(np.searchsorted(total, goal[t], side="right")) + 1, len(part))
        return found

    def _lowest(self, some: IntArray, goal: FloatArray) -> IntArray:
        """Bits of an influence such that those that reach it very probably add up beyond the goal."""
        return bits_of(floors(self, some, PROBABLY * goal, 1))

    def _census(self, some: IntArray, low: IntArray, high: IntArray, shift: IntArray) -> tuple[IntArray, FloatArray]:
        """Counts and sums in bins, each of shape (b, BINS + 1), what was counted is not asked again."""
        asked = list(zip(some.tolist(), low.tolist(), high.tolist(), shift.tolist(), strict=True))
        new = np.flatnonzero([each not in self._counted for each in asked])
        if new.size:
            _, counts, sums = self._asked(census_there, some[new], low[new], high[new], shift[new], sums=2)
            self._counted |= {asked[t]: found for t, *found in zip(new.tolist(), counts, sums, strict=True)}
        counted = [self._counted[each] for each in asked]
        return np.array([count for count, _ in counted]), np.array([total for _, total in counted])


# what is asked of a block


def responses(block: RowBlock, narrow: FloatArray, out: FloatArray | None = None) -> Iterator[tuple[slice, FloatArray]]:
    """Yield ``narrow' X'`` piece by piece, shape (B, rows of the piece), in ``out`` where it is given."""
    length = max(block.piece_length(), LEAST_PIECE)
    if block.sparse:
        for within, piece in block.pieces(length, np.float32):
            product = piece.margins(narrow).T
            if out is not None:
                out[:, within] = product
            yield within, product
        return
    turned = np.ascontiguousarray(narrow.T)
    scratch = np.ones((min(length, block.rows), block.p), dtype=np.float32)
    fresh = None if out is not None else np.empty((len(turned), min(length, block.rows)), dtype=np.float32)
    for within, piece in block.pieces(length, None):
        size = within.stop - within.start
        dense = scratch[:size]
        dense[:, : piece.features.shape[1]] = piece.features
        yield within, np.matmul(turned, dense.T, out=out[:, within] if fresh is None else fresh[:, :size])  # type: ignore[index]


@dataclass(frozen=True)
class Ticket:
    """Which influences a pass is about, so that what was worked out for the pass before it is known again.

    Attributes
    ----------
    name : str or None
        of the predictions; None where nothing is kept.
    some : ndarray of shape (b,)
        which of them the pass asks about.
    whole : bool
        whether it asks about all of them, and leaves their influences behind.
    """

    name: str | None
    some: IntArray
    whole: bool


def _influences(
    block: RowBlock, start: int, along: Sequence[Any], ticket: Ticket, gain: Gain, narrow: FloatArray, shift: FloatArray
) -> Iterator[tuple[int, FloatArray]]:
    """Yield where a piece starts, counted from the first row of all, and its influences, shape (B, rows of the piece).

    One set of influences is kept of a block; they are not written to.
    """
    name, held = SHELF.take(("influences", start)) or (None, None)
    if held is not None and ticket.name == name:
        SHELF.put(("influences", start), (name, held), held.nbytes)
        length = max(block.piece_length(), LEAST_PIECE)
        for first in range(0, block.rows, length):
            piece = held[:, first : first + length]
            yield start + first, piece if ticket.whole else piece[ticket.some]
        return
    whole = np.empty((narrow.shape[2], block.rows), dtype=np.float32) if ticket.whole and ticket.name else None
    for within, product in responses(block, _columns(narrow)):
        response = _by_output(product, narrow.shape[1])
        values = gain.best([part[within] for part in along], response, shift)
        if whole is not None:
            whole[:, within] = values
        yield start + within.start, values
    if whole is not None:
        SHELF.put(("influences", start), (ticket.name, whole), whole.nbytes)


def _columns(narrow: FloatArray) -> FloatArray:
    """Directions side by side, (coordinates, M, B) to (coordinates, M B)."""
    return narrow.reshape(len(narrow), -1)


def _by_output(product: FloatArray, outputs: int) -> FloatArray:
    """Products of directions side by side, (M B, n) to (B, M, n)."""
    return product.reshape(outputs, -1, product.shape[1]).swapaxes(0, 1)


def reaching_there(block: RowBlock, start: int, *given: Any) -> tuple[list[Found], FloatArray, IntArray, FloatArray]:
    """Cells that reach the floor; of the predictions ``deep`` sums of all that is positive, and `census_there`.

    Those counts and sums are in eighths, from ``low`` on.
    """
    *along, ticket, gain, narrow, shift, floor, deep, low = given
    parts: list[Found] = []
    reachable = np.zeros(len(deep))
    counts, sums = np.zeros((len(deep), BINS + 1), dtype=np.int64), np.zeros((len(deep), BINS + 1))
    bins = (low, np.full(len(deep), INFINITE_BITS), np.full(len(deep), EIGHTH))
    for first, values in _influences(block, start, along, ticket, gain, narrow, shift):
        parts.append(_shifted(reaching(values, floor), first))
        if len(deep):
            far = values[deep]
            reachable += positive(far)
            more, weight = census(far, *bins)
            counts += more
            sums += weight
    return [_joined(parts)], reachable, counts, sums


def between_there(block: RowBlock, start: int, *given: Any) -> tuple[list[Found], IntArray, FloatArray]:
    """Cells whose bits lie between two bounds; how many reach the upper one, and their sum."""
    *along, ticket, gain, narrow, shift, low, high = given
    parts: list[Found] = []
    above, over = np.zeros(len(low), dtype=np.int64), np.zeros(len(low))
    for first, values in _influences(block, start, along, ticket, gain, narrow, shift):
        cells, more, weight = between(values, low, high)
        parts.append(_shifted(cells, first))
        above += more
        over += weight
    return [_joined(parts)], above, over


def census_there(block: RowBlock, start: int, *given: Any) -> tuple[list[Found], IntArray, FloatArray]:
    """No cells, but counts and sums of the block's influences in bins."""
    *along, ticket, gain, narrow, moved, low, high, shift = given
    counts, sums = np.zeros((len(low), BINS + 1), dtype=np.int64), np.zeros((len(low), BINS + 1))
    for _, values in _influences(block, start, along, ticket, gain, narrow, moved):
        more, weight = census(values, low, high, shift)
        counts += more
        sums += weight
    return [], counts, sums


def _shifted(found: Found, start: int) -> Found:
    """The same cells, their rows counted from ``start`` before; as narrow as they can travel."""
    who, index, value = found
    width = np.int32 if start < 2**30 else np.int64
    return who.astype(np.int32), (index + start).astype(width), value


def _joined(parts: list[Found]) -> Found:
    who, index, value = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return who, index, value
