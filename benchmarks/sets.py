"""The data sets of the benchmarks: real ones from a folder, a drawn one where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, StandardScaler

DENSE_BYTES = 2**29  # a table that is larger one-hot encoded is kept sparse


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


def _vectors(folder: Path, name: str, kind: str) -> list[np.ndarray]:
    return [np.load(folder / f"{name}_{part}_{kind}.npz")["X"].astype(np.float64) for part in ("train", "test")]


def embedded(folder: Path, name: str, l2: float, threshold: float = 0.5) -> Set:
    """Sentence vectors of a text set, their unit norm scaled to the root of their dimension."""
    train, test = _tables(folder, name)
    X, X_test = (part * np.sqrt(part.shape[1]) for part in _vectors(folder, name, "minilm"))
    return Set(name, X, train["label"].to_numpy(), X_test, test["label"].to_numpy(), l2, threshold)


def averaged(folder: Path, name: str, l2: float, threshold: float = 0.5) -> Set:
    """Averaged static word vectors of a text set, standardised."""
    train, test = _tables(folder, name)
    X, X_test = _vectors(folder, name, "wordavg")
    scaler = StandardScaler().fit(X)
    labels = train["label"].to_numpy(), test["label"].to_numpy()
    return Set(f"{name} words", scaler.transform(X), labels[0], scaler.transform(X_test), labels[1], l2, threshold)


def counted(
    folder: Path, name: str, l2: float, threshold: float = 0.5, *, column: str = "text", words: int | None = None
) -> Set:
    """Word counts of a text set, as CSR; of its ``words`` most frequent ones only, if told so."""
    train, test = _tables(folder, name)
    texts = [part[column].fillna("").astype(str) for part in (train, test)]
    counter = CountVectorizer(min_df=2, max_features=words)
    X = counter.fit_transform(texts[0]).astype(np.float64)
    X_test = counter.transform(texts[1]).astype(np.float64)
    return Set(f"{name} counts", X, train["label"].to_numpy(), X_test, test["label"].to_numpy(), l2, threshold)


def tabular(folder: Path, name: str, l2: float, threshold: float = 0.5) -> Set:
    """One-hot categories and standardised numbers of a table; a column named id is left out."""
    train, test = _tables(folder, name)
    features = train.drop(columns=["label", *(column for column in train if column.lower() == "id")])
    numbers = list(features.select_dtypes(["number", "bool"]).columns)
    others = [column for column in features if column not in numbers]
    means = features[numbers].astype(np.float64).mean().fillna(0.0)
    scaler, encoder = StandardScaler(), OneHotEncoder(handle_unknown="ignore", min_frequency=2)
    parts: list[list[Any]] = [[], []]
    for side, frame in zip(parts, (train, test), strict=True):
        if numbers:
            values = frame[numbers].astype(np.float64).fillna(means).to_numpy()
            side.append(scaler.fit_transform(values) if side is parts[0] else scaler.transform(values))
        if others:
            words = frame[others].astype(str)
            side.append(encoder.fit_transform(words) if side is parts[0] else encoder.transform(words))
    X, X_test = (sp.hstack([sp.csr_array(block) for block in side], format="csr") for side in parts)
    if 8 * X.shape[0] * X.shape[1] <= DENSE_BYTES:
        X, X_test = X.toarray(), X_test.toarray()
    return Set(name, X, train["label"].to_numpy(), X_test, test["label"].to_numpy(), l2, threshold)


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
