"""What is proved of one prediction's sizes k, and which k to look at next."""

from __future__ import annotations

import numpy as np

from mlflow_relabel_audit.flips.order.ranking import InfluenceOrder
from mlflow_relabel_audit.flips.search.flip_set import VERIFIED, FlipSet
from mlflow_relabel_audit.problem import FloatArray

FARTHEST = 3
"""A secant may reach at most to about this many times the present k."""


class Bracket:
    """One prediction on its way.

    Attributes
    ----------
    t : int
        the prediction.
    order : InfluenceOrder
        whose prefixes are tried; ``total`` sums its influences.
    low, high, k : int
        the largest size proved not to flip, the smallest proved to (None as yet), the size now refitted.
    descents, aims, refreshes : int
        iterations so far, changes of k since a sign was proved, own references taken.
    cap : int or None
        a size beyond which no finite minimiser was found.
    """

    def __init__(
        self, t: int, order: InfluenceOrder, margin: float, toward: float, upper: int | None, patience: int,
        of_block: bool,
    ) -> None:  # fmt: skip
        self.of_block = of_block
        self.t, self.toward, self.distance = t, toward, abs(margin)
        self.low, self.high, self.k = 0, upper, 0
        self.low_left, self.looks = self.distance, 0
        self.descents = self.aims = self.refreshes = 0
        self.patience = patience
        self.abandoned = False
        self.cap: int | None = None
        self.margin_after = np.nan
        self.theta: FloatArray | None = None
        self.take(order)

    def take(self, order: InfluenceOrder) -> None:
        """Go on with a longer order."""
        self.order = order
        self.total = np.cumsum(order.influence)

    @property
    def reach(self) -> int:
        """The largest k there is."""
        reach = len(self.order.change)
        if self.high is not None:
            reach = self.high - 1 if self.grows else min(self.high - 1, reach)
        return reach if self.cap is None else min(reach, self.cap)

    @property
    def grows(self) -> bool:
        """Whether there is more of the order to be had."""
        return self.of_block and not self.order.complete

    def aim(self, margin: float) -> int:
        """The k at which the refitted margin would cross zero: linear in the cumulative influence.

        Between the present k and the bracket's other end where there is one, else beyond the present k by the
        slope since the lower end. Every third step inside a bracket halves it.
        """
        left, here = -self.toward * margin, self._spent(self.k)
        if left < 0:
            anchor, there = self.low_left, self._spent(self.low)
        elif self.high is not None and np.isfinite(self.margin_after):
            anchor, there = -self.toward * self.margin_after, self._spent(self.high)
        else:
            anchor, there = self.low_left, self._spent(self.low)
            if self.k == self.low:
                anchor, there = self.distance, 0.0
        slope = (anchor - left) / (here - there) if here != there else 1.0
        goal = here + left / min(max(slope, 0.02), 20.0)
        k = int(self.total.searchsorted(goal, side="right")) + 1
        if self.k:
            k = min(k, FARTHEST * self.k + FARTHEST)
        if self.high is not None:
            self.looks += 1
            if self.looks % 3 == 0:
                k = (self.low + self.high + 1) // 2
        return k

    def _spent(self, k: int) -> float:
        return float(self.total[k - 1]) if k else 0.0

    def settle(self, margin: float, theta: FloatArray) -> None:
        """Record a proved sign at the present k."""
        if self.toward * margin > 0:
            self.high, self.margin_after, self.theta = self.k, float(margin), theta
        else:
            self.low, self.low_left = self.k, abs(float(margin))
        self.aims = 0

    @property
    def closed(self) -> bool:
        """Whether k flips and k - 1 does not."""
        return self.high is not None and self.high == self.low + 1

    def outcome(self, status: str, keep_theta: bool) -> FlipSet:
        """What is answered."""
        k = self.high if status == VERIFIED and self.high is not None else 0
        theta = self.theta if keep_theta and k else None
        return FlipSet(
            self.order.change.first(k), self.order.influence[:k], status, self.margin_after if k else np.nan, theta
        )
