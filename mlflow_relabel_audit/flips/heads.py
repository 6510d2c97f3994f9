"""What every block of rows ranks of its own influences, and how the heads of all blocks become one order.

The influence of relabelling row i on prediction t is that of its best new label, ``x_i . d_t coefficient_i +
shift_t count_i`` with two classes (`relabelling.Gain`), in float32. A block hands over the influences that reach a
floor, unsorted, and counts of the others; they are sorted and added here. So an order is the same whether the rows are
one array (`Held`) or blocks elsewhere (`Apart`), and no more of the n influences of a prediction travels than its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlflow_relabel_audit.flips.relabelling import Gain, RelabelEffect
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

SAMPLE = 512
TINY = float(np.finfo(np.float32).tiny)
TINY_BITS, INFINITE_BITS = (int(np.float32(value).view(np.uint32)) for value in (TINY, np.inf))
OCTAVE, EIGHTH = 23, 20
"""Low bits of a float32 that vary within a factor of two, and within an eighth of that."""
BINS = 256
FETCHED = 2**16
"""Influences of one bin that are sorted rather than counted in finer bins."""
MARGIN = 2**12
"""Steps of a float32 by which a bin is widened when it is looked into: a product's rounding hangs on its company."""
MOST_ROUNDS = 8

Found = tuple[IntArray, IntArray, FloatArray]
"""Prediction, row and float32 influence of single cells."""


class Influences(Protocol):
    """The influences of n rows on B predictions, wherever they are; ``some`` picks predictions.

    Attributes
    ----------
    n : int
    sample : ndarray of shape (B, s)
        those of every ``stride``-th row, each prediction's largest first.
    stride : int
    """

    @property
    def n(self) -> int:
        """Rows."""
        ...

    @property
    def sample(self) -> FloatArray:
        """See above."""
        ...

    @property
    def stride(self) -> int:
        """See above."""
        ...

    def reaching(self, some: IntArray, floor: FloatArray) -> Found:
        """All that reach each prediction's floor, in any order; predictions counted from 0 within ``some``."""
        ...

    def depths(self, some: IntArray, goal: FloatArray) -> IntArray:
        """How many of each prediction's largest influences add up beyond a goal, 0 where all do not; after `reaching`.

        Influences are counted in bins of the floats' bits, from where the sample puts the goal; only those of the bin
        in which the sum crosses are sorted.
        """
        ...


def stride_of(n: int) -> int:
    """One in so many rows is sampled: 512 at least, twice the root of n where there are many."""
    return max(1, n // max(SAMPLE, 2 * int(np.sqrt(n))))


def floors(source: Influences, some: IntArray, need: FloatArray, head: int) -> FloatArray:
    """A value such that the influences that reach it add up to about ``need``, and are about ``head`` at least.

    Read off the sample; the least positive float where the sample does not reach. Any floor gives an exact head of
    the order, whatever its length; a full selection would cost as much as the product.
    """
    sample = source.sample[some]
    size = sample.shape[1]
    total = np.cumsum(sample, axis=1) * np.float32(source.stride)
    rank = np.maximum((total < 1.15 * need[:, None]).sum(axis=1) + 2, -(-head * size // source.n))
    found = np.take_along_axis(sample, np.minimum(rank, size - 1)[:, None], axis=1)[:, 0]
    return np.where(rank < size, np.maximum(found, TINY), TINY)


def ordered(found: Found, width: int) -> tuple[IntArray, FloatArray, IntArray]:
    """Cells of ``width`` predictions, each prediction's largest first, equal ones by position.

    Returns rows and float64 influences, shape (width, longest), padded, and how many there are for each prediction.
    Sorting (inverted bits of a positive float32, row) as one 64-bit number ranks equal values by position.
    """
    who, index, value = found
    if len(who) > 1 and not np.all(who[1:] >= who[:-1]):
        place = np.argsort(who, kind="stable")
        who, index, value = who[place], index[place], value[place]
    counts = np.bincount(who, minlength=width)
    keys = np.full((width, int(counts.max(initial=0))), np.iinfo(np.uint64).max)
    keys[who, np.arange(len(who)) - np.repeat(np.cumsum(counts) - counts, counts)] = (
        (~value.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    ) | index.astype(np.uint64)
    keys.sort(axis=1)
    gains = (~(keys >> np.uint64(32)).astype(np.uint32)).view(np.float32).astype(np.float64)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), gains, counts


def _cells(values: FloatArray, inside: Any) -> Found:
    """The cells of a block marked in ``inside``."""
    who = np.repeat(np.arange(len(values)), np.count_nonzero(inside, axis=1))
    flat = np.flatnonzero(inside)
    return who, flat - who * values.shape[1], np.ravel(values)[flat]


def _reaching(values: FloatArray, floor: FloatArray) -> Found:
    return _cells(values, values >= floor.astype(np.float32)[:, None])


def _floats(bits: IntArray) -> FloatArray:
    return np.asarray(bits.astype(np.uint32).view(np.float32)[:, None])


def _between(values: FloatArray, low: IntArray, high: IntArray) -> tuple[Found, IntArray, FloatArray]:
    """Values whose bits are at least ``low`` and below ``high``; how many reach ``high``, and their sum."""
    above = values >= _floats(high)
    inside = values >= _floats(low)
    inside &= ~above
    over = np.where(above, values, np.float32(0.0)).sum(axis=1, dtype=np.float64)
    return _cells(values, inside), np.count_nonzero(above, axis=1), over


def _census(values: FloatArray, low: IntArray, high: IntArray, shift: IntArray) -> tuple[IntArray, FloatArray]:
    """How many values there are, and their sum, in bins of ``2^shift`` from ``low`` on, each of shape (b, BINS + 1).

    Bounds are bits of float32 numbers, read as integers. What passes the last bin but one is counted in it; the last
    bin is for what reaches ``high``.
    """
    who, _, inside = _cells(values, values >= _floats(low))
    bits = inside.view(np.uint32).astype(np.int64)
    level = np.where(bits < high[who], np.minimum((bits - low[who]) >> shift[who], BINS - 1), BINS)
    level += (BINS + 1) * who
    size = (BINS + 1) * len(values)
    counts, sums = (np.bincount(level, weights=weights, minlength=size) for weights in (None, inside))
    return counts.reshape(-1, BINS + 1), np.asarray(sums.reshape(-1, BINS + 1), dtype=np.float64)


@dataclass(frozen=True)
class Held:
    """Influences that are an array in this process, shape (B, n)."""

    values: FloatArray
    sample: FloatArray
    stride: int

    @classmethod
    def of(cls, values: FloatArray) -> Held:
        """Take a sample of them."""
        stride = stride_of(values.shape[1])
        return cls(values, -np.sort(-values[:, ::stride], axis=1), stride)

    @property
    def n(self) -> int:
        """Rows."""
        return self.values.shape[1]

    def _of(self, some: IntArray) -> FloatArray:
        return self.values if len(some) == len(self.values) else self.values[some]

    def reaching(self, some: IntArray, floor: FloatArray) -> Found:
        """See `Influences`."""
        return _reaching(self._of(some), floor)

    def depths(self, some: IntArray, goal: FloatArray) -> IntArray:
        """See `Influences`."""
        found = np.zeros(len(some), dtype=np.int64)
        if not len(some):
            return found
        values = self._of(some)
        reachable = 1.001 * np.maximum(values, 0.0).sum(axis=1)
        for t, least in enumerate(floors(self, some, goal, 1)):
            if reachable[t] > goal[t]:
                wanted = float(goal[t])
                found[t] = _depth(values[t], wanted, float(least)) or _depth(values[t], wanted, TINY)
        return found


def _depth(values: FloatArray, goal: float, floor: float) -> int:
    """How many of the largest values add up beyond a goal, 0 where all that reach ``floor`` do not."""
    values = values[values >= floor]
    level = values.view(np.uint32) >> np.uint32(EIGHTH)
    before = np.cumsum(np.bincount(level, weights=values, minlength=1)[::-1])
    place = int(np.searchsorted(before, goal, side="right"))
    if place == len(before):
        return 0
    there = len(before) - 1 - place
    above = float(before[place - 1]) if place else 0.0
    inside = np.cumsum(-np.sort(-values[level == there]), dtype=np.float64)[:-1] + above
    return int(np.count_nonzero(level > there)) + int(np.searchsorted(inside, goal, side="right")) + 1


class Apart:
    """Influences that are worked out where the rows are, anew for every question.

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
        self._reachable = np.full(narrow.shape[2], np.nan)

    def _asked(self, step: Any, some: IntArray, *arguments: Any) -> tuple[Found, Iterator[Any]]:
        """Cells of all blocks, rows counted from the first, and sums over the blocks of what they tell beside them."""
        given = (self._gain, self._narrow[..., some], self._shift[some], *arguments)
        parts = list(self._rows.blocks(step, *given, along=self._along))
        starts = [start for start, _ in self._rows.store.bounds]
        cells = [_shifted(part[0], start) for part, start in zip(parts, starts, strict=True)]
        return _joined(cells), (np.sum(told, axis=0) for told in zip(*(part[1:] for part in parts), strict=True))

    def reaching(self, some: IntArray, floor: FloatArray) -> Found:
        """See `Influences`."""
        found, (self._reachable[some],) = self._asked(reaching_there, some, floor)
        return found

    def depths(self, some: IntArray, goal: FloatArray) -> IntArray:
        """See `Influences`."""
        found = np.zeros(len(some), dtype=np.int64)
        waiting = np.flatnonzero(1.001 * self._reachable[some] > goal)
        low = floors(self, some, goal, 1).astype(np.float32).view(np.uint32).astype(np.int64)
        high, shift = np.full(len(some), INFINITE_BITS), np.full(len(some), EIGHTH)
        for _ in range(MOST_ROUNDS):
            if not waiting.size:
                break
            counts, sums = self._census(some[waiting], low[waiting], high[waiting], shift[waiting])
            place = (np.cumsum(sums[:, ::-1], axis=1) <= goal[waiting, None]).sum(axis=1)
            narrow: list[int] = []
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
            if narrow:
                chosen = np.asarray(narrow)
                cells, above, over = self._between(some[chosen], low[chosen], high[chosen])
                _, gains, sizes = ordered(cells, len(narrow))
                crossed = (over[:, None] + np.cumsum(gains, axis=1) <= goal[chosen, None]).sum(axis=1)
                found[chosen] = above + np.minimum(crossed + 1, sizes)
            waiting = np.asarray(wide, dtype=np.intp)
        return found

    def _census(self, some: IntArray, low: IntArray, high: IntArray, shift: IntArray) -> tuple[IntArray, FloatArray]:
        """Counts and sums in bins, each of shape (b, BINS + 1), as of `_census`."""
        arguments = (self._gain, self._narrow[..., some], self._shift[some], low, high, shift)
        found = self._rows.reduce(census_there, *arguments, join=("sum", "sum"), along=self._along)
        assert found is not None
        return found[0], found[1]

    def _between(self, some: IntArray, low: IntArray, high: IntArray) -> tuple[Found, IntArray, FloatArray]:
        found, (above, over) = self._asked(between_there, some, low, high)
        return found, above, over


# what is asked of a block


def responses(block: RowBlock, narrow: FloatArray, out: FloatArray | None = None) -> Iterator[tuple[slice, FloatArray]]:
    """Yield ``narrow' X'`` piece by piece, shape (B, rows of the piece), in ``out`` where it is given."""
    length = max(block.piece_length(), 1024)
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


def _influences(
    block: RowBlock, along: Sequence[Any], gain: Gain, narrow: FloatArray, shift: FloatArray
) -> Iterator[tuple[int, FloatArray]]:
    """Yield where a piece starts and its influences, shape (B, rows of the piece)."""
    for within, product in responses(block, _columns(narrow)):
        response = _by_output(product, narrow.shape[1])
        yield within.start, gain.best([part[within] for part in along], response, shift)


def _columns(narrow: FloatArray) -> FloatArray:
    """Directions side by side, (coordinates, M, B) to (coordinates, M B)."""
    return narrow.reshape(len(narrow), -1)


def _by_output(product: FloatArray, outputs: int) -> FloatArray:
    """Products of directions side by side, (M B, n) to (B, M, n)."""
    return product.reshape(outputs, -1, product.shape[1]).swapaxes(0, 1)


def reaching_there(block: RowBlock, *given: Any) -> tuple[Found, FloatArray]:
    """Cells that reach the floor, and the sums of all influences that are positive."""
    *along, gain, narrow, shift, floor = given
    parts: list[Found] = []
    reachable = np.zeros(len(floor))
    for start, values in _influences(block, along, gain, narrow, shift):
        parts.append(_shifted(_reaching(values, floor), start))
        reachable += np.maximum(values, np.float32(0.0)).sum(axis=1)
    return _joined(parts), reachable


def between_there(block: RowBlock, *given: Any) -> tuple[Found, IntArray, FloatArray]:
    """Cells whose bits lie between two bounds; how many reach the upper one, and their sum."""
    *along, gain, narrow, shift, low, high = given
    parts: list[Found] = []
    above, over = np.zeros(len(low), dtype=np.int64), np.zeros(len(low))
    for start, values in _influences(block, along, gain, narrow, shift):
        cells, more, weight = _between(values, low, high)
        parts.append(_shifted(cells, start))
        above += more
        over += weight
    return _joined(parts), above, over


def census_there(block: RowBlock, *given: Any) -> tuple[IntArray, FloatArray]:
    """Counts and sums of the block's influences in bins."""
    *along, gain, narrow, moved, low, high, shift = given
    counts, sums = np.zeros((len(low), BINS + 1), dtype=np.int64), np.zeros((len(low), BINS + 1))
    for _, values in _influences(block, along, gain, narrow, moved):
        more, weight = _census(values, low, high, shift)
        counts += more
        sums += weight
    return counts, sums


def _shifted(found: Found, start: int) -> Found:
    """The same cells, their rows counted from ``start`` before; as narrow as they can travel."""
    who, index, value = found
    width = np.int32 if start < 2**30 else np.int64
    return who.astype(np.int32), (index + start).astype(width), value


def _joined(parts: list[Found]) -> Found:
    who, index, value = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return who, index, value
