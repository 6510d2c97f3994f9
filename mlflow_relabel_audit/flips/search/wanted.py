"""The smallest verified set found that makes one class of several the prediction.

To overtake the class predicted now is not enough: another one may lead by then. The prefix of the predicted class's
order at which the wanted class overtakes it is searched first. Where it does not lead all others there, prefixes of
three orders are searched on: that one's, that of the class then in the lead, and that of the mean of the two; the
smallest set wins. Whether the wanted class leads is proved by refits, at k, and that it does not at k - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.flips.certificate.plain import plain_lower_bounds
from mlflow_relabel_audit.flips.order.asked import Asked
from mlflow_relabel_audit.flips.order.influence import EstimateBlock, decided_heads, order_block
from mlflow_relabel_audit.flips.order.ranking import InfluenceOrder, longer_order
from mlflow_relabel_audit.flips.refit.exact import converged
from mlflow_relabel_audit.flips.search.bracket import FARTHEST
from mlflow_relabel_audit.flips.search.flip_set import NOT_FLIPPABLE, UNVERIFIED, VERIFIED, FlipSet
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.likelihood import FloatArray
from mlflow_relabel_audit.problem import Problem
from mlflow_relabel_audit.rows import Rows


@dataclass(frozen=True)
class WantedSet:
    """What makes a class the prediction.

    Attributes
    ----------
    flip : FlipSet
        its influences are those of the order it is a prefix of.
    k_lower : int
        no fewer labels make the wanted class lead, proved.
    k_estimate : int
        labels whose summed influence lets it overtake the predicted class; 0 where even all of them do not.
    """

    flip: FlipSet
    k_lower: int
    k_estimate: int


def rivals(problem: Problem, evaluation: Rows, point: StationaryPoint, want: int) -> Asked:
    """The margins of every other class over the wanted one in the first evaluation row, the predicted class first."""
    row, outputs = evaluation.columns(np.array([0]))[:, 0], problem.outputs
    scores = point.theta.reshape(outputs, -1) @ row
    others = np.argsort(-scores, kind="stable")
    others = others[others != want]
    targets = np.zeros((outputs, len(row), len(others)))
    targets[others, :, np.arange(len(others))] = row
    targets[want] = -row[:, None]
    same = np.zeros(len(others), dtype=np.intp)
    return Asked(
        owner=same,
        predicted=others,
        wanted=same + want,
        targets=targets.reshape(-1, len(others)),
        margin=scores[others] - scores[want],
        probability=np.full(len(others), problem.probabilities(scores)[others[0]]),
        toward=np.full(len(others), -1.0),
    )


def search_wanted(searcher: VerifiedSearch, evaluation: Rows, want: int, row_norms: FloatArray) -> WantedSet:
    """Search the set that makes ``want`` the prediction of the first evaluation row.

    Parameters
    ----------
    searcher : VerifiedSearch
        of a model of more than two classes.
    evaluation : Rows
    want : int
        code of a class that is not predicted now.
    row_norms : ndarray of shape (n M,)
        ``||x_i||_{H^-1}`` of every row and output, or upper bounds.
    """
    problem, rows, point, effect = searcher.problem, searcher.rows, searcher.point, searcher.effect
    asked = rivals(problem, evaluation, point, want)
    block = order_block(rows, point, effect, problem, asked)
    ahead = np.flatnonzero(block.margin > 0)  # each has to be overtaken, so the largest bound holds
    lower = int(plain_lower_bounds(block.only(ahead), effect, row_norms).max(initial=1))
    estimate = block.orders[0].k_estimate
    first = searcher.run(block.only(np.array([0])))[0]
    if first.status != VERIFIED:
        return WantedSet(first, lower, estimate)
    path = _Path(searcher, block, 0)
    margins, errors = path.standing(first.k)
    if np.all(margins + errors < 0):
        return WantedSet(first, lower, estimate)
    leader = int(np.argmax(margins))
    both = _mean(asked, leader)
    joint = order_block(rows, point, effect, problem, both)
    found = path.shortest(first.k - 1 if np.any(margins - errors > 0) else 0)
    for other in (_Path(searcher, block, leader), _Path(searcher, block, 0, joint)):
        shorter = other.shortest(0, found.k if found.status == VERIFIED else None)
        if shorter.status == VERIFIED or (found.status == NOT_FLIPPABLE and shorter.status == UNVERIFIED):
            found = shorter
    return WantedSet(found, lower, estimate)


def _mean(asked: Asked, rival: int) -> Asked:
    """One margin, the mean of the predicted class's and a rival's."""
    first = asked.only(np.array([0]))
    targets = 0.5 * (asked.targets[:, [0]] + asked.targets[:, [rival]])
    margin = 0.5 * (asked.margin[[0]] + asked.margin[[rival]])
    return Asked(first.owner, first.predicted, first.wanted, targets, margin, first.probability, first.toward)


class _Path:
    """Prefixes of one order, and how every class stands against the wanted one after their refits.

    Parameters
    ----------
    searcher : VerifiedSearch
    block : EstimateBlock
        of the rivals' margins.
    rival : int
        whose order it is.
    along : EstimateBlock, optional
        of the order, where it is none of the block's own.
    """

    def __init__(
        self, searcher: VerifiedSearch, block: EstimateBlock, rival: int, along: EstimateBlock | None = None
    ) -> None:
        self._searcher, self._block = searcher, block
        self._along = block if along is None else along
        self._rival = rival
        self._reach = searcher.effect.rounding_reach(np.sqrt(searcher.rows.square_norms()))
        (self._order,) = decided_heads(searcher.rows, searcher.effect, self._along, np.array([rival]), self._reach)
        self._known: dict[int, tuple[FloatArray, FloatArray]] = {}

    def _upto(self, k: int) -> InfluenceOrder:
        """The order, at least k long where there are so many."""
        while len(self._order.change) < k and not self._order.complete:
            t, along = self._rival, self._along
            self._order = longer_order(
                self._searcher.rows, self._searcher.effect, along.direction[:, t], float(along.toward[t]), self._order,
                self._reach,
            )  # fmt: skip
        return self._order

    def standing(self, k: int) -> tuple[FloatArray, FloatArray]:
        """Margins of all others over the wanted class with k labels changed, and bounds of their errors."""
        if k not in self._known:
            searcher, block = self._searcher, self._block
            change = self._upto(k).change.first(k)
            try:
                refits = converged(searcher.refits(1), block.targets[:, :1], block.direction[:, :1], [change])
            except SingularHessianError:  # too many labels of one class: no finite minimiser there
                self._known[k] = block.margin, np.full(len(block.margin), np.inf)
            else:
                theta, radius, solve = refits[0]
                norms = np.sqrt(np.maximum(np.einsum("ij,ij->j", block.targets, solve(block.targets)), 0.0))
                self._known[k] = theta @ block.targets, norms * radius
        return self._known[k]

    def shortest(self, low: int, upper: int | None = None) -> FlipSet:
        """The set at a crossing: with k labels the wanted class leads, with k - 1 it does not, both proved.

        ``low`` labels are known not to be enough, ``upper`` to be; with ``upper`` only smaller sets are looked for.
        """
        high, k = None, low
        at_low, at_high = float(self._block.margin.max()) if not low else float(self.standing(low)[0].max()), np.nan
        before = 0, float(self._block.margin.max())
        if upper is not None:
            k = upper - 1
            if k < 1 or len(self._upto(k).change) < k or not self._leads(k):
                return FlipSet.empty(UNVERIFIED)
            high, at_high = k, float(self.standing(k)[0].max())
        while high is None or high > low + 1:
            if high is None:
                slope = (before[1] - at_low) / (low - before[0]) if low > before[0] else 0.0
                step = at_low / slope if slope > 0 else 1.0
                k = low + int(np.clip(np.ceil(step), 1, FARTHEST * low + 1))
                k = min(k, len(self._upto(k).change))
                if k <= low:
                    return FlipSet.empty(NOT_FLIPPABLE)
            else:
                share = at_low / (at_low - at_high)
                k = int(np.clip(low + round(share * (high - low)), low + 1, high - 1))
                if len(self._known) % 3 == 0:
                    k = (low + high) // 2
            leads = self._leads(k)
            if leads is None:
                return FlipSet.empty(UNVERIFIED)
            worst = float(self.standing(k)[0].max())
            if leads:
                high, at_high = k, worst
            else:
                before, low, at_low = (low, at_low), k, worst
        order = self._upto(high)
        after = float(self.standing(high)[0][0])
        return FlipSet(order.change.first(high), order.influence[:high], VERIFIED, after)

    def _leads(self, k: int) -> bool | None:
        """Whether the wanted class leads with k labels changed; None where it is not proved."""
        margins, errors = self.standing(k)
        if np.all(margins + errors < 0):
            return True
        return False if np.any(margins - errors > 0) else None
