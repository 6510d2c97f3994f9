"""What an experiment is given: a set at one penalty, its fitted model and audit, and how much to do."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.paper.catalogue import Entry, fast_solver
from benchmarks.sets import Set
from mlflow_relabel_audit import Auditor

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sizes:
    """How many predictions of the test set each experiment takes.

    Of a set with more than `WIDE` columns, where every factor costs minutes, ``wide`` of them.
    """

    predictions: int  # k: Table 2, Figures 3 to 5 and 7 to 10
    refitted: int  # sets of the published algorithm, refitted twice
    confirmed: int  # sets of ours, refitted by scikit-learn at k and at k - 1
    ordered: int  # Figure 2
    curve: int  # Figure 6
    draws: int
    removed: int  # Tables 4 and 7
    errors: int  # misclassified ones: Table 1, and each tag's in Section 3.4
    timed: int  # Tables 3 and 8
    timed_rows: int
    seeds: int
    wide: float = 0.25
    words: int | None = None  # vocabulary of counts


FULL = Sizes(400, 120, 20, 24, 200, 5, 40, 300, 1000, 25_000, 3)
QUICK = Sizes(40, 8, 3, 5, 25, 1, 5, 25, 50, 4_000, 1, wide=1.0, words=1000)
WIDE = 2500


@dataclass
class Bench:
    """A set at one penalty.

    The same test rows are taken whatever the features, so that features can be compared prediction by
    prediction.
    """

    entry: Entry
    folder: Path
    data: Set
    sizes: Sizes
    seed: int = 0
    progress: Progress = field(default=lambda done, total: None)

    @functools.cached_property
    def model(self) -> LogisticRegression:
        return tight(self.data)

    @functools.cached_property
    def auditor(self) -> Auditor:
        return Auditor(self.model, self.data.X, self.data.y, threshold=self.data.threshold)

    def test_rows(self, count: int) -> np.ndarray:
        """Positions of test rows drawn at random; a smaller draw is part of a larger one."""
        total = self.data.X_test.shape[0]
        return np.sort(np.random.default_rng(1000).permutation(total)[: self.fewer(count)])

    def fewer(self, count: int) -> int:
        """As many predictions as this set's width allows."""
        return max(1, round(count * self.sizes.wide)) if self.data.X.shape[1] > WIDE else count

    def relabelled(self, planted: np.ndarray) -> Bench:
        """The same set with the labels of these training rows inverted."""
        labels = self.data.y.copy()
        labels[planted] = 1 - labels[planted]
        return replace(self, data=replace(self.data, y=labels))

    def correct(self) -> np.ndarray:
        """Which test rows the model gets right at the set's threshold."""
        probability = self.model.predict_proba(self.data.X_test)[:, 1]
        return (probability > self.data.threshold) == (self.data.y_test > 0.5)


def tight(data: Set, y: np.ndarray | None = None) -> LogisticRegression:
    """Fit to the minimiser, as nearly as scikit-learn goes."""
    solver = fast_solver(data.X)
    model = LogisticRegression(
        C=1.0 / data.l2, solver=solver, tol=1e-10 if solver == "newton-cholesky" else 1e-7, max_iter=20_000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(data.X, data.y if y is None else y)


def flipped_labels(y: np.ndarray, index: Any) -> np.ndarray:
    labels = y.copy()
    labels[np.asarray(index, dtype=np.intp)] = 1 - labels[np.asarray(index, dtype=np.intp)]
    return labels
