"""How learners are heard together: stacks of them, and an order of rows that no one stack decides.

A stack weighs the log-odds of several learners by the logistic regression of labels on them, by learners that did not
see the row, so that its weights are chosen by held-out likelihood. Where there are evaluation rows, whose labels are
right, they choose nearly alone: a learner that follows wrong labels of the training rows then loses its weight.

Without them held-out likelihood cannot tell labels that are wrong in one region from what is true of that region: the
stack that follows them wins. So the ranking is not left to the likeliest stack. Each one has its own curve and its own
order of the rows; a row's place is the mean of its places in all of them, each weighed by what it explains of the
labels, which bounds what one of them can spoil.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit.problem import FloatArray

MIN_GAIN = 3.0
"""Nats of log-likelihood that another learner must gain: less may be chance."""
TRAINING_ROWS = 200.0
"""Rows that all training rows together count for beside evaluation rows, in the weights of a stack."""
LARGEST_LOG_ODDS = 30.0


@dataclass(frozen=True)
class Stack:
    """Learners heard together.

    Attributes
    ----------
    margin : ndarray of shape (n,)
        log-odds of the labels.
    heard : tuple of str
        the learners with a weight.
    loss : float
        log-loss a row.
    """

    margin: FloatArray = field(repr=False)
    heard: tuple[str, ...]
    loss: float


def stacked(voices: Mapping[str, FloatArray], label: FloatArray, weight: FloatArray) -> Stack:
    """Weigh log-odds by how they predict labels together; what would get a weight below 0 is left out.

    Parameters
    ----------
    voices : mapping of str to ndarray of shape (n,)
        log-odds of every row by learners that did not see it.
    label : ndarray of shape (n,)
        0 or 1.
    weight : ndarray of shape (n,)
        of the rows.
    """
    names = list(voices)
    table = np.stack([np.clip(voices[name], -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS) for name in names], axis=1)
    table = table / np.maximum(table.std(axis=0), np.finfo(np.float64).tiny)
    while True:
        fit = LogisticRegression().fit(table, label > 0.5, sample_weight=weight)
        if len(names) == 1 or fit.coef_.min() >= 0:
            break
        worst = int(fit.coef_[0].argmin())
        table = np.delete(table, worst, axis=1)
        del names[worst]
    margin = np.asarray(fit.decision_function(table))
    loss = float(np.average(np.logaddexp(0.0, margin) - label * margin, weights=weight))
    return Stack(margin, tuple(names), loss)


def committee(
    first: Mapping[str, FloatArray], others: Mapping[str, FloatArray], label: FloatArray, weight: FloatArray
) -> tuple[tuple[Stack, ...], float]:
    """The stack of the first voices, then one more for every further learner that predicts labels better.

    Beside them the log-loss a row of the first voice alone.

    Parameters
    ----------
    first : mapping of str to ndarray of shape (n,)
        voices of every stack; the first of them alone, as it is, where the rest of them add nothing.
    others : mapping of str to ndarray of shape (n,)
        learners that join in turn.
    label, weight : ndarray of shape (n,)
        labels, 0 or 1, and weights of the rows.
    """

    def gains(stack: Stack, than: Stack) -> bool:
        return (than.loss - stack.loss) * float(weight.sum()) >= MIN_GAIN

    name, margin = next(iter(first.items()))
    alone = stacked({name: margin}, label, weight)
    begin = stacked(first, label, weight)
    if len(first) == 1 or not gains(begin, alone):
        begin, first = Stack(margin, alone.heard, alone.loss), {name: margin}
    found, voices = [begin], dict(first)
    for name, margin in others.items():
        stack = stacked({**voices, name: margin}, label, weight)
        if name in stack.heard and gains(stack, found[-1]):
            found.append(stack)
            voices[name] = margin
    return tuple(found), alone.loss


def say_of_stacks(training: int, trust: FloatArray) -> FloatArray:
    """Weights of training rows and then of evaluation rows in the fit of a stack, shape (n,).

    Parameters
    ----------
    training : int
        rows whose labels may be wrong; the others' are right.
    trust : ndarray of shape (n,)
        weights of the rows in training.
    """
    out = trust / max(float(trust.mean()), np.finfo(np.float64).tiny)
    if training < len(trust):
        out[:training] *= min(1.0, TRAINING_ROWS / training)
    return np.asarray(out)


def standing(losses: Sequence[float], label: FloatArray, weight: FloatArray) -> FloatArray:
    """What each stack explains of the labels, over what the best one explains; shape (stacks,), from 0 to 1.

    Parameters
    ----------
    losses : sequence of float
        log-loss a row of each stack.
    label, weight : ndarray of shape (n,)
        labels, 0 or 1, and weights of the rows.
    """
    share = float(np.average(label, weights=weight))
    nothing = -share * np.log(share) - (1.0 - share) * np.log1p(-share)
    explained = np.maximum(nothing - np.asarray(losses), np.finfo(np.float64).tiny)
    return np.asarray(explained / explained.max())


def agreed(wrong: Sequence[FloatArray], places: Sequence[FloatArray], standings: FloatArray) -> FloatArray:
    """Probabilities that labels are wrong, of several stacks as one, shape (n,).

    The sorted means of the probabilities are dealt out in the order of the rows' mean place: so a stack that doubts
    many labels does not drown the others.

    Parameters
    ----------
    wrong : sequence of ndarray of shape (n,)
        probability that each label is wrong, by each stack.
    places : sequence of ndarray of shape (n,)
        place of each row among the suspects, by each stack; the largest is the most suspect.
    standings : ndarray of shape (stacks,)
        weights of the stacks' places.
    """
    # rounded, so that rows of the same places stay equal
    place = rankdata(np.round(standings @ np.stack(places), 6)) - 1.0
    return np.asarray(np.interp(place, np.arange(len(place)), np.sort(np.mean(wrong, axis=0))))
