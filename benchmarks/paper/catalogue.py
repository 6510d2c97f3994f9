"""The sets of the paper in each of their features, and sets of the same form added by name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from benchmarks.sets import Set, averaged, counted, embedded, tabular

VECTORS = {"embeddings": "minilm", "words": "wordavg"}
GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


@dataclass(frozen=True)
class Entry:
    """A set, its features, and the paper's hyperparameters for them.

    Attributes
    ----------
    data : str
        the files' stem: ``{data}_train.parquet``, ``{data}_test.parquet``.
    features : {"embeddings", "words", "counts", "table"}
    l2 : float
        the paper's penalty, 1 / C.
    threshold : float
        probability above which class 1 is predicted.
    column : str
        the text, where there is one.
    added : bool
        by the caller; not one of the paper's sets.
    """

    data: str
    features: str
    l2: float
    threshold: float = 0.5
    column: str = "text"
    added: bool = False

    @property
    def name(self) -> str:
        return self.data if self.features == "table" else f"{self.data}-{self.features}"

    def files(self, folder: Path) -> list[Path]:
        """Paths of all that `load` reads."""
        names = [f"{self.data}_{part}.parquet" for part in ("train", "test")]
        if self.features in VECTORS:
            names += [f"{self.data}_{part}_{VECTORS[self.features]}.npz" for part in ("train", "test")]
        return [folder / name for name in names]

    def unfit(self, folder: Path) -> str:
        """Why the set cannot be read; empty where it can."""
        absent = [path.name for path in self.files(folder) if not path.exists()]
        if absent:
            return f"{', '.join(absent)} not in {folder}"
        needed = {"label"} if self.features == "table" else {"label", self.column}
        for path in self.files(folder)[:2]:
            names = pq.read_schema(path).names
            if lacking := sorted(needed - set(names)):
                return f"no column {', '.join(lacking)} in {path.name}; it has {', '.join(names)}"
        return ""

    def load(self, folder: Path, words: int | None = None) -> Set:
        """Read the set; ``words`` bounds the vocabulary of counts."""
        if self.features == "counts":
            data = counted(folder, self.data, self.l2, self.threshold, column=self.column, words=words)
        else:
            make = {"embeddings": embedded, "words": averaged, "table": tabular}[self.features]
            data = make(folder, self.data, self.l2, self.threshold)
        return replace(data, name=self.name)


PAPER = (
    Entry("loan", "table", 100.0),
    Entry("sst", "words", 1000.0),
    Entry("sst", "counts", 1000.0),
    Entry("sst", "embeddings", 500.0),
    Entry("hate", "counts", 10.0, 0.25),
    Entry("hate", "embeddings", 10.0, 0.25),
    Entry("tweet", "counts", 500.0),
    Entry("tweet", "embeddings", 1000.0),
)


def added(folder: Path, name: str, text: str | None, l2: float, threshold: float) -> list[Entry]:
    """Entries of a set that is not among the paper's: its counts or table, and the vectors that lie beside it."""
    entry = Entry(name, "table" if text is None else "counts", l2, threshold, text or "text", added=True)
    vectors = (replace(entry, features=kind) for kind in VECTORS)
    return [entry, *(other for other in vectors if all(path.exists() for path in other.files(folder)))]


def chosen(
    folder: Path, names: list[str], text: str | None, l2: float | None, threshold: float | None
) -> tuple[list[Entry], list[str]]:
    """Return entries to run, and a line for each that cannot be.

    A name is one of the paper's sets (``sst-embeddings``, or ``sst`` for all its features) unless a text column
    or a penalty is given with it; then, and for every other name, it is a pair of files of that name.
    """
    entries: list[Entry] = []
    for name in names:
        known = [entry for entry in PAPER if name in (entry.data, entry.name)]
        if known and text is None and l2 is None and threshold is None:
            entries += known
        else:
            entries += added(folder, name, text, 1.0 if l2 is None else l2, 0.5 if threshold is None else threshold)
    entries = entries if names else list(PAPER)
    wrong = {entry: reason for entry in entries if (reason := entry.unfit(folder))}
    return [entry for entry in entries if entry not in wrong], [f"{e.name}: {reason}" for e, reason in wrong.items()]


def fast_solver(X: Any) -> str:
    """The quickest of scikit-learn's solvers for these rows."""
    return "lbfgs" if sp.issparse(X) or X.shape[1] > 2000 else "newton-cholesky"


def tune(data: Set, folds: int = 5, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Penalty of `GRID` with the least out-of-fold log-loss, and the loss of each one tried."""
    folds = int(min(folds, np.bincount(data.y.astype(int)).min()))
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(data.y)), data.y))
    solver, losses = fast_solver(data.X), {}
    for l2 in reversed(GRID):
        held = np.empty(len(data.y))
        for train, test in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = LogisticRegression(C=1.0 / l2, solver=solver, max_iter=500).fit(data.X[train], data.y[train])
            held[test] = model.predict_proba(data.X[test])[:, 1]
        losses[f"{l2:g}"] = float(log_loss(data.y, held))
        if losses[f"{l2:g}"] > 1.05 * min(losses.values()):
            break  # the loss is unimodal in the penalty, and the best is behind
    best = min(losses, key=lambda name: losses[name])
    return float(best), losses
