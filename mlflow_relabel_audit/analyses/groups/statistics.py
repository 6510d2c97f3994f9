"""Statistics of flip sets by group: shares with intervals, a permutation test, and figures by group.

Flip sets of different predictions overlap: a few hundred influential training rows recur in most of them. A
test that took the memberships for independent draws would find a group in any data. What is random here is
which training rows belong to the group, so the test deals the training rows' groups anew, within their
labels, with the sets held fixed, and the intervals count both the predictions and the training rows as
clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy import stats

from mlflow_relabel_audit.problem import FloatArray, IntArray

EXACT_BELOW = 400.0
"""Variance of a group's number of positives below which the normal approximation is not trusted alone."""

CHUNK = 2**23
"""Entries of the dense block of row weights that is worked on at once in the permutation test."""


@dataclass(frozen=True)
class Shares:
    """Composition of the flip sets of S slices of predictions by C categories of training rows.

    Attributes
    ----------
    share : ndarray of shape (S, C)
        mean over the slice's predictions of the category's share of the flip set.
    pooled : ndarray of shape (S, C)
        the category's share of all memberships together: large sets count more.
    low, high : ndarray of shape (S, C)
        confidence interval of ``share``.
    usage : CSR array of shape (N, S)
        a training row's mean share of a set; a column sums to 1.
    effective : ndarray of shape (S,)
        ``1 / sum_i usage_i**2``: as many rows, used alike, would make the share as uncertain.
    distinct : ndarray of shape (S, C)
        distinct training rows of the category in the slice's sets.
    """

    share: FloatArray
    pooled: FloatArray
    low: FloatArray
    high: FloatArray
    usage: Any
    effective: FloatArray
    distinct: IntArray


@dataclass(frozen=True)
class PermutationTest:
    """What dealing the training rows' categories anew within their labels would give.

    Attributes
    ----------
    expected : ndarray of shape (S, C)
        exact mean of the share: the labels' part of the composition.
    p_value : ndarray of shape (S, C)
        two-sided, of the standardised deviation; NaN where nothing is tested.
    p_adjusted : ndarray of shape (S, C)
        against the largest standardised deviation of all that is tested.
    """

    expected: FloatArray
    p_value: FloatArray
    p_adjusted: FloatArray


def wilson(share: Any, n: Any, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Wilson's interval of a share seen in ``n`` (effective) rows; NaN where ``n`` is 0."""
    share, n = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64)
    z2 = stats.norm.isf(alpha / 2.0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n)
        half = np.sqrt(z2 * (share * (1.0 - share) / n + z2 / (4.0 * n**2))) / (1.0 + z2 / n)
    # At a share of 0 or 1 the end is the share itself; rounding must not put it beyond.
    return np.minimum(np.maximum(centre - half, 0.0), share), np.maximum(np.minimum(centre + half, 1.0), share)


def flip_set_shares(members: Any, slices: Any, categories: Any, alpha: float) -> Shares:
    """Shares of the categories in the slices' flip sets, with intervals.

    The variance is that of two-way clustering (Cameron, Gelbach and Miller 2011): the part from predictions,
    plus the part from training rows, less the part counted twice. It enters Wilson's interval as an effective
    number of rows, so that a share of 0 has an upper end too.

    Parameters
    ----------
    members : CSR array of shape (T, N)
        1 where training row i is in the flip set of prediction t.
    slices : array of shape (T, S), 0/1
    categories : CSR array of shape (N, C), 0/1
    alpha : float
        one minus the level of the interval.
    """
    sizes = np.asarray(members.sum(axis=1), dtype=np.float64).ravel()
    inverse = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    chosen = np.asarray(slices, dtype=np.float64) * (sizes > 0)[:, None]
    n = chosen.sum(axis=0)
    weight = chosen / np.maximum(n, 1.0)
    per_set = sp.csr_array(members.multiply(inverse[:, None]))

    counts = (members @ categories).toarray()
    shares = counts * inverse[:, None]
    share = weight.T @ shares
    pooled = (chosen.T @ counts) / np.maximum(chosen.T @ sizes, 1.0)[:, None]
    usage = sp.csr_array(per_set.T @ sp.csr_array(weight))

    def from_squares(squares: Any) -> FloatArray:
        """``sum_i squares_i (1[i in category] - share)**2``, shape (S, C)."""
        inside, total = (squares.T @ categories).toarray(), np.asarray(squares.sum(axis=0)).ravel()
        return np.asarray(inside * (1.0 - 2.0 * share) + share**2 * total[:, None])

    rows_part = from_squares(usage.power(2))
    twice = from_squares(sp.csr_array(per_set.power(2).T @ sp.csr_array(weight**2)))
    spread = np.maximum(weight.T @ shares**2 - share**2, 0.0)
    sets_part = spread / np.maximum(n - 1.0, 1.0)[:, None]
    variance = np.maximum(rows_part + sets_part - twice, np.maximum(rows_part, sets_part))

    square_sum = np.asarray(usage.power(2).sum(axis=0)).ravel()
    effective = np.divide(1.0, square_sum, out=np.zeros_like(square_sum), where=square_sum > 0)
    binomial = share * (1.0 - share)
    inner = (binomial > 1e-12) & (variance > 0.0)
    rows = np.divide(binomial, variance, out=np.repeat(effective[:, None], share.shape[1], axis=1), where=inner)
    low, high = wilson(share, rows, alpha)
    used = usage.copy()
    used.data = np.ones_like(used.data)
    distinct = (used.T @ categories).toarray().astype(np.int64)
    return Shares(share, pooled, low, high, usage, effective, distinct)


def permutation_test(
    usage: Any, categories: Any, labels: IntArray, tested: Any, *, permutations: int, seed: int
) -> PermutationTest:
    """Deal the training rows' categories anew within their labels; compare the shares with what comes of it.

    The adjusted p-value is Westfall and Young's single-step one: the share of permutations whose largest
    standardised deviation, over everything tested, reaches the observed. Shares of nested and crossed groups
    in overlapping slices are nearly the same figure many times over; Holm's and Benjamini and Hochberg's
    corrections would pay for each of them, and need permutations in proportion.

    Parameters
    ----------
    usage : CSR array of shape (N, S)
        see `Shares`.
    categories : CSR array of shape (N, C)
    labels : ndarray of shape (N,)
        strata, small non-negative integers.
    tested : ndarray of shape (S, C), bool
        which shares to test.
    permutations, seed : int
    """
    n_slices, n_categories = usage.shape[1], categories.shape[1]
    expected, variance = np.zeros((n_slices, n_categories)), np.zeros((n_slices, n_categories))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rate = np.asarray(categories[rows].sum(axis=0)).ravel() / len(rows)
        part = usage[rows]
        total, square = np.asarray(part.sum(axis=0)).ravel(), np.asarray(part.power(2).sum(axis=0)).ravel()
        spread = np.maximum(square - total**2 / len(rows), 0.0) * len(rows) / max(len(rows) - 1, 1)
        expected += np.outer(total, rate)
        variance += np.outer(spread, rate * (1.0 - rate))
    tested = tested & (variance > 1e-20)
    scale = np.where(tested, np.sqrt(np.maximum(variance, 1e-20)), np.inf)
    observed = np.abs((usage.T @ categories).toarray() - expected) / scale

    codes, representatives = _patterns(categories)
    to_categories = sp.csr_array(categories[representatives].T)
    support = np.flatnonzero(np.diff(usage.indptr))
    strata = [(np.flatnonzero(labels == v), np.flatnonzero(labels[support] == v)) for v in np.unique(labels)]
    largest = np.zeros(permutations)
    reached = np.zeros((n_slices, n_categories), dtype=np.int64)
    columns = np.flatnonzero(tested.any(axis=1))
    width = max(1, CHUNK // max(len(support), 1))
    for start in range(0, len(columns), width):
        part = columns[start : start + width]
        weights = usage[support][:, part].toarray()
        rng = np.random.default_rng(seed)  # every block sees the same deals: their maximum is a joint one
        drawn = np.empty(len(support), dtype=codes.dtype)
        for b in range(permutations):
            for everyone, used in strata:
                drawn[used] = codes[everyone[rng.choice(len(everyone), len(used), replace=False)]]
            shape = (len(representatives), len(support))
            dealt = sp.csc_array((np.ones(len(drawn)), drawn, np.arange(len(drawn) + 1)), shape=shape)
            shares = (to_categories @ (dealt @ weights)).T
            deviation = np.abs(shares - expected[part]) / scale[part]
            # Equal shares reached by sums in another order must count as reached.
            reached[part] += deviation >= observed[part] - 1e-9
            largest[b] = max(largest[b], deviation.max(initial=0.0))
    above = permutations - np.searchsorted(np.sort(largest), observed - 1e-9, side="left")
    p_value = np.where(tested, (1.0 + reached) / (permutations + 1.0), np.nan)
    p_adjusted = np.where(tested, (1.0 + above) / (permutations + 1.0), np.nan)
    return PermutationTest(expected, p_value, p_adjusted)


def _patterns(categories: Any) -> tuple[IntArray, IntArray]:
    """Number the distinct rows of a sparse 0/1 matrix; return every row's number and one row of each."""
    rng = np.random.default_rng(0)
    # Sums of random integers, in int64: two distinct rows share one with probability 2^-50.
    key = categories.astype(np.int64) @ rng.integers(1, 2**52, size=categories.shape[1])
    _, first, codes = np.unique(np.asarray(key).ravel(), return_index=True, return_inverse=True)
    return codes.ravel().astype(np.int64), first


def median_interval(values: FloatArray, alpha: float) -> tuple[float, float, float]:
    """Median with its order-statistic interval, which the percentile bootstrap of a median converges to.

    The bootstrap median falls below the r-th smallest value with a binomial probability, so no resampling is
    needed. ``inf`` is a value like others; NaN throughout where there are none.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    lower = int(stats.binom.ppf(alpha / 2.0, n, 0.5))
    if stats.binom.cdf(lower, n, 0.5) > alpha / 2.0:
        lower -= 1
    lower = max(lower, 0)
    middle = ordered[(n - 1) // 2] / 2.0 + ordered[n // 2] / 2.0
    return float(middle), float(ordered[lower]), float(ordered[n - 1 - lower])


def holm(p_values: FloatArray) -> FloatArray:
    """Holm's adjusted p-values; NaN stays NaN and is not counted."""
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else []
    return adjusted


@dataclass(frozen=True)
class Excess:
    """How far a group's outcomes are from the model's probabilities.

    ``gap`` is the share of positive labels less the mean probability: above 0 the model misses positives
    (false negatives in excess), below 0 it sees too many. ``low`` and ``high`` bound it; ``p_value`` is
    two-sided.
    """

    gap: float
    low: float
    high: float
    p_value: float


def excess(positive: FloatArray, probability: FloatArray, n_train: int, alpha: float) -> Excess:
    """Test the model's probabilities in one group against the group's evaluation labels.

    A logistic regression that knows the group, and was trained on labels drawn as the evaluation labels were,
    predicts the group's rate up to the noise of both samples, whatever its features: similar rows may lean on
    each other without this figure moving. Labels that were changed in training move it. The variance is the
    evaluation labels' and, scaled by the sizes, the training labels'; that of a label is what the
    probabilities say, or what the residuals show where the model fits the group worse than it thinks. Where
    few positives or negatives are expected, the p-value is at least the exact one of the evaluation labels.
    """
    n = len(positive)
    if n == 0:
        return Excess(float("nan"), float("nan"), float("nan"), float("nan"))
    residual = positive - probability
    gap = float(np.mean(residual))
    spread = max(float(np.mean(probability * (1.0 - probability))), float(np.var(residual)))
    deviation = float(np.sqrt(spread * (1.0 / n + (1.0 / n_train if n_train else 0.0))))
    half = float(stats.norm.isf(alpha / 2.0)) * deviation
    p_value = float(2.0 * stats.norm.sf(abs(gap) / deviation)) if deviation > 0 else float(gap == 0.0)
    if n * spread < EXACT_BELOW:
        p_value = max(p_value, poisson_binomial_p(int(positive.sum()), probability))
    return Excess(gap, gap - half, gap + half, p_value)


def poisson_binomial_p(count: int, probability: FloatArray) -> float:
    """Two-sided p-value of ``count`` successes in independent trials: twice the smaller tail.

    The distribution is the product of the trials' generating polynomials, multiplied in pairs by FFT; its
    error is about 1e-15 absolute.
    """
    factors = np.stack([1.0 - probability, probability], axis=1)
    while len(factors) > 1:
        if len(factors) % 2:
            one = np.zeros((1, factors.shape[1]))
            one[0, 0] = 1.0
            factors = np.concatenate([factors, one])
        size = 2 * factors.shape[1] - 1
        turned = np.fft.rfft(factors, n=size, axis=1)
        factors = np.fft.irfft(turned[0::2] * turned[1::2], n=size, axis=1)
    mass = np.clip(factors[0], 0.0, None)
    return float(min(1.0, 2.0 * min(mass[: count + 1].sum(), mass[count:].sum())))
