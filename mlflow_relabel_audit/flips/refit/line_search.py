"""Newton along a line, inside a bracket of the minimum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlflow_relabel_audit.problem import FloatArray, IntArray

LINE_STEPS = 6
FLAT = 0.3
"""Share of the first slope at which the search is content."""


def bracketed(
    look: Callable[[IntArray, FloatArray], tuple[FloatArray, FloatArray]], step: FloatArray, slope: FloatArray
) -> FloatArray:
    """Steps at which convex functions of one variable are nearly flat, shape (b,).

    A function's steps depend on nothing but itself, so a refit does not hang on what shares its block.

    Parameters
    ----------
    look : callable
        slope and second derivative of the functions at an index, each at a step of its own.
    step : ndarray of shape (b,)
        where to look first, above 0.
    slope : ndarray of shape (b,)
        at 0, below 0.
    """
    low, high = np.zeros_like(step), np.full_like(step, np.inf)
    best = step.copy()
    moving = np.arange(len(step))
    for _ in range(LINE_STEPS):
        at = best[moving]
        here, bend = look(moving, at)
        low[moving] = np.where(here < 0, at, low[moving])
        high[moving] = np.where(here < 0, high[moving], at)
        newton = at - np.divide(here, bend, out=np.zeros_like(here), where=bend > 0)
        ceiling = np.where(np.isfinite(high[moving]), high[moving], 4.0 * at)
        middle = np.where(np.isfinite(high[moving]), 0.5 * (low[moving] + ceiling), ceiling)
        best[moving] = np.where((newton >= low[moving]) & (newton <= ceiling), newton, middle)
        moving = moving[np.abs(here) > FLAT * np.abs(slope[moving])]
        if not moving.size:
            break
    return best
