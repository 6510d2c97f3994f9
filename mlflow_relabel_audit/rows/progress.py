"""What is told while rows are read and while a pass over them lasts: how much of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Progress = Callable[[int, int, str], None]
"""``progress(done, total, stage)``."""

READING = "reading rows"
"""The stage in which rows are read and transformed in parts: of rows, or of a cluster's tasks."""
PASS = "rows"
"""The stage of one pass over the rows: of blocks, or of a cluster's tasks. It ends with ``done == total``."""
LASTING = 1.0
"""Seconds that a pass takes before it is told of: most take milliseconds, and there are hundreds."""


class Telling:
    """Tells a callback how much of something is done, once it has lasted a while.

    Parameters
    ----------
    progress : callable or None
        None: nothing is told.
    total : int
        what "done" counts up to.
    stage : str
    lasting : float
        seconds from now on during which nothing is told.
    """

    def __init__(
        self, progress: Progress | None, total: int, stage: str = PASS, *, lasting: float | None = None
    ) -> None:
        self._progress, self.total, self._stage = progress, total, stage
        self._from = time.monotonic() + (LASTING if lasting is None else lasting)
        self._told: int | None = None

    @property
    def silence(self) -> float:
        """Seconds until something may be told, 0 from then on."""
        return max(self._from - time.monotonic(), 0.0)

    def tell(self, done: int) -> None:
        """Say that so many are done, where it has lasted long enough."""
        if self._progress is not None and not self.silence:
            self._progress(done, self.total, self._stage)
            self._told = done

    def end(self) -> None:
        """Say that all are done, where anything else was said."""
        if self._progress is not None and self._told not in (None, self.total):
            self._progress(self.total, self.total, self._stage)


def told(calls: Iterable[tuple[int, Any]], progress: Progress | None, total: int) -> Iterable[tuple[int, Any]]:
    """The calls of a pass over ``total`` blocks in this process, of which is told as they are asked for."""
    return calls if progress is None else _told(calls, Telling(progress, total))


def _told(calls: Iterable[tuple[int, Any]], telling: Telling) -> Iterator[tuple[int, Any]]:
    for call in calls:
        telling.tell(call[0])
        yield call
    telling.end()
