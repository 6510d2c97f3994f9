"""What the last few fits were given, kept for as long as their estimators live.

Only the outermost fit of a thread is remembered, by reference: a Pipeline's, not that of its last step. A search
or a cross-validation fits many models, whose entries go with them.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT = 8
"""Fits remembered at once. They hold the caller's own arrays, so no more than a few."""


@dataclass(frozen=True)
class Capture:
    """The arguments of one fit.

    Parameters
    ----------
    X, y, sample_weight : Any
        as they were given; not copied.
    audited : set of str
        runs whose audit of this fit was begun.
    """

    X: Any = field(repr=False)
    y: Any = field(repr=False)
    sample_weight: Any = field(repr=False)
    audited: set[str] = field(default_factory=set)


class Captures:
    """Captures by estimator, the newest `KEPT`; an entry ends with its estimator."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[weakref.ref[Any], Capture]] = OrderedDict()
        self._lock = threading.RLock()

    def put(self, estimator: Any, capture: Capture) -> None:
        """Remember a fit; a refit replaces it."""
        key, entries = id(estimator), self._entries

        def forget(gone: weakref.ref[Any]) -> None:
            # Runs whenever Python collects the estimator, so it takes no lock and looks at one entry only.
            entry = entries.get(key)
            if entry is not None and entry[0] is gone:
                entries.pop(key, None)

        with self._lock:
            entries.pop(key, None)
            entries[key] = (weakref.ref(estimator, forget), capture)
            while len(entries) > KEPT:
                entries.popitem(last=False)

    def get(self, estimator: Any) -> Capture | None:
        """The last fit of exactly this object."""
        entry = self._entries.get(id(estimator))
        return entry[1] if entry is not None and entry[0]() is estimator else None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


class _Thread(threading.local):
    inside = False


_thread = _Thread()


def capturing(original: Callable[..., Any], captures: Captures, on_first: Callable[[], None]) -> Callable[..., Any]:
    """``original``, a fit method, with what it was given remembered once it has returned.

    Parameters
    ----------
    on_first : callable
        Called before each fit that will be remembered; must be cheap and raise nothing.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _thread.inside:
            return original(self, *args, **kwargs)
        _thread.inside = True
        try:
            on_first()
            fitted = original(self, *args, **kwargs)
        finally:
            _thread.inside = False
        try:
            captures.put(self, _captured(self, signature.bind(self, *args, **kwargs).arguments))
        except Exception:  # training goes on as if nobody had looked; without a capture there is no audit
            return fitted
        return fitted

    return fit


def _captured(estimator: Any, arguments: dict[str, Any]) -> Capture:
    weight = arguments.get("sample_weight")
    if weight is None:
        given = {**arguments.get("params", {}), **arguments.get("fit_params", {})}
        # A Pipeline takes its last step's weights as LAST__sample_weight, or routes a bare sample_weight.
        last = estimator.steps[-1][0] if hasattr(estimator, "steps") else ""
        weight = given.get(f"{last}__sample_weight", given.get("sample_weight"))
    return Capture(arguments["X"], arguments.get("y"), weight)
