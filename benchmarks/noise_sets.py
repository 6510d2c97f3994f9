"""Sets and injected noise of the noise benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.noise_tables import R_TABLES, TWEETS

ROWS = 6000
EVALUATION = 2000
NOISES = (
    "uniform 5 %",
    "uniform 10 %",
    "uniform 30 %",
    "10 % of class 1",
    "20 % of class 0",
    "boundary",
    "cluster",
)
TUNED = ("hate", "sst", "tweet", "adult", "sst_counts")
SEEN = ("loan", "flights", "sst_wordavg", "hate_counts", "tweet_counts", "cells", "credit", "churn", "spam")
SINCE = ("subscribers", "flchain", "crashes", "mortgages", "rodents", "insured", "arrests", "tweets")
BEFORE = ("email", "caravan", "pension", "monica", "outwork", "lending", "digits")
HELD_OUT = ("rotterdam", "nwtco", "voters", "persons", "remote", "tips")


@dataclass(frozen=True)
class Data:
    """One set: features and labels of training and evaluation rows, and the model's C."""

    X: Any
    y: np.ndarray
    X_eval: Any
    y_eval: np.ndarray
    C: float
    wrong: np.ndarray | None = None


def minilm(folder: Path, name: str, C: float) -> Data:
    train, test = (pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("train", "test"))
    X, X_eval = (
        np.load(folder / f"{name}_{part}_minilm.npz")["X"].astype(np.float64) * np.sqrt(384.0)
        for part in ("train", "test")
    )
    return Data(X, train["label"].to_numpy(), X_eval, test["label"].to_numpy(), C)


def word_average(folder: Path, name: str, C: float) -> Data:
    train, test = (pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("train", "test"))
    raw = [np.load(folder / f"{name}_{part}_wordavg.npz")["X"].astype(np.float64) for part in ("train", "test")]
    scaler = StandardScaler().fit(raw[0])
    X, X_eval = (scaler.transform(part) for part in raw)
    return Data(X, train["label"].to_numpy(), X_eval, test["label"].to_numpy(), C)


def counts(folder: Path, name: str, C: float) -> Data:
    """Counts of words of a set of DIR."""
    return counted(*(pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("train", "test")), C)


def counted(train: pd.DataFrame, test: pd.DataFrame, C: float) -> Data:
    """Counts of the words of the column ``text``."""
    vectorizer = CountVectorizer(min_df=2, dtype=np.float64)
    X = vectorizer.fit_transform(train["text"])
    y = train["label"].to_numpy()
    wrong = y != train["label_corrected"].to_numpy() if "label_corrected" in train else None
    return Data(X, y, vectorizer.transform(test["text"]), test["label"].to_numpy(), C, wrong)


def stored(folder: Path, name: str, C: float) -> Data:
    """A table of DIR."""
    return encoded(*(pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("train", "test")), C)


def encoded(train: pd.DataFrame, test: pd.DataFrame, C: float) -> Data:
    """Numbers standardised, missing ones at their mean; words one-hot."""
    rng = np.random.default_rng(0)
    train = train.iloc[np.sort(rng.permutation(len(train))[:40000])]
    features = train.drop(columns=["label", "Id"], errors="ignore")
    numeric = [c for c in features if pd.api.types.is_numeric_dtype(features[c])]
    other = [c for c in features if c not in numeric]
    encoder = ColumnTransformer(
        [
            ("number", StandardScaler(), numeric),
            ("word", OneHotEncoder(handle_unknown="ignore", min_frequency=20, sparse_output=False), other),
        ]
    )
    X = np.nan_to_num(encoder.fit_transform(features))
    return Data(
        X,
        train["label"].to_numpy(),
        np.nan_to_num(encoder.transform(test.drop(columns="label"))),
        test["label"].to_numpy(),
        C,
    )


def digits(C: float) -> Data:
    """Odd or even, of the digits that ship with scikit-learn."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = StandardScaler().fit_transform(X)[order], y[order] % 2
    return Data(X[449:], y[449:], X[:449], y[:449], C)


SETS: dict[str, Callable[[Path], Data]] = {
    "hate": lambda folder: minilm(folder, "hate", 0.1),
    "sst": lambda folder: minilm(folder, "sst", 1 / 500),
    "tweet": lambda folder: minilm(folder, "tweet", 1 / 500),
    "adult": lambda folder: stored(folder, "adult", 1.0),
    "sst_counts": lambda folder: counts(folder, "sst", 0.1),
    "loan": lambda folder: stored(folder, "loan", 0.01),
    "flights": lambda folder: stored(folder, "flights", 1.0),
    "sst_wordavg": lambda folder: word_average(folder, "sst", 1 / 1000),
    "hate_counts": lambda folder: counts(folder, "hate", 0.1),
    "tweet_counts": lambda folder: counts(folder, "tweet", 1 / 500),
    "youtubeweak": lambda folder: counts(folder, "youtubeweak", 1.0),
    "digits": lambda folder: digits(1.0),
    "tweets": lambda folder: counted(*TWEETS.split(), 0.1),
    **{name: lambda folder, source=source: encoded(*source.split(), 1.0) for name, source in R_TABLES.items()},
}


def subset(data: Data, seed: int, size: int = ROWS) -> Data:
    """At most ``size`` training and 2,000 evaluation rows, drawn anew for each seed."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.y))[:size]
    evaluation = rng.permutation(len(data.y_eval))[:EVALUATION]
    wrong = None if data.wrong is None else data.wrong[rows]
    return Data(data.X[rows], data.y[rows], data.X_eval[evaluation], data.y_eval[evaluation], data.C, wrong)


def inject(data: Data, noise: str, seed: int) -> np.ndarray:
    """Which labels are made wrong, bool of shape (n,)."""
    rng = np.random.default_rng(1000 + seed)
    n = len(data.y)
    wrong = np.zeros(n, dtype=bool)
    if noise.startswith("uniform"):
        wrong[rng.permutation(n)[: round(n * float(noise.split()[1]) / 100)]] = True
    elif "of class" in noise:
        members = np.flatnonzero(data.y == int(noise[-1]))
        wrong[rng.permutation(members)[: round(len(members) * float(noise.split()[0]) / 100)]] = True
    elif noise == "boundary":
        z = fitted(data, data.y).decision_function(data.X)
        chance = np.exp(-2.0 * np.abs(z) / np.std(z))
        wrong[rng.choice(n, size=n // 10, replace=False, p=chance / chance.sum())] = True
    elif noise == "cluster":  # fewer than half: beyond that the wrong labels are what the cluster teaches
        flat = TruncatedSVD(50, random_state=0).fit_transform(data.X) if data.X.shape[1] > 50 else np.asarray(data.X)
        groups = MiniBatchKMeans(20, random_state=seed, n_init=3).fit_predict(flat)
        size = np.bincount(groups, minlength=20)
        chosen = groups == np.argmin(np.abs(size - n / 8))
        wrong[chosen] = rng.random(int(chosen.sum())) < 0.4
    else:
        raise ValueError(f"noise: got {noise!r}; pass one of {NOISES}")
    return wrong


def fitted(data: Data, labels: np.ndarray) -> LogisticRegression:
    solver = "liblinear" if sp.issparse(data.X) else "lbfgs"
    return LogisticRegression(C=data.C, solver=solver, max_iter=500).fit(data.X, labels)
