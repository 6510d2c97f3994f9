"""Labels that go wrong in one region of the features, which held-out likelihood cannot tell from what is true there.

Where many labels of one region are wrong, learners that follow regions predict them well and so speak for them. The
region shows in another way: labels there disagree with what an additive model expects (the audited kind of model and
boosted stumps, with the rates at which each class is written as the other) more often than its probabilities allow.
So a forest learns the excess from the features,

    excess = [the label is the less likely one] - P(less likely label),

and is asked about rows that it did not see. With q the probability of the less likely label, an excess e is what a
share rho = e / (1 - 2 q) of wrong labels makes of it; a label of probability p is then wrong with the odds

    rho / (1 - rho) (1 - p) / p.

A model of the wrong form leaves an excess, too. Two things are known of wrong labels, though. Wrong less than half of
the time, they never turn a region over: where the less likely label is the usual one, the form is at fault. And there
is nothing more to learn of the region than how many they are: where learners that follow regions gain much more, of
held-out likelihood, than the additive model does from its excess, they have learned a form. Short of that it may still
be either. Hence the region shares the ranking with the plain margins against the labels, and has a say only as far as
the forest predicts the excess of rows that it did not see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestRegressor

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.learners import LEAF_ROWS, grow
from mlflow_relabel_audit.problem import FloatArray

CHANCE, CERTAIN = 1.5, 2.5
"""Standard errors by which the excess of unseen rows is predicted better than by its mean: up to the first the region
has no say, from the second on the whole. Chance exceeds the first one time in fifteen."""
DISPUTED, TURNED = 0.45, 0.5
"""Share of less likely labels in the region up to which it has its full say, and from which it has none."""
REGIONAL, OF_FORM = 2.0, 2.5
"""Gain of learners that follow regions over the gain from the excess, up to which a region has its full say, and from
which it has none."""
REGION = 0.1
"""Share of the rows, those of most excess, of which that is measured."""
LEAST_RATE, MOST_RATE = 0.005, 0.49
LEAST_SURENESS, LEAST_PROBABILITY = 0.05, 0.002


@dataclass(frozen=True)
class Region:
    """A region of the features in which labels disagree with an additive model more often than it expects.

    Attributes
    ----------
    say : float
        its share in the ranking, from 0 to 1.
    place : ndarray of shape (n,)
        place of each row among the suspects if labels of the region are wrong, 1 to n; the largest is the most suspect.
    disagreeing, expected : float
        share of less likely labels among the tenth of the rows of most excess, and the share that was expected there.
    """

    say: float
    place: FloatArray = field(repr=False)
    disagreeing: float
    expected: float

    def finding(self) -> Finding:
        """That there is one (N011)."""
        message = (
            f"Labels disagree in one region: among the tenth of the rows where the features foretell it, "
            f"{self.disagreeing:.0%} have the less likely label, where {self.expected:.0%} were expected. Labels there "
            "are wrong, or the model does not fit there; the ranking takes both into account."
        )
        return Finding("N011", "info", message)


def disputed_region(
    table: FloatArray,
    expected: FloatArray,
    against: FloatArray,
    label: FloatArray,
    weight: FloatArray,
    learnt: float,
    *,
    seed: int = 0,
) -> Region | None:
    """Find a region of disagreement; None where the features foretell none, or the model's form is at fault.

    Parameters
    ----------
    table : ndarray of shape (n, features)
    expected : ndarray of shape (n,)
        probability that the label is given as 1, by an additive model that did not see the row.
    against : ndarray of shape (n,)
        how far the audited kind of model speaks against each label.
    label : ndarray of shape (n,)
        0 or 1.
    weight : ndarray of shape (n,)
        of the rows; those of weight 0 teach nothing.
    learnt : float
        log-loss a row by which learners that follow regions better the additive model.
    seed : int
        of the forest.
    """
    less = np.clip(np.minimum(expected, 1.0 - expected), LEAST_PROBABILITY, 0.5)
    unlikely = (expected > 0.5) != (label > 0.5)
    heard = weight > 0
    residual = unlikely - less
    residual = residual - residual[heard].mean()
    excess = _learnt(table, residual, weight, seed)
    gain = residual[heard] ** 2 - (residual[heard] - np.maximum(excess[heard], 0.0)) ** 2
    score = gain.mean() / max(float(gain.std()) / np.sqrt(len(gain)), np.finfo(np.float64).tiny)
    most = heard & (excess >= np.quantile(excess[heard], 1.0 - REGION))
    disagreeing = float(unlikely[most].mean())
    say = 1.0 - _falling(float(score), CHANCE, CERTAIN)
    say *= _falling(disagreeing, DISPUTED, TURNED)
    say *= _falling(learnt / _softened(less[heard], unlikely[heard], excess[heard]), REGIONAL, OF_FORM)
    if say <= 0.0:
        return None
    rate = np.clip(excess / np.maximum(1.0 - 2.0 * less, LEAST_SURENESS), LEAST_RATE, MOST_RATE)
    log_odds = np.log1p(-less) - np.log(less)
    wrong = np.log(rate) - np.log1p(-rate) + np.where(unlikely, log_odds, -log_odds)
    place = 0.5 * (rankdata(wrong) + rankdata(against))
    return Region(say, place, disagreeing, float(less[most].mean()))


def _softened(less: FloatArray, unlikely: Any, excess: FloatArray) -> float:
    """Log-loss a row that an additive model gains where it is less sure by the excess, though never turned over."""
    more = np.maximum(excess, 0.0)
    soft = np.clip(less + more - more.mean(), LEAST_PROBABILITY, 0.5)
    gain = np.where(unlikely, np.log(soft / less), np.log((1.0 - soft) / (1.0 - less)))
    return max(float(gain.mean()), float(np.finfo(np.float64).tiny))


def _falling(value: float, full: float, none: float) -> float:
    """1 up to the first bound, 0 from the second on."""
    return float(np.clip((none - value) / (none - full), 0.0, 1.0))


def _learnt(table: FloatArray, residual: FloatArray, weight: FloatArray, seed: int) -> FloatArray:
    """Residuals as the trees of a forest that did not see the row foretell them, shape (n,)."""
    heard = weight > 0
    forest = grow(RandomForestRegressor, table[heard], residual[heard], weight[heard], LEAF_ROWS, seed=seed)
    out = np.empty(len(residual))
    out[heard] = forest.oob_prediction_
    if not heard.all():
        out[~heard] = forest.predict(table[~heard])
    return out
