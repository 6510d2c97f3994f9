"""The data sets of the benchmarks: real ones from a folder, a drawn one where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

DIMENSION = 384  # of the sentence vectors; their unit norm is scaled back to a root of it


@dataclass(frozen=True)
class Set:
    """A classification problem as the model's fit takes it."""

    name: str
    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    l2: float
    threshold: float = 0.5

    def fit(self, **options: Any) -> LogisticRegression:
        """Fit at the set's regularisation, tightly unless told otherwise."""
        options = {"tol": 1e-8, "max_iter": 5000, **options}
        return LogisticRegression(C=1.0 / self.l2, **options).fit(self.X, self.y)


def drawn(n: int = 6000, p: int = 200, tests: int = 300, l2: float = 100.0, seed: int = 0) -> Set:
    """Draw a set: correlated features, 10 % of the labels wrong."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((p, p)) / np.sqrt(p) + np.eye(p)
    X = rng.standard_normal((n + tests, p)) @ mix
    y = (X @ rng.standard_normal(p) * 0.3 + rng.logistic(size=n + tests) > 0).astype(int)
    y[:n] ^= rng.random(n) < 0.1
    return Set("drawn", X[:n], y[:n], X[n:], y[n:], l2)


def _tables(folder: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / f"{name}_train.parquet"), pd.read_parquet(folder / f"{name}_test.parquet")


def embedded(folder: Path, name: str, l2: float, threshold: float = 0.5) -> Set:
    """Sentence vectors of a text set."""
    train, test = _tables(folder, name)
    X, X_test = (
        np.load(folder / f"{name}_{part}_minilm.npz")["X"].astype(np.float64) * np.sqrt(DIMENSION)
        for part in ("train", "test")
    )
    return Set(name, X, train["label"].to_numpy(), X_test, test["label"].to_numpy(), l2, threshold)


def counted(folder: Path, name: str, l2: float, threshold: float = 0.5) -> Set:
    """Word counts of a text set, as CSR."""
    train, test = _tables(folder, name)
    words = CountVectorizer(min_df=2)
    X = words.fit_transform(train["text"]).astype(np.float64)
    X_test = words.transform(test["text"]).astype(np.float64)
    return Set(f"{name} counts", X, train["label"].to_numpy(), X_test, test["label"].to_numpy(), l2, threshold)


def tabular(folder: Path, name: str, l2: float) -> Set:
    """One-hot categories and standardised numbers of a table."""
    train, test = _tables(folder, name)
    both = pd.concat([train, test])
    labels = both.pop("label").to_numpy()
    numbers = both.select_dtypes("number").astype(np.float64)
    seen = numbers.iloc[: len(train)]
    scaled = (numbers - seen.mean()) / seen.std().replace(0.0, 1.0)
    dummies = pd.get_dummies(both.drop(columns=numbers.columns).astype(str), dtype=np.float64)
    X = np.hstack([scaled.to_numpy(), dummies.to_numpy()])
    return Set(name, X[: len(train)].copy(), labels[: len(train)], X[len(train) :].copy(), labels[len(train) :], l2)


def load(folder: Path | None, name: str) -> Set:
    """Load a set by name; the drawn one where there is no folder."""
    if folder is None:
        return drawn()
    makers = {
        "sst": lambda: embedded(folder, "sst", 500.0),
        "hate": lambda: embedded(folder, "hate", 10.0, 0.25),
        "loan": lambda: tabular(folder, "loan", 100.0),
        "adult": lambda: tabular(folder, "adult", 1.0),
        "tweet": lambda: counted(folder, "tweet", 500.0),
    }
    return makers[name]()
