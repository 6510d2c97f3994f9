"""Where the blocks are, how a step is run on each of them, and how results are joined.

Results are summed in the binary tree of the blocks' numbers, whether one process walks the blocks or many workers
hold them, one or several each: floating-point sums then do not depend on who adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, starmap
from typing import Any, Protocol

import numpy as np

from mlflow_relabel_audit.rows.progress import Progress, told
from mlflow_relabel_audit.rows.threads import at_once

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


def larger(one: Any, other: Any) -> Any:
    """Of the columns of two arrays of shape (..., c, m), the m whose first entries are largest, the largest first."""
    both = np.concatenate([one, other], axis=-1)
    order = np.argsort(-both[..., :1, :], axis=-1, kind="stable")[..., : one.shape[-1]]
    return np.take_along_axis(both, order, axis=-1)


JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "min": np.minimum,
    "max": np.maximum,
    "larger": larger,
}


class Kept:
    """What a step returned for every block, left where the blocks are: to be passed along with them to other steps.

    Parameters
    ----------
    parts : list
        of whatever the store makes of it; in memory one result per block.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def part(self, number: int) -> Any:
        """That of one block, where blocks are in this process."""
        return self.parts[number]


def _part(values: Any, number: int, start: int, stop: int) -> Any:
    """What one block gets of values that go along with the rows: of an array over them all, or of what was kept."""
    return values.part(number) if isinstance(values, Kept) else values[start:stop]


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
    beside : int
        bytes that the processes which hold the blocks keep on their shelves; 0 where that is this one.
    progress : callable or None
        told of passes that last, see `progress.PASS`; whoever has one sets it.
    """

    bounds: Sequence[tuple[int, int]]
    shape: tuple[int, int]
    sparse: bool
    nnz: int
    dtype: Any
    local: bool
    room: int | None
    beside: int
    progress: Progress | None

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run ``step(block, *own, *slices of along, *arguments)`` for each (block number, own); yield in order."""
        ...

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """The same, joined; None where there were no calls."""
        ...

    def keep(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Kept:
        """The same for every block, each result left where its block is."""
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


def places(rows: Any) -> Any:
    """Rows by where they stand, also those of frames and series, whose own index goes by label."""
    return rows.iloc if hasattr(rows, "iloc") else rows


def runs(count: int, most: int) -> list[range]:
    """Numbers up to ``count`` in at most so many runs of about one length, within an eighth of it.

    They begin at multiples of as large a power of two as that allows: few nodes of the binary tree then make up a run.
    """
    step = 1
    while 16 * step * most <= count:
        step *= 2
    edges = sorted({min(round(count * j / most / step) * step, count) for j in range(most)} | {0, count})
    return [range(first, stop) for first, stop in pairwise(edges)] or [range(0)]


def joined_nodes(partials: Sequence[tuple[int, tuple[Any, ...]]], run: range, join: Join) -> list[tuple[int, Any]]:
    """Join what lies in one node of the binary tree, for each of the largest nodes that lie in a run of numbers."""
    out: list[tuple[int, Any]] = []
    place, first = 0, run.start
    while first < run.stop:
        size = first & -first or 1 << run.stop.bit_length()
        while first + size > run.stop:
            size //= 2
        folding, begin = Fold(join), place
        while place < len(partials) and partials[place][0] < first + size:
            folding.add(*partials[place])
            place += 1
        if place > begin:
            out.append((partials[begin][0], folding.result()))
        first += size
    return out


class Fold:
    """Joins partial results as they come, in the binary tree of their numbers, which rise; some may be left out.

    Results that share a longer prefix of their numbers' bits are joined first. So whoever holds an aligned run of
    ``2^j`` numbers may join those beforehand, under the first one's number.
    """

    def __init__(self, join: Join) -> None:
        self._join = join
        self._open: list[tuple[int, tuple[Any, ...]]] = []  # how many bits tell each from the one before, the result
        self._last = 0

    def add(self, number: int, partial: tuple[Any, ...]) -> None:
        """Take the result of that number."""
        level = (self._last ^ number).bit_length()
        while len(self._open) > 1 and self._open[-1][0] < level:
            self._merge()
        self._open.append((level, partial))
        self._last = number

    def result(self) -> tuple[Any, ...] | None:
        """Everything joined; None where nothing was added."""
        while len(self._open) > 1:
            self._merge()
        return self._open[0][1] if self._open else None

    def _merge(self) -> None:
        _, right = self._open.pop()
        level, left = self._open.pop()
        self._open.append((level, tuple(JOINS[how](a, b) for how, a, b in zip(self._join, left, right, strict=True))))


class LocalStore(ABC):
    """A store whose steps run in this process, on block after block."""

    local = True
    beside = 0
    room: int | None = None
    progress: Progress | None = None
    bounds: Sequence[tuple[int, int]]

    @abstractmethod
    def block(self, number: int) -> Any:
        """One block."""

    def blocks(self, calls: Iterable[Call], step: Step) -> Iterator[tuple[int, tuple[Any, ...], Any]]:
        """Yield the calls of a step, each with its block."""
        del step
        return ((number, own, self.block(number)) for number, own in calls)

    def threads(self, step: Step) -> int:
        """In how many threads a step is run."""
        del step
        return 1

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run the step on block after block, or on several at once (see `threads`)."""

        def placed() -> Iterator[tuple[Any, ...]]:
            for number, own, block in self.blocks(told(calls, self.progress, len(self.bounds)), step):
                start, stop = self.bounds[number]
                yield block, *own, *(_part(values, number, start, stop) for values in along), *arguments

        threads = self.threads(step)
        return at_once(step, placed(), threads) if threads > 1 else starmap(step, placed())

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """Run the step on block after block and join the results."""
        folding, numbers = Fold(join), deque[int]()

        def noted() -> Iterator[Call]:
            for call in calls:
                numbers.append(call[0])
                yield call

        for result in self.map(step, noted(), along, arguments):
            folding.add(numbers.popleft(), result)
        return folding.result()

    def keep(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Kept:
        """Run the step on every block and keep the results in this process."""
        return Kept(list(self.map(step, calls, along, arguments)))
