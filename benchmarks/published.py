"""The relabelling algorithm as published, kept plain: what the benchmarks compare with, and nothing else.

Yang, Xu and Yu, "Relabeling Minimal Training Subset to Flip a Prediction" (2024), Algorithm 1, written from
the paper's description with the costs of the authors' implementation left as they are: an N x N diagonal
matrix, an explicit inverse, a dense T x N matrix of influences, and a prefix summed afresh for every k. Also
as published, and different from what this project does: the Hessian penalises the intercept, which
scikit-learn does not; influences are summed in probability; and one array of labels is shared by all refits,
so that the labels one test point changes stay changed for the next one (``leak=True``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class PublishedRun:
    """What the published algorithm finds for T predictions, and its cost.

    Attributes
    ----------
    probability : ndarray of shape (T,)
    k : ndarray of shape (T,), int
        labels it would change, 0 where it finds none.
    sets : list of ndarray
        which.
    setup_seconds : float
        gradients, Hessian, inverse and the influences of all labels on all predictions.
    search_seconds : float
        ordering and summing, all predictions together.
    """

    probability: np.ndarray
    k: np.ndarray
    sets: list[np.ndarray] = field(repr=False)
    setup_seconds: float
    search_seconds: float

    @property
    def seconds_per_prediction(self) -> float:
        """Cost of a prediction, the set-up shared over all of them."""
        return (self.setup_seconds + self.search_seconds) / max(len(self.k), 1)


def fit(X: Any, y: np.ndarray, l2: float) -> LogisticRegression:
    """The paper's model: scikit-learn's defaults, C = 1 / l2."""
    return LogisticRegression(C=1.0 / l2, max_iter=1000).fit(X, y)


def with_ones(X: Any) -> np.ndarray:
    dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X, dtype=np.float64)
    return np.concatenate([dense, np.ones((len(dense), 1))], axis=1)


def influences(model: Any, X: Any, y: np.ndarray, X_test: Any, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (T,) and the change of each by every single relabelling (T, N)."""
    train, test = with_ones(X), with_ones(X_test)
    count = len(y)
    fitted = model.predict_proba(X)[:, 1]
    probability = model.predict_proba(X_test)[:, 1]
    weights = np.diag(fitted * (1.0 - fitted))  # N x N
    hessian = train.T @ weights @ train / count + (l2 / count) * np.eye(train.shape[1])
    inverse = np.linalg.inv(hessian)
    as_labelled = train * (fitted - y)[:, None]
    relabelled = train * (fitted - (1.0 - y))[:, None]
    step = inverse @ (as_labelled - relabelled).T / count  # p x N: how the coefficients move
    slope = test * (probability * (1.0 - probability))[:, None]
    return probability, slope @ step


def first_crossing(probability: float, ranked: np.ndarray, threshold: float) -> int:
    """Smallest k whose summed influences cross the threshold, every prefix summed anew; 0 where none does."""
    above = probability > threshold
    for k in range(1, len(ranked)):
        if (probability + np.sum(ranked[:k]) > threshold) != above:
            return k
    return 0


def published(model: Any, X: Any, y: np.ndarray, X_test: Any, l2: float, threshold: float = 0.5) -> PublishedRun:
    """Algorithm 1 for every test row."""
    begun = time.perf_counter()
    probability, change = influences(model, X, y, X_test, l2)
    ready = time.perf_counter()
    sizes, sets = [], []
    for own, moves in zip(probability, change, strict=True):
        order = np.argsort(moves) if own > threshold else np.argsort(-moves)
        k = first_crossing(float(own), moves[order], threshold)
        sizes.append(k)
        sets.append(order[:k])
    done = time.perf_counter()
    return PublishedRun(probability, np.array(sizes, dtype=int), sets, ready - begun, done - ready)


def refit_flips(
    run: PublishedRun,
    X: Any,
    y: np.ndarray,
    X_test: Any,
    l2: float,
    threshold: float = 0.5,
    *,
    leak: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Whether each set that was found flips a refit: 1.0, 0.0, NaN where none was found.

    Parameters
    ----------
    leak : bool
        keep one test point's relabelled rows for the next refit, as the published code does; False starts
        each refit from the true labels.
    progress : callable, optional
        ``progress(done, total)``.
    """
    labels = np.array(y, dtype=np.float64)
    flips = np.full(len(run.k), np.nan)
    for t, chosen in enumerate(run.sets):
        if progress is not None:
            progress(t, len(run.sets))
        if not run.k[t]:
            continue
        if not leak:
            labels = np.array(y, dtype=np.float64)
        labels[chosen] = 1.0 - labels[chosen]
        if labels.min() == labels.max():
            continue
        after = fit(X, labels, l2).predict_proba(X_test[t : t + 1])[0, 1]
        flips[t] = float((after > threshold) != (run.probability[t] > threshold))
    return flips
