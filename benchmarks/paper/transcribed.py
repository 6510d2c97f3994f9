"""The published algorithm's numbers without its costs, for sets too large for an N x N matrix.

`benchmarks.published` is the transcription that is timed. Here the same influences (the Hessian with its
penalised intercept, the sum in probability) come from one factored Hessian, and prefixes from running sums;
a test holds the two against each other.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.published import PublishedRun
from mlflow_relabel_audit.curvature import factor
from mlflow_relabel_audit.rows import Rows

WIDTH = 128


class Transcribed:
    """Influences of every label on any prediction, as published."""

    def __init__(self, model: Any, X: Any, y: np.ndarray, l2: float) -> None:
        self.model = model
        self.rows = Rows(X, y, np.ones(len(y)), intercept=True)
        fitted = model.predict_proba(X)[:, 1]
        self.curvature = factor(self.rows, fitted * (1.0 - fitted), np.full(self.rows.p, l2))

    def influences(self, X_test: Any) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities, shape (T,), and the change of each by every single relabelling, shape (T, N)."""
        probability = self.model.predict_proba(X_test)[:, 1]
        test = Rows(X_test, np.zeros(len(probability)), np.ones(len(probability)), intercept=True)
        targets = test.take(np.arange(test.n))
        columns = np.ascontiguousarray((targets.toarray() if test.sparse else targets).T)
        moved = self.rows.margins(self.curvature.solve(columns)).T * (1.0 - 2.0 * self.rows.y)
        return probability, (probability * (1.0 - probability))[:, None] * moved


def transcribed(model: Any, X: Any, y: np.ndarray, X_test: Any, l2: float, threshold: float = 0.5) -> PublishedRun:
    """Algorithm 1 for every test row: what `benchmarks.published.published` finds, up to rounding."""
    begun = time.perf_counter()
    algorithm = Transcribed(model, X, y, l2)
    ready = time.perf_counter()
    probabilities, sizes, sets = [], [], []
    for start in range(0, X_test.shape[0], WIDTH):
        probability, change = algorithm.influences(X_test[start : start + WIDTH])
        probabilities.append(probability)
        for own, moves in zip(probability, change, strict=True):
            toward = -1.0 if own > threshold else 1.0
            order = np.argsort(-toward * moves)
            reached = own + np.cumsum(moves[order[:-1]])
            crossed = np.flatnonzero((reached > threshold) != (own > threshold))
            k = int(crossed[0]) + 1 if len(crossed) else 0
            sizes.append(k)
            sets.append(order[:k])
    searched = time.perf_counter() - ready
    return PublishedRun(np.concatenate(probabilities), np.array(sizes, dtype=int), sets, ready - begun, searched)
