"""Which margins are asked about: of every prediction of two classes one, of K classes one for each other class."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.problem import Problem
from mlflow_relabel_audit.rows import Rows

VECTORS = ("owner", "predicted", "wanted", "margin", "probability", "toward")


@dataclass(frozen=True)
class Asked:
    """Margins of some evaluation rows, and where they have to move for the prediction to change.

    Attributes
    ----------
    owner : ndarray of shape (B,), int
        the evaluation row of each margin, ascending.
    predicted, wanted : ndarray of shape (B,), int
        codes of the predicted class and of the one that is to overtake it.
    targets : ndarray of shape (p, B)
        the margin is their product with theta, less the cut: ``x_t`` with two classes, ``x_t (x) (e_a - e_b)`` for
        the predicted class a and the wanted b of more.
    margin : ndarray of shape (B,)
    probability : ndarray of shape (B,)
        of the positive class of two, of the predicted one of more.
    toward : ndarray of shape (B,)
        +1 where the margin has to rise for the flip, -1 where it has to fall.
    """

    owner: IntArray
    predicted: IntArray
    wanted: IntArray
    targets: FloatArray = field(repr=False)
    margin: FloatArray
    probability: FloatArray
    toward: FloatArray

    def only(self, chosen: IntArray) -> Asked:
        """Some of them."""
        own = {name: getattr(self, name)[chosen] for name in VECTORS}
        return Asked(**own, targets=self.targets[:, chosen])

    @classmethod
    def joined(cls, parts: list[Asked]) -> Asked:
        """Those of blocks that follow one another."""
        all_of = {name: np.concatenate([getattr(part, name) for part in parts]) for name in VECTORS}
        return cls(**all_of, targets=np.concatenate([part.targets for part in parts], axis=1))


def ask(
    problem: Problem, evaluation: Rows, point: StationaryPoint, start: int, stop: int, want: int | None = None
) -> Asked:
    """Ask about the evaluation rows ``start:stop``.

    Parameters
    ----------
    problem, evaluation, point
    start, stop : int
    want : int, optional
        only about this class; rows that are predicted to be of it are left out.
    """
    rows, outputs = evaluation.columns(np.arange(start, stop)), evaluation.outputs
    if outputs == 1:
        margin = (point.theta[:, None] * rows).sum(axis=0) - problem.cut  # the same whatever shares the block
        positive = margin > 0
        wanted, toward = np.where(positive, 0, 1), np.where(positive, -1.0, 1.0)
        probability = problem.likelihood.probability(margin + problem.cut)
        found = Asked(np.arange(start, stop), 1 - wanted, wanted, rows, margin, probability, toward)
        return found if want is None else found.only(np.flatnonzero(found.wanted == want))
    theta = point.theta.reshape(outputs, -1, 1)
    scores = (theta * rows).sum(axis=1)
    predicted = scores.argmax(axis=0)
    owner, wanted = np.divmod(np.arange(rows.shape[1] * outputs), outputs)
    kept = wanted != predicted[owner] if want is None else (wanted == want) & (predicted[owner] != want)
    owner, wanted = owner[kept], wanted[kept]
    ours, place = predicted[owner], np.arange(len(owner))
    targets = np.zeros((outputs, len(rows), len(owner)))
    targets[ours, :, place] = rows[:, owner].T
    targets[wanted, :, place] = -rows[:, owner].T
    margin = scores[ours, owner] - scores[wanted, owner]
    probability = problem.probabilities(scores)[ours, owner]
    falls = np.full(len(owner), -1.0)
    return Asked(owner + start, ours, wanted, targets.reshape(-1, len(owner)), margin, probability, falls)
