"""What every block of rows ranks of its own influences, and how the heads of all blocks become one order.

The influence of relabelling row i on prediction t is that of its best new label, ``x_i . d_t coefficient_i +
shift_t count_i`` with two classes (`relabelling.Gain`), in float32. A block hands over the influences that reach a
floor, unsorted, and counts of the others; they are sorted and added here. So an order is the same whether the rows are
one array (`Held`) or blocks elsewhere (`apart`), and no more of the n influences of a prediction travels than its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np

from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.likelihood import FloatArray, IntArray

SAMPLE = 512
TINY = float(np.finfo(np.float32).tiny)
TINY_BITS, INFINITE_BITS = (int(np.float32(value).view(np.uint32)) for value in (TINY, np.inf))
OCTAVE, EIGHTH = 23, 20
"""Low bits of a float32 that vary within a factor of two, and within an eighth of that."""
BINS = 256

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

    def reaching(self, some: IntArray, floor: FloatArray, beyond: FloatArray) -> Found:
        """All that reach each prediction's floor, in any order; predictions counted from 0 within ``some``.

        ``beyond`` is the goal that `depths` will be asked about, 0 where it will not.
        """
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


def ordered(found: Found, width: int, label: IntArray) -> list[tuple[Relabelling, FloatArray]]:
    """Cells of ``width`` predictions: rows and float64 influences of each, the largest first, equal ones by position.

    Sorting (inverted bits of a positive float32, row) as one 64-bit number ranks equal values by position. ``label``,
    shape (n,), are the present labels, of two classes.
    """
    who, index, value = found
    keys = apiece(who, (~value.view(np.uint32)).astype(np.uint64) << np.uint64(32) | index.astype(np.uint64), width)
    for part in keys:
        part.sort()
    together = np.concatenate(keys)  # calls for every prediction would take longer than what they do
    gains = (~(together >> np.uint64(32)).astype(np.uint32)).view(np.float32).astype(np.float64)
    change = Relabelling.of_two(label, (together & np.uint64(0xFFFFFFFF)).astype(np.int64))
    edges = list(pairwise(accumulate((len(part) for part in keys), initial=0)))
    return [(Relabelling(change.index[a:b], change.label[a:b]), gains[a:b]) for a, b in edges]


def apiece(who: IntArray, values: Any, width: int) -> list[Any]:
    """Values of cells, apart for each of ``width`` predictions."""
    if len(who) > 1 and not np.all(who[1:] >= who[:-1]):
        values = values[np.argsort(who, kind="stable")]
    return [values[a:b] for a, b in pairwise(accumulate(np.bincount(who, minlength=width).tolist(), initial=0))]


def reaching(values: FloatArray, floor: FloatArray) -> Found:
    """Cells that reach the floor of their prediction."""
    flat, each = _cells(values, floor)
    who = np.repeat(np.arange(len(values)), each)
    index = flat - who * values.shape[1]
    return who, index, _taken(values, flat)


def _cells(values: FloatArray, floor: FloatArray) -> tuple[IntArray, IntArray]:
    """Places of the cells that reach a floor, in a flat table, and how many each prediction has."""
    width, n = values.shape
    flat = np.flatnonzero(values >= floor.astype(np.float32)[:, None])
    return flat, np.diff(flat.searchsorted(n * np.arange(width + 1)))


def _taken(values: FloatArray, flat: IntArray) -> FloatArray:
    """Cells at places of a flat table; of a part of one without a copy of all."""
    return values.reshape(-1).take(flat) if values.flags.c_contiguous else values[np.divmod(flat, values.shape[1])]


def positive(values: FloatArray) -> FloatArray:
    """Sum of the positive values of each prediction, shape (b,), to float32."""
    return np.asarray(np.maximum(values, np.float32(0.0)) @ np.ones(values.shape[1], dtype=np.float32))


def bits_of(values: FloatArray) -> IntArray:
    """Positive floats as float32, their bits read as integers."""
    return values.astype(np.float32).view(np.uint32).astype(np.int64)


def _floats(bits: IntArray) -> FloatArray:
    return np.asarray(bits.astype(np.int32).view(np.float32))


def between(values: FloatArray, low: IntArray, high: IntArray) -> tuple[Found, IntArray, FloatArray]:
    """Values whose bits are at least ``low`` and below ``high``; how many reach ``high``, and their sum."""
    who, index, value = reaching(values, _floats(low))
    above = value >= _floats(high)[who]
    edges = np.append(0, np.cumsum(np.bincount(who, minlength=len(values))))
    counts, sums = (
        np.diff(np.append(0, np.cumsum(part))[edges])
        for part in (above, np.where(above, value, 0.0).astype(np.float64))
    )
    inside = np.flatnonzero(~above)
    return (who.take(inside), index.take(inside), value.take(inside)), counts, sums


def census(values: FloatArray, low: IntArray, high: IntArray, shift: IntArray) -> tuple[IntArray, FloatArray]:
    """How many values there are, and their sum, in bins of ``2^shift`` from ``low`` on, each of shape (b, BINS + 1).

    Bounds are bits of float32 numbers, read as integers. What passes the last bin but one is counted in it; the last
    bin is for what reaches ``high``.
    """
    flat, each = _cells(values, _floats(low))
    value = _taken(values, flat)
    bits = value.view(np.int32)
    level = bits - np.repeat(low.astype(np.int32), each)
    level >>= np.repeat(shift.astype(np.int32), each)
    np.minimum(level, BINS - 1, out=level)
    level[bits >= np.repeat(high.astype(np.int32), each)] = BINS
    line = level + np.repeat((BINS + 1) * np.arange(len(values)), each)
    size = (BINS + 1) * len(values)
    counts, sums = (np.bincount(line, weights=weights, minlength=size) for weights in (None, value))
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

    def reaching(self, some: IntArray, floor: FloatArray, beyond: FloatArray) -> Found:
        """See `Influences`."""
        return reaching(self._of(some), floor)

    def depths(self, some: IntArray, goal: FloatArray) -> IntArray:
        """See `Influences`."""
        found = np.zeros(len(some), dtype=np.int64)
        if not len(some):
            return found
        values = self._of(some)
        reachable = 1.001 * positive(values)
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
