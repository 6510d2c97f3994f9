"""Where the blocks are, how a step is run on each of them, and how results are joined.

Results are summed in a tree of fixed fan-in over the blocks in order, whether one process walks the blocks or
many workers hold them: floating-point sums then do not depend on who adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

FAN_IN = 8
"""Partial results joined at once."""
BLOCK_BYTES = 2**25
"""Dense bytes of a block of a table of usual size."""
LARGEST_BLOCK_BYTES = 2**28
MOST_BLOCKS = 256
"""Blocks beyond which they grow rather than become more, up to the largest."""
SPARSE_ROWS = 2**15
"""Rows of a block of sparse rows, whose bytes are not known before all are read."""

Step = Callable[..., Any]
Call = tuple[int, tuple[Any, ...]]
Join = tuple[str, ...]

JOINS: dict[str, Callable[[Any, Any], Any]] = {"sum": lambda a, b: a + b, "min": np.minimum, "max": np.maximum}


class Store(Protocol):
    """The blocks of a design matrix.

    Attributes
    ----------
    bounds : sequence of (start, stop)
        of the blocks, in order, without gaps.
    shape : tuple of int
        (n, features).
    sparse : bool
    nnz : int
        stored entries.
    dtype : numpy dtype
        of the entries.
    local : bool
        whether steps run in this process, on arrays it shares.
    room : int or None
        bytes that may be held beside the blocks; None where nothing was said.
    """

    bounds: Sequence[tuple[int, int]]
    shape: tuple[int, int]
    sparse: bool
    nnz: int
    dtype: Any
    local: bool
    room: int | None

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run ``step(block, *own, *slices of along, *arguments)`` for each (block number, own); yield in order."""
        ...

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """The same, joined; None where there were no calls."""
        ...


def block_bounds(n: int, features: int, sparse: bool) -> list[tuple[int, int]]:
    """Where blocks begin and end: by the table's shape alone, the same wherever it is kept."""
    if sparse:
        length = max(SPARSE_ROWS, -(-n // MOST_BLOCKS))
    else:
        per_row = 8 * max(features, 1)
        size = min(max(BLOCK_BYTES, per_row * n // MOST_BLOCKS), LARGEST_BLOCK_BYTES)
        length = max(size // per_row, 64)
    return [(start, min(start + length, n)) for start in range(0, n, length)] or [(0, 0)]


def join_all(partials: Sequence[tuple[Any, ...]], join: Join) -> tuple[Any, ...]:
    """Join partial results from left to right."""
    out = partials[0]
    for partial in partials[1:]:
        out = tuple(JOINS[how](a, b) for how, a, b in zip(join, out, partial, strict=True))
    return out


class Fold:
    """Joins partial results as they come, in the tree that `join_levels` spells out."""

    def __init__(self, join: Join) -> None:
        self._join = join
        self._levels: list[list[tuple[Any, ...]]] = []

    def add(self, partial: tuple[Any, ...]) -> None:
        """Take the next block's result."""
        for level in self._levels:
            level.append(partial)
            if len(level) < FAN_IN:
                return
            partial = join_all(level, self._join)
            level.clear()
        self._levels.append([partial])

    def result(self) -> tuple[Any, ...] | None:
        """Everything joined; None where nothing was added."""
        carry: tuple[Any, ...] | None = None
        for level in self._levels:
            rest = level if carry is None else [*level, carry]
            if rest:
                carry = join_all(rest, self._join)
        return carry


def walk(
    blocks: Callable[[int], Any],
    bounds: Sequence[tuple[int, int]],
    step: Step,
    calls: Iterable[Call],
    along: Sequence[Any],
    arguments: tuple[Any, ...],
) -> Iterator[Any]:
    """Run a step on block after block in this process."""
    for number, own in calls:
        start, stop = bounds[number]
        yield step(blocks(number), *own, *(values[start:stop] for values in along), *arguments)


def fold(results: Iterable[tuple[Any, ...]], join: Join) -> tuple[Any, ...] | None:
    """Join results that come in order."""
    folding = Fold(join)
    for result in results:
        folding.add(result)
    return folding.result()
