"""What a search answers for one prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.problem import FloatArray, IntArray

VERIFIED, UNVERIFIED, NOT_FLIPPABLE = "verified", "unverified", "not_flippable"


@dataclass(frozen=True)
class FlipSet:
    """The outcome of the search for one prediction.

    Attributes
    ----------
    change : Relabelling
        the training rows to relabel, most influential first, and their new labels; empty where nothing was verified.
    influence : ndarray of shape (k,)
        first-order move of the margin toward the flip by each, at the fitted point.
    status : str
        ``"verified"``: the refit at k flips the prediction and at k - 1 does not, both proved;
        ``"not_flippable"``: relabelling every row that pulls toward the flip is proved not to flip it;
        ``"unverified"``: not proved within the iterations allowed.
    margin_after : float
        margin of the prediction after the refit at k, NaN where there is none.
    theta : ndarray of shape (p,) or None
        coefficients near the refit at k, where they were asked for.
    """

    change: Relabelling
    influence: FloatArray
    status: str
    margin_after: float
    theta: FloatArray | None = field(default=None, repr=False)

    @property
    def index(self) -> IntArray:
        """The training rows, shape (k,)."""
        return self.change.index

    @property
    def k(self) -> int:
        """Size of the set, 0 where there is none."""
        return len(self.change)

    @classmethod
    def empty(cls, status: str) -> FlipSet:
        """No set."""
        return cls(Relabelling.none(), np.zeros(0), status, np.nan)
