"""What a learner of another kind says of each row's label, where that predicts held-out labels better.

The margins that rank labels come from models of the audited kind, linear in the features. Where the labels follow
the features in another way, rows are suspected for the model's own shortcomings. So a second learner is asked, of
a kind that suits the rows: a random forest for tables, naive Bayes for counts. Its log-odds, too, come from parts
of it that did not see the row, and are weighed against the margin by the logistic regression of the given labels on
both. It is left out where it does not lower their log-loss.

A forest follows whole regions of wrong labels, and hides a ceiling of the label curve, from which the rates are
read off. Its trees therefore have large leaves, and the rates are not left to it alone (`analyses.noise`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit.analyses.foldout import FOLDS, deal_folds
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import JoinedStore, MemoryStore, Rows, steps

TREES = 200
LEAF_ROWS = 30
"""Rows of a leaf at least: smaller leaves repeat wrong labels of a region."""
TREE_ROWS = 20_000
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
MIN_GAIN = 3.0
"""Nats of log-likelihood that the second opinion must gain: less may be chance."""


@dataclass(frozen=True)
class Stacked:
    """Margins after a second learner was heard.

    Attributes
    ----------
    margin : ndarray of shape (n,)
        log-odds of the given labels from both learners; the margins that were given where the second was not heard.
    learner : str or None
        "random forest" or "naive Bayes"; None where none was heard.
    loss_alone, loss : float
        log-loss of the given labels per row, of the calibrated margin alone and of both.
    """

    margin: FloatArray = field(repr=False)
    learner: str | None = None
    loss_alone: float = np.nan
    loss: float = np.nan


def second_opinion(rows: Rows, trust: FloatArray, *, seed: int = 0, deals: int = 1) -> tuple[str, FloatArray] | None:
    """Log-odds of every label by a learner that did not see the row, and the learner's name.

    Parameters
    ----------
    rows : Rows
        n rows with their given labels.
    trust : ndarray of shape (n,)
        weights of the rows in training.
    seed : int
    deals : int
        of the rows into folds, for naive Bayes.

    Returns
    -------
    (str, ndarray of shape (n,)), or None where neither learner suits the rows
        A forest is grown on dense rows in this process of at most 200 features; naive Bayes takes sparse rows
        without negative entries, wherever they are.
    """
    if rows.sparse:
        found = rows.reduce(steps.lowest, join=("min",))
        if found is None or found[0] < 0:
            return None
        return "naive Bayes", naive_bayes(rows, trust, seed=seed, deals=deals)
    parts = rows.store.parts if isinstance(rows.store, JoinedStore) else (rows.store,)
    tables = [part.features for part in parts if isinstance(part, MemoryStore)]
    if len(tables) < len(parts) or rows.features_in > FOREST_FEATURES:
        return None
    table = np.concatenate([np.clip(part, -LARGEST_FEATURE, LARGEST_FEATURE).astype(np.float32) for part in tables])
    return "random forest", forest(table, rows.y, trust, seed=seed)


def forest(table: FloatArray, label: FloatArray, trust: FloatArray, *, seed: int = 0) -> FloatArray:
    """Log-odds by the trees of a random forest that were grown without the row, shape (n,)."""
    grown = RandomForestClassifier(
        TREES,
        min_samples_leaf=LEAF_ROWS,
        max_features="sqrt",
        max_samples=min(len(label), TREE_ROWS) if len(label) > TREE_ROWS else None,
        oob_score=True,
        random_state=seed,
    ).fit(table, label > 0.5, sample_weight=trust)
    # a row that every tree has seen has no share of votes; with 200 trees there is hardly one
    share = np.nan_to_num(grown.oob_decision_function_[:, 1], nan=float(np.average(label, weights=trust)))
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


def stacked(
    margin: FloatArray, opinion: tuple[str, FloatArray] | None, label: FloatArray, trust: FloatArray
) -> Stacked:
    """Weigh margins and a second opinion by how they predict the given labels together.

    Parameters
    ----------
    margin : ndarray of shape (n,)
        out-of-fold margins.
    opinion : of `second_opinion`
    label : ndarray of shape (n,)
        0 or 1.
    trust : ndarray of shape (n,)
        weights of the rows.
    """
    if opinion is None:
        return Stacked(margin)
    learner, log_odds = opinion
    both = np.stack([margin, log_odds], axis=1)
    both = both / np.maximum(both.std(axis=0), np.finfo(np.float64).tiny)
    joint = LogisticRegression().fit(both, label > 0.5, sample_weight=trust)
    bare = LogisticRegression().fit(both[:, :1], label > 0.5, sample_weight=trust)
    found = np.asarray(joint.decision_function(both))
    loss, alone = (_loss(at, label, trust) for at in (found, bare.decision_function(both[:, :1])))
    if joint.coef_[0, 1] <= 0 or (alone - loss) * np.count_nonzero(trust) < MIN_GAIN:
        return Stacked(margin, None, alone, loss)
    return Stacked(found, learner, alone, loss)


def _loss(margin: FloatArray, label: FloatArray, trust: FloatArray) -> float:
    return float(np.average(np.logaddexp(0.0, margin) - label * margin, weights=trust))
