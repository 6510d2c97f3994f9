"""What the scores of training labels rest on, of more than two classes, and which class is right instead.

As in `two_classes`, models that did not see a row say what the rest of the data thinks of it (`foldout`), here with an
output per class; how given labels follow from that (`label_transitions`) turns it into the probability of every class
to be the right one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.foldout import FoldOut, fold_out, reweighted
from mlflow_relabel_audit.analyses.noise.label_curve import weighted_quantile
from mlflow_relabel_audit.analyses.noise.label_transitions import (
    INTERVAL_POWER,
    LabelTransitions,
    fit_label_transitions,
)
from mlflow_relabel_audit.analyses.noise.verdict import NO_NOISE_RATE
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows

ROWS_PER_FEATURE = 10
"""Rows below which, for each feature, a clean model is not well known without evaluation rows."""
CROWDED_POWERS, WIDE_POWERS, BLIND_POWERS = (1.0, 0.1), (1.0, 0.05), (0.1, 0.05)
"""Powers of the likelihood in scores and interval: with few rows a feature; with fewer rows than features, with
evaluation rows and without."""
NORMAL = stats.norm.ppf((np.arange(40) + 0.5) / 40)
"""Points that stand for a normal distribution in the mixture behind the interval."""
LEANING = 0.25
"""Share of the wrong labels in one cell of the transition matrix that is worth a line,"""
LEANING_EVEN = 2.0
"""if it is also so many times an even share."""
LEANING_ROWS = 5.0
"""and so many rows are expected in it."""


@dataclass(frozen=True)
class ClassEvidence:
    """How likely each training label is wrong, and what is right instead.

    Attributes
    ----------
    true_class : ndarray of shape (n, K)
        probability of every class to be the right one.
    wrong : ndarray of shape (n,)
        probability that the given label is not.
    suggested : ndarray of shape (n,)
        code of the likeliest class other than the given label.
    unseen : ndarray of shape (n,)
        probability that models which did not see the row give its label.
    rate : tuple of three floats
        share of wrong labels, with a 95 % interval.
    transitions : LabelTransitions
    out : FoldOut
        outputs out of fold, where there is a second round with suspects weighed down.
    sparing : bool
        where there may be no noise, no more rows are flagged than that verdict has room for: there are more features
        than rows.
    """

    true_class: FloatArray = field(repr=False)
    wrong: FloatArray = field(repr=False)
    suggested: FloatArray = field(repr=False)
    unseen: FloatArray = field(repr=False)
    rate: tuple[float, float, float]
    transitions: LabelTransitions = field(repr=False)
    out: FoldOut = field(repr=False)
    sparing: bool

    @property
    def against(self) -> FloatArray:
        """Less the probability of the label, shape (n,)."""
        return -self.unseen

    def findings(self, problem: Problem, rows: Rows) -> list[Finding]:
        """Which way the errors lean, and what makes the rate uncertain."""
        found = _leaning(problem, rows, self)
        if self.sparing:
            message = (
                f"More features ({rows.coordinates}) than rows ({rows.n}): the outputs' own errors can pass for wrong "
                "labels."
            )
            found.append(Finding("N006", "info", message))
        return found


def class_evidence(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    clean_rows: Rows | None = None,
    *,
    seed: int = 0,
) -> ClassEvidence:
    """Score every training label: outputs out of fold, the transitions, and both again with suspects weighed down.

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    clean_rows : Rows, optional
        evaluation rows with their own labels, which are taken to be right.
    seed : int
        of the deals into folds.
    """
    out = fold_out(problem, rows, point, seed=seed)
    log_probability, transitions = _transitions(problem, rows, out, clean_rows)
    true_class = transitions.true_class(log_probability, rows.y)
    own = np.arange(rows.n), rows.y.astype(np.intp)
    if rows.n >= rows.coordinates:  # with fewer rows than features a second round costs more than it brings
        out = reweighted(problem, rows, point, out, 1.0 - true_class[own], seed=seed)
        log_probability, transitions = _transitions(problem, rows, out, clean_rows)
        true_class = transitions.true_class(log_probability, rows.y)
    others = true_class.copy()
    others[own] = -1.0
    return ClassEvidence(
        true_class,
        np.clip(1.0 - true_class[own], 0.0, 1.0),
        others.argmax(axis=1).astype(np.float64),
        np.exp(log_probability[own]),
        _rate(transitions, log_probability, rows.y, true_class[own]),
        transitions,
        out,
        rows.coordinates > rows.n,
    )


def _transitions(
    problem: Problem, rows: Rows, out: FoldOut, clean_rows: Rows | None
) -> tuple[FloatArray, LabelTransitions]:
    """Out-of-fold log-probabilities of the training rows (n, K), and how the labels follow them."""
    log_probability = _log_probability(problem, out.margin)
    powers = (1.0, INTERVAL_POWER)
    if rows.coordinates > rows.n:
        powers = BLIND_POWERS if clean_rows is None else WIDE_POWERS
    elif clean_rows is None and rows.coordinates * ROWS_PER_FEATURE > rows.n:
        powers = CROWDED_POWERS
    clean_log_probability = clean_label = None
    if clean_rows is not None:
        clean_log_probability, clean_label = _log_probability(problem, clean_rows.margins(out.theta)), clean_rows.y
    return log_probability, fit_label_transitions(log_probability, rows.y, clean_log_probability, clean_label, *powers)


def _log_probability(problem: Problem, outputs: FloatArray) -> FloatArray:
    """Logarithms of the classes' probabilities, shape (n, K), from outputs of shape (n M,)."""
    by_output = np.ascontiguousarray(outputs.reshape(-1, problem.outputs).T)
    return np.asarray(np.log(np.maximum(problem.probabilities(by_output), np.finfo(float).tiny)).T)


def _rate(
    transitions: LabelTransitions, log_probability: FloatArray, label: FloatArray, right: FloatArray
) -> tuple[float, float, float]:
    """Share of wrong labels: posterior mean, and quantiles of the tempered posterior.

    At each typical rate the number of wrong labels spreads as a sum of independent ones does, widened alike.
    """
    share = transitions.mean_wrong(log_probability, label)
    known = np.isfinite(share)
    estimate = float(transitions.weight[known] @ share[known] / transitions.weight[known].sum())
    spread = np.sqrt(float(np.sum(right * (1.0 - right))) / INTERVAL_POWER) / len(label)
    points = np.clip(share[known, None] + spread * NORMAL, 0.0, 1.0).ravel()
    weight = np.repeat(transitions.wide_weight[known], len(NORMAL))
    low, high = (weighted_quantile(points, weight, at) for at in (0.025, 0.975))
    return estimate, min(low, estimate), max(high, estimate)


def _leaning(problem: Problem, rows: Rows, found: ClassEvidence) -> list[Finding]:
    """The pair of classes between which most labels go wrong, where one stands out."""
    if found.rate[1] < NO_NOISE_RATE:
        return []
    expected = expected_transitions(rows, found.true_class)
    np.fill_diagonal(expected, 0.0)
    true, given = (int(at) for at in np.unravel_index(int(expected.argmax()), expected.shape))
    count, share = float(expected[true, given]), float(expected[true, given] / expected.sum())
    if count < LEANING_ROWS or share < max(LEANING, LEANING_EVEN / (expected.size - len(expected))):
        return []
    message = (
        f"The errors lean one way: {share:.0%} of the labels that are probably wrong say {problem.classes[given]!s} "
        f"where {problem.classes[true]!s} is right (an expected {count:.0f} rows)."
    )
    return [Finding("N004", "warning", message)]


def expected_transitions(rows: Rows, true_class: FloatArray) -> FloatArray:
    """Expected number of rows by right class and given label, shape (K, K)."""
    classes = true_class.shape[1]
    given = rows.y[:, None] == np.arange(classes)
    return np.asarray(true_class.T @ given.astype(np.float64))
