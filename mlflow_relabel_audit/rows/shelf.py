"""What a process may keep beside the rows it holds, for the next pass over them: bounded, and never relied on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

SHELF_BYTES = 2**29
"""Of one process; what has not been asked for the longest goes first."""


class Shelf:
    """Values by key, each with its bytes."""

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> Any:
        """Take a value away, so that nobody else works on it; None where there is none."""
        with self._lock:
            return self._held.pop(key, (0, None))[1]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Lay a value down, and let go of the oldest ones that no longer fit."""
        with self._lock:
            self._held[key] = size, value
            total = sum(held for held, _ in self._held.values())
            while total > SHELF_BYTES and self._held:
                total -= self._held.popitem(last=False)[1][0]


SHELF = Shelf()
"""That of this process."""
