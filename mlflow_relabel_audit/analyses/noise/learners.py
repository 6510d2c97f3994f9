"""Learners of other kinds than the audited model, and what they say of rows that they did not see.

The margins that rank labels come from models of the audited kind, linear in the features. Where the labels follow
the features in another way, rows are suspected for the model's own shortcomings. So others are asked, of kinds that
suit the rows: boosted stumps, a random forest and boosted trees for tables, naive Bayes for counts. How they are heard
is the committee's affair (`committee`).

Trees follow whole regions of wrong labels. Their leaves are therefore large, except where labels are known to be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from threadpoolctl import threadpool_limits

from mlflow_relabel_audit.analyses.noise.foldout import FOLDS, deal_folds
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import JoinedStore, MemoryStore, Rows, steps

TREES = 200
LEAF_ROWS = 30
"""Rows of a leaf at least: smaller leaves repeat wrong labels of a region."""
RIGHT_LEAF_ROWS = 5
STUMPS = "boosted stumps"
BOOSTING_LEAF_ROWS = 40
BINS = 255
"""Values of a feature that boosted trees tell apart."""
TABLE_BYTES = 2**28
"""Of a sparse table, made dense."""
TREE_ROWS = 8_000
"""Rows that a tree is grown on at most."""
FOREST_FEATURES = 200
"""Features above which no forest is grown: one coordinate of an embedding tells too little to split on."""
LARGEST_FEATURE = 1e30
"""Trees take float32, and sums of it: larger features are cut to this."""
SMOOTHING = 1.0
"""Added to each count of naive Bayes."""
LEAST_PROBABILITY = 0.002
"""Bound of a forest's probabilities: shares of finitely many trees say no more."""
LARGEST_LOG_ODDS = 20.0


@dataclass(frozen=True)
class Boosting:
    """How many trees are boosted, by how much each counts, and their depth.

    Stumps, of depth 1, add up to a sum of functions of one feature each.
    """

    trees: int
    rate: float
    depth: int


KINDS = {STUMPS: Boosting(100, 0.1, 1), "boosted trees": Boosting(25, 0.15, 3)}
"""Few and shallow: what deeper ones gain on labels that are wrong at random they lose on regions of wrong labels."""


def other_learners(
    rows: Rows, trust: FloatArray, *, right: bool = False, seed: int = 0, deals: int = 1
) -> dict[str, FloatArray]:
    """Log-odds of every label by learners that did not see the row, shape (n,) each, by the learner's name.

    Parameters
    ----------
    rows : Rows
        n rows with their given labels.
    trust : ndarray of shape (n,)
        weights of the rows in training; those of weight 0 are judged only.
    right : bool
        whether the labels of rows that are trusted are known to be right.
    seed : int
    deals : int
        of the rows into folds, for naive Bayes.

    Returns
    -------
    dict of str to ndarray of shape (n,)
        A forest, boosted trees and stumps are grown on tables (`table_of`); naive Bayes takes other sparse rows
        without negative entries, wherever they are. Empty where none suits the rows.
    """
    table = table_of(rows)
    if table is None:
        found = rows.reduce(steps.lowest, join=("min",)) if rows.sparse else None
        if found is None or found[0] < 0:
            return {}
        return {"naive Bayes": naive_bayes(rows, trust, seed=seed, deals=deals)}
    if right:
        return {"random forest": forest(table, rows.y, trust, RIGHT_LEAF_ROWS, seed=seed)}
    fold = deal_folds(rows, seed)
    grown = {name: boosted(table, rows.y, trust, fold, kind, seed=seed) for name, kind in KINDS.items()}
    return {STUMPS: grown.pop(STUMPS), "random forest": forest(table, rows.y, trust, seed=seed), **grown}


def table_of(rows: Rows) -> FloatArray | None:
    """Features as trees take them, float32 of shape (n, features).

    None of rows that are not in memory, of more than 200 features, and of sparse ones (of encoded categories, say)
    that would take more than 256 MiB.
    """
    parts = rows.store.parts if isinstance(rows.store, JoinedStore) else (rows.store,)
    held = [part.features for part in parts if isinstance(part, MemoryStore)]
    large = rows.sparse and 4 * rows.n * rows.features_in > TABLE_BYTES
    if len(held) < len(parts) or rows.features_in > FOREST_FEATURES or large:
        return None
    tables = [part.toarray() if sp.issparse(part) else part for part in held]
    return np.concatenate([np.clip(part, -LARGEST_FEATURE, LARGEST_FEATURE).astype(np.float32) for part in tables])


def grow(kind: Any, table: FloatArray, target: Any, weight: FloatArray, leaf_rows: int, *, seed: int) -> Any:
    """A forest of scikit-learn's of that kind, fitted with what it says of rows out of the trees' bags."""
    return kind(
        TREES,
        min_samples_leaf=leaf_rows,
        max_features="sqrt",
        max_samples=TREE_ROWS if len(table) > TREE_ROWS else None,
        oob_score=True,
        random_state=seed,
    ).fit(table, target, sample_weight=weight)


def forest(
    table: FloatArray, label: FloatArray, trust: FloatArray, leaf_rows: int = LEAF_ROWS, *, seed: int = 0
) -> FloatArray:
    """Log-odds by the trees of a random forest that were grown without the row, shape (n,)."""
    heard = trust > 0
    grown = grow(RandomForestClassifier, table[heard], label[heard] > 0.5, trust[heard], leaf_rows, seed=seed)
    share = np.empty(len(label))
    share[heard] = grown.oob_decision_function_[:, 1]
    if not heard.all():
        share[~heard] = grown.predict_proba(table[~heard])[:, 1]
    # a row that every tree has seen has no share of votes; with 200 trees there is hardly one
    return _log_odds(np.nan_to_num(share, nan=float(np.average(label, weights=trust))))


def boosted(
    table: FloatArray, label: FloatArray, trust: FloatArray, fold: IntArray, kind: Boosting, *, seed: int = 0
) -> FloatArray:
    """Log-odds by boosted trees that were grown on the other folds, shape (n,)."""
    share, rng = np.empty(len(label)), np.random.default_rng(seed)
    table = _binned(table)
    for k in range(FOLDS):
        heard = rng.permutation(np.flatnonzero((fold != k) & (trust > 0)))[:TREE_ROWS]
        trees = HistGradientBoostingClassifier(
            learning_rate=kind.rate,
            max_iter=kind.trees,
            max_depth=kind.depth,
            min_samples_leaf=BOOSTING_LEAF_ROWS,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )
        # so little work that threads would spend it waiting for one another, all the more on a busy machine
        with threadpool_limits(1, "openmp"):
            grown = trees.fit(table[heard], label[heard] > 0.5, sample_weight=trust[heard])
            share[fold == k] = grown.predict_proba(table[fold == k])[:, 1]
    return _log_odds(share)


def _binned(table: FloatArray) -> FloatArray:
    """Ranks of every feature's quantiles: with weights, scikit-learn's own bins take longer than the trees."""
    ranks = np.empty_like(table)
    for column, rank in zip(table.T, ranks.T, strict=True):
        edges = np.unique(np.quantile(column, np.arange(1, BINS) / BINS, method="lower"))
        rank[:] = np.searchsorted(edges, column)
    return ranks


def _log_odds(share: FloatArray) -> FloatArray:
    share = np.clip(share, LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY)
    return np.asarray(np.log(share) - np.log1p(-share))


def naive_bayes(rows: Rows, trust: FloatArray, *, seed: int = 0, deals: int = 1) -> FloatArray:
    """Log-odds by multinomial naive Bayes on the other folds, without the prior, mean over the deals, shape (n,)."""
    total = np.zeros(rows.n)
    for deal in range(deals):
        fold = deal_folds(rows, seed + deal)
        mass = (fold[:, None] != np.arange(FOLDS)) * trust[:, None]
        one = rows.y[:, None] > 0.5
        counts = rows.pull(np.concatenate([mass * ~one, mass * one], axis=1))[: rows.features_in] + SMOOTHING
        logs = np.log(counts) - np.log(counts.sum(axis=0))
        theta = np.zeros((rows.p, FOLDS))
        theta[: rows.features_in] = logs[:, FOLDS:] - logs[:, :FOLDS]
        total += np.take_along_axis(rows.margins(theta), fold[:, None], axis=1)[:, 0]
    return np.clip(total / deals, -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)
