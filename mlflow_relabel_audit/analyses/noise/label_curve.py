"""The label curve: how given labels follow the out-of-fold margin when some of them are wrong.

    P(given 1 | z) = r0 + (1 - r0 - r1) sigma(a + b z)

r0 is the probability that a true 0 is written as 1, r1 that a true 1 is written as 0; a and b > 0 undo a
shift and over- or under-confidence of the margin. The curve is fitted on a grid of (r0, r1) and averaged over
it: its likelihood has two modes where rates are barely identified, and a maximum would jump between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray

RATES = np.linspace(np.sqrt(0.0005), np.sqrt(0.45), 30) ** 2
MAX_TOTAL_RATE = 0.9
BINS = 150
TIE_WIDTHS = (0.1, 0.8)
"""Before any evidence the two rates are as likely nearly equal as not: half the prior of the difference of
their logits is normal with the first standard deviation, half with the second."""
INTERVAL_POWER = 0.1
"""The likelihood is raised to this power for the interval: z is an estimate and the curve is a model."""
CERTAIN, CERTAIN_SHARE = 0.95, 0.02
"""Probability of a class from which a row is certain, and the share of rows that tells the rate of a class."""
FISHER_STEPS = 25
KNOTS = 2048
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class LabelCurve:
    """The curve fitted at G grid points, and their weights.

    Attributes
    ----------
    rate0, rate1 : ndarray of shape (G,)
        P(a 0 is written as 1), P(a 1 is written as 0).
    shift, slope : ndarray of shape (G,)
        a and b of the clean curve sigma(a + b z).
    weight : ndarray of shape (G,)
        posterior weights, summing to 1.
    wide_weight : ndarray of shape (G,)
        the same with a tempered likelihood, for intervals.
    """

    rate0: FloatArray = field(repr=False)
    rate1: FloatArray = field(repr=False)
    shift: FloatArray = field(repr=False)
    slope: FloatArray = field(repr=False)
    weight: FloatArray = field(repr=False)
    wide_weight: FloatArray = field(repr=False)

    def probability_wrong(self, margin: FloatArray, label: FloatArray) -> FloatArray:
        """P(the given label is wrong), shape (n,), for margins and 0/1 labels of shape (n,)."""
        out = np.empty(len(margin))
        keep = self.weight > NEGLIGIBLE
        for value in (0.0, 1.0):
            rows = label == value
            if rows.any():
                knots = _knots(margin[rows])
                wrong = self._wrong_at(knots, value, keep)
                out[rows] = np.interp(margin[rows], knots, self.weight[keep] @ wrong / self.weight[keep].sum())
        return np.clip(out, 0.0, 1.0)  # an average of ones may round to more

    def probability_given(self, margin: FloatArray) -> FloatArray:
        """P(the label is given as 1), right or wrong, shape (n,)."""
        keep, knots = self.weight > NEGLIGIBLE, _knots(margin)
        clean = sigmoid(self.shift[keep][:, None] + self.slope[keep][:, None] * knots)
        given = self.rate0[keep][:, None] + (1.0 - self.rate0 - self.rate1)[keep][:, None] * clean
        return np.interp(margin, knots, self.weight[keep] @ given / self.weight[keep].sum())

    def places(self, margin: FloatArray, label: FloatArray, *, told: bool = False) -> FloatArray:
        """Places of the rows by how suspect their labels are, shape (n,); the largest is the most suspect.

        How often a class is written as the other can be read off rows that are certainly of that class, and is
        guesswork where there are hardly any: a margin that never is certain looks the same as a class of which many
        labels are wrong. So the fewer rows are certain of the class that seems the dirtier, the more the
        order is that of the margins against the labels, alike for both classes; unless evaluation rows have
        ``told`` the rates.
        """
        against = rankdata(np.where(label > 0.5, -margin, margin))
        dirtier = float(self.weight @ (self.rate0 > self.rate1))
        clean = sigmoid(float(self.weight @ self.shift) + float(self.weight @ self.slope) * margin)
        certain = float(np.mean(clean < 1.0 - CERTAIN if dirtier > 0.5 else clean > CERTAIN))
        trusted = 1.0 if told else min(1.0, certain / CERTAIN_SHARE)
        return np.asarray((1.0 - trusted) * against + trusted * rankdata(self.probability_wrong(margin, label)))

    def mean_wrong(self, margin: FloatArray, label: FloatArray) -> FloatArray:
        """Share of wrong labels that each grid point implies, shape (G,); NaN where it weighs nothing."""
        keep = np.maximum(self.weight, self.wide_weight) > NEGLIGIBLE
        total = np.zeros(int(keep.sum()))
        for value in (0.0, 1.0):
            rows = label == value
            if rows.any():
                centre, count = _bins(margin[rows], 4 * BINS)
                total += self._wrong_at(centre, value, keep) @ count
        out = np.full(len(keep), np.nan)
        out[keep] = total / len(margin)
        return out

    def _wrong_at(self, margin: FloatArray, label: float, keep: Any) -> FloatArray:
        """P(wrong) at margins (M,) of rows with one label, under each kept grid point, shape (G', M)."""
        rate0, rate1 = self.rate0[keep], self.rate1[keep]
        sign, odds = (-1.0, rate0 / (1.0 - rate1)) if label > 0.5 else (1.0, rate1 / (1.0 - rate0))
        offset = np.log(odds) + sign * self.shift[keep]
        return sigmoid(offset[:, None] + sign * self.slope[keep][:, None] * margin)


def fit_label_curve(
    margin: FloatArray,
    label: FloatArray,
    clean_margin: FloatArray | None = None,
    clean_label: FloatArray | None = None,
    power: float = 1.0,
    interval_power: float = INTERVAL_POWER,
) -> LabelCurve:
    """Fit the curve at every pair of rates and weigh the pairs.

    Parameters
    ----------
    margin, label : ndarray of shape (n,)
        out-of-fold margins and given 0/1 labels of the training rows.
    clean_margin, clean_label : ndarray of shape (m,), optional
        margins and labels of evaluation rows, whose labels are taken to be right.
    power, interval_power : float
        powers of the likelihood in ``weight`` and in ``wide_weight``: below 1 where it is not to be trusted.
    """
    rate0, rate1 = (grid.ravel() for grid in np.meshgrid(RATES, RATES, indexing="ij"))
    keep = rate0 + rate1 < MAX_TOTAL_RATE
    rate0, rate1 = rate0[keep], rate1[keep]
    # margins are put on a unit scale, so that one prior and one step bound fit every model
    scale = float(np.std(margin)) or 1.0
    given = _Counts.of(margin / scale, label)
    clean = None
    if clean_margin is not None and clean_label is not None and len(clean_margin):
        clean = _Counts.of(clean_margin / scale, clean_label)
    loglik, shift, slope = _fisher(given, clean, rate0, rate1, np.log(scale))
    square = (_logit(rate0) - _logit(rate1)) ** 2
    prior = np.logaddexp(*(-square / (2.0 * width**2) - np.log(width) for width in TIE_WIDTHS))
    weight, wide = _normalised(power * loglik + prior), _normalised(interval_power * loglik + prior)
    return LabelCurve(rate0, rate1, shift, slope / scale, weight, wide)


def blended(curve: LabelCurve, other: LabelCurve) -> LabelCurve:
    """The first curve, its weights averaged with those of another on the same grid of rates."""
    return replace(
        curve,
        weight=0.5 * (curve.weight + other.weight),
        wide_weight=0.5 * (curve.wide_weight + other.wide_weight),
    )


@dataclass(frozen=True)
class _Counts:
    """Rows of each label in bins of the margin: centres (M,), ones (M,), zeros (M,)."""

    centre: FloatArray
    ones: FloatArray
    zeros: FloatArray

    @classmethod
    def of(cls, margin: FloatArray, label: FloatArray) -> _Counts:
        order = np.argsort(margin, kind="stable")
        parts = np.array_split(order, min(BINS, len(order)))
        centre = np.array([margin[part].mean() for part in parts])
        ones = np.array([label[part].sum() for part in parts])
        return cls(centre, ones, np.array([len(part) for part in parts]) - ones)

    def loglik(self, curve: FloatArray) -> FloatArray:
        return np.log(curve) @ self.ones + np.log1p(-curve) @ self.zeros


def _fisher(
    given: _Counts, clean: _Counts | None, rate0: FloatArray, rate1: FloatArray, log_scale: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Log-likelihood, a and b of every grid point, by Fisher scoring in (a, log b) with halved steps.

    ``log b`` has a standard normal prior on the margin's own scale, hence ``log_scale``.
    """
    base, gain = rate0[:, None], (1.0 - rate0 - rate1)[:, None]
    shift, log_slope = np.zeros(len(rate0)), np.full(len(rate0), log_scale)
    sources = [(given, base, gain)]
    if clean is not None:
        sources.append((clean, np.zeros_like(base), np.ones_like(gain)))

    def curve_at(a: FloatArray, log_b: FloatArray, counts: _Counts) -> FloatArray:
        inner = sigmoid(a[:, None] + np.exp(log_b)[:, None] * counts.centre)
        return np.clip(inner, 1e-12, 1.0 - 1e-12)

    def value(a: FloatArray, log_b: FloatArray) -> tuple[FloatArray, FloatArray]:
        fit = np.zeros(len(a))
        for counts, floor, rise in sources:
            fit += counts.loglik(floor + rise * curve_at(a, log_b, counts))
        return fit, fit - 0.5 * (log_b - log_scale) ** 2

    fit, best = value(shift, log_slope)
    length = np.ones(len(rate0))
    for _ in range(FISHER_STEPS):
        score = np.zeros((2, len(rate0)))
        score[1] = -(log_slope - log_scale)
        info_aa, info_ab, info_bb = np.full(len(rate0), 1e-9), np.zeros(len(rate0)), np.ones(len(rate0))
        slope = np.exp(log_slope)[:, None]
        for counts, floor, rise in sources:
            inner = curve_at(shift, log_slope, counts)
            curve = floor + rise * inner
            by_a = rise * inner * (1.0 - inner)
            spread = curve * (1.0 - curve)
            residual = (counts.ones - (counts.ones + counts.zeros) * curve) / spread * by_a
            mass = (counts.ones + counts.zeros) / spread * by_a**2
            lever = slope * counts.centre
            score[0] += residual.sum(axis=1)
            score[1] += (residual * lever).sum(axis=1)
            info_aa += mass.sum(axis=1)
            info_ab += (mass * lever).sum(axis=1)
            info_bb += (mass * lever**2).sum(axis=1)
        determinant = np.maximum(info_aa * info_bb - info_ab**2, 1e-12)
        move_a = np.clip((info_bb * score[0] - info_ab * score[1]) / determinant, -2.0, 2.0)
        move_b = np.clip((info_aa * score[1] - info_ab * score[0]) / determinant, -0.7, 0.7)
        trial_fit, trial = value(shift + length * move_a, log_slope + length * move_b)
        better = trial > best
        shift = np.where(better, shift + length * move_a, shift)
        log_slope = np.where(better, log_slope + length * move_b, log_slope)
        gained = np.where(better, trial - best, 0.0)
        fit, best = np.where(better, trial_fit, fit), np.where(better, trial, best)
        length = np.where(better, np.minimum(1.0, 2.0 * length), 0.5 * length)
        if not np.any((gained > 1e-6) | (~better & (length > 0.01))):
            break
    return best, shift, np.exp(log_slope)


def _logit(rate: FloatArray) -> FloatArray:
    return np.asarray(np.log(rate) - np.log1p(-rate))


def _normalised(log_weight: FloatArray) -> FloatArray:
    weight = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / weight.sum())


def _knots(margin: FloatArray) -> FloatArray:
    """Every distinct margin, or quantiles of them where there are many; the curve is smooth between."""
    distinct = np.unique(margin)
    if len(distinct) <= KNOTS:
        return distinct
    return np.asarray(distinct[np.linspace(0, len(distinct) - 1, KNOTS).round().astype(np.int64)])


def _bins(margin: FloatArray, bins: int) -> tuple[FloatArray, FloatArray]:
    """Means and sizes of equal-count bins."""
    parts = np.array_split(np.sort(margin), min(bins, len(margin)))
    return np.array([part.mean() for part in parts]), np.array([float(len(part)) for part in parts])


def weighted_quantile(value: FloatArray, weight: FloatArray, share: float) -> float:
    """Value below which ``share`` of the weight lies."""
    order = np.argsort(value)
    reached = np.cumsum(weight[order])
    return float(value[order][np.searchsorted(reached, share * reached[-1]).clip(max=len(value) - 1)])
