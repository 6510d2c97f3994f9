"""Means and shares with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000


def present(values: Any) -> np.ndarray:
    """The values that are there, as floats."""
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return array[np.isfinite(array)]


def bootstrap(values: Any, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> dict[str, Any]:
    """A statistic (of the last axis) of the values that are there, and its percentile interval."""
    known = present(values)
    if not len(known):
        return {"value": None, "low": None, "high": None, "n": 0}
    draws = known[np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))]
    low, high = np.quantile(statistic(draws), (0.025, 0.975))
    return {"value": float(statistic(known)), "low": float(low), "high": float(high), "n": len(known)}


def mean(values: Any, seed: int = 0) -> dict[str, Any]:
    return bootstrap(values, lambda draws: draws.mean(axis=-1), seed)


def median(values: Any, seed: int = 0) -> dict[str, Any]:
    return bootstrap(values, lambda draws: np.median(draws, axis=-1), seed)


def share(flags: Any) -> dict[str, Any]:
    """Share of true flags among those that are there, with Wilson's interval."""
    known = present(flags)
    n = len(known)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    p, z2 = float(known.mean()), 1.959964**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return {"value": p, "low": low, "high": high, "n": n}


def rank_correlation(first: Any, second: Any, seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation of pairs that are both there, with its percentile interval."""
    pairs = np.array([[np.nan if v is None else v for v in side] for side in (first, second)], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    n = pairs.shape[1]
    if n < 3:
        return {"value": None, "low": None, "high": None, "n": n}
    ranks = rankdata(pairs, axis=1)
    taken = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    low, high = np.nanquantile(_correlation(ranks[0][taken], ranks[1][taken]), (0.025, 0.975))
    return {"value": float(_correlation(ranks[0], ranks[1])), "low": float(low), "high": float(high), "n": n}


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (part - part.mean(axis=-1, keepdims=True) for part in (a, b))
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0)
