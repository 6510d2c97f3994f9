from itertools import permutations as orders

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_relabel_audit.analyses.groups.statistics import (
    excess,
    flip_set_shares,
    holm,
    median_interval,
    permutation_test,
    poisson_binomial_p,
    wilson,
)


def indicator(codes, width):
    matrix = np.zeros((len(codes), width))
    matrix[np.arange(len(codes)), codes] = 1.0
    return sp.csr_array(matrix)


def random_members(rng, predictions, rows, density=0.3):
    return sp.csr_array((rng.random((predictions, rows)) < density).astype(np.float64))


def test_shares_by_hand():
    members = sp.csr_array(np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=float))
    slices = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=float)
    found = flip_set_shares(members, slices, indicator([0, 0, 1, 1], 2), 0.05)
    # The third prediction has no set, so it does not count.
    assert found.share[0] == pytest.approx([(1 + 1 / 3) / 2, (0 + 2 / 3) / 2])
    assert found.pooled[0] == pytest.approx([3 / 5, 2 / 5])
    assert found.usage.toarray()[:, 0] == pytest.approx([1 / 4, 1 / 4 + 1 / 6, 1 / 6, 1 / 6])
    assert found.effective[1] == pytest.approx(1.0)
    assert found.share[1].tolist() == [1.0, 0.0]
    assert found.distinct.tolist() == [[2, 2], [1, 0]]
    assert found.low[1, 1] == 0.0
    assert 0.0 < found.high[1, 1] < 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 20))
def test_shares_of_a_partition(seed, n_predictions, n_rows):
    rng = np.random.default_rng(seed)
    members = random_members(rng, n_predictions, n_rows)
    slices = (rng.random((n_predictions, 3)) < 0.6).astype(float)
    codes = rng.integers(0, 3, n_rows)
    found = flip_set_shares(members, slices, indicator(codes, 3), 0.1)
    sets = np.asarray(members.sum(axis=1)).ravel() > 0
    filled = (slices * sets[:, None]).any(axis=0)
    assert found.share.sum(axis=1) == pytest.approx(filled.astype(float))
    assert found.pooled.sum(axis=1) == pytest.approx(filled.astype(float))
    assert (found.low[filled] <= found.share[filled] + 1e-12).all()
    assert (found.high[filled] >= found.share[filled] - 1e-12).all()
    assert (found.low[filled] >= 0).all()
    assert (found.high[filled] <= 1).all()
    # Order of rows does not matter.
    turn = rng.permutation(n_rows)
    again = flip_set_shares(members[:, turn], slices, indicator(codes[turn], 3), 0.1)
    assert again.low == pytest.approx(found.low, nan_ok=True)
    assert again.share == pytest.approx(found.share)


def test_sets_that_overlap_widen_the_interval():
    """Ten rows in every set, one row of its own in each: the ten decide how far the share can be trusted."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 400)
    apart, same = np.zeros((40, 400)), np.zeros((40, 400))
    for t in range(40):
        apart[t, 10 * t : 10 * t + 10] = 1
        same[t, [*range(10), 100 + t]] = 1
    widths = []
    for members in (apart, same):
        found = flip_set_shares(sp.csr_array(members), np.ones((40, 1)), indicator(codes, 2), 0.05)
        widths.append(found.high[0, 0] - found.low[0, 0])
    assert found.effective[0] == pytest.approx(11, rel=0.15)
    assert widths[1] > 4 * widths[0]


def test_permutations_against_all_of_them():
    """Mean, deviation and both p-values against the 6! deals of six training rows of one label."""
    rng = np.random.default_rng(3)
    members = random_members(rng, 8, 6, 0.4)
    found = flip_set_shares(members, np.ones((8, 1)), indicator([0, 0, 0, 1, 1, 2], 3), 0.05)
    usage = found.usage.toarray()[:, 0]
    dealt = np.array([0, 0, 0, 1, 1, 2])
    every = np.array([indicator(dealt[list(o)], 3).T @ usage for o in orders(range(6))])
    mean, sd = every.mean(axis=0), every.std(axis=0)
    deviation = np.abs(every - mean) / sd
    observed = np.abs(found.share[0] - mean) / sd
    exact = (deviation >= observed - 1e-9).mean(axis=0)
    exact_adjusted = (deviation.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0)
    test = permutation_test(
        found.usage,
        indicator([0, 0, 0, 1, 1, 2], 3),
        np.zeros(6, dtype=np.int64),
        np.ones((1, 3), dtype=bool),
        permutations=4999,
        seed=1,
    )
    assert test.expected[0] == pytest.approx(mean)
    assert test.p_value[0] == pytest.approx(exact, abs=0.025)
    assert test.p_adjusted[0] == pytest.approx(exact_adjusted, abs=0.025)
    assert (test.p_adjusted >= test.p_value - 1e-12).all()


def test_permutations_stay_within_labels():
    """A group that is all of one label, in sets of that label only, is what the labels alone explain."""
    y = np.repeat([0, 1], 50)
    members = np.zeros((30, 100))
    members[:, 50:] = 1.0
    codes = np.where(y == 1, 1, 0)
    found = flip_set_shares(sp.csr_array(members), np.ones((30, 1)), indicator(codes, 2), 0.05)
    assert found.share[0].tolist() == pytest.approx([0.0, 1.0])
    test = permutation_test(found.usage, indicator(codes, 2), y, np.ones((1, 2), dtype=bool), permutations=99, seed=0)
    assert test.expected[0] == pytest.approx([0.0, 1.0])
    assert np.isnan(test.p_value).all()


def test_permutation_blocks_see_the_same_deals(monkeypatch):
    rng = np.random.default_rng(5)
    members = random_members(rng, 60, 200, 0.1)
    slices = (rng.random((60, 6)) < 0.5).astype(float)
    categories = indicator(rng.integers(0, 4, 200), 4)
    found = flip_set_shares(members, slices, categories, 0.05)
    y = rng.integers(0, 2, 200)
    tested = np.ones((6, 4), dtype=bool)
    whole = permutation_test(found.usage, categories, y, tested, permutations=99, seed=2)
    monkeypatch.setattr("mlflow_relabel_audit.analyses.groups.statistics.CHUNK", 1)
    parts = permutation_test(found.usage, categories, y, tested, permutations=99, seed=2)
    np.testing.assert_array_equal(parts.p_adjusted, whole.p_adjusted)
    np.testing.assert_array_equal(parts.p_value, whole.p_value)


def test_median_interval_covers():
    """Chance of the interval holding the true median: never below its level, not far above."""
    for n in (6, 15, 40, 101, 400):
        ordered = np.arange(n, dtype=float)
        _, low, high = median_interval(ordered, 0.05)
        below = stats.binom.cdf(int(low), n, 0.5)  # the median lies below the value of this rank
        above = stats.binom.sf(int(high), n, 0.5)
        assert below + above <= 0.05
        assert stats.binom.cdf(int(low) + 1, n, 0.5) > 0.025
    assert median_interval(np.array([]), 0.05)[0] != median_interval(np.array([]), 0.05)[0]
    assert median_interval(np.array([1.0, np.inf, np.inf]), 0.05) == (np.inf, 1.0, np.inf)
    assert median_interval(np.array([1.0, 2.0, 5.0, 9.0]), 0.05)[0] == 3.5


def test_median_interval_is_the_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 1, 201)
    medians = np.median(rng.choice(values, (4000, 201)), axis=1)
    _, low, high = median_interval(values, 0.05)
    assert stats.percentileofscore(medians, low, "mean") == pytest.approx(2.5, abs=1.5)
    assert stats.percentileofscore(medians, high, "mean") == pytest.approx(97.5, abs=1.5)


def test_holm():
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03]))
    assert adjusted == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_wilson_against_scipy():
    for hits, n in ((0, 10), (3, 10), (10, 10), (40, 1000)):
        exact = stats.binomtest(hits, n).proportion_ci(method="wilson")
        low, high = wilson(hits / n, n, 0.05)
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_excess_by_hand():
    positive = np.array([1.0, 0, 0, 1])
    probability = np.array([0.5, 0.5, 0.5, 0.25])
    found = excess(positive, probability, 8, 0.05)
    residual = np.array([0.5, -0.5, -0.5, 0.75])
    deviation = np.sqrt(((residual**2).mean() - 0.0625**2) * (1 / 4 + 1 / 8))
    assert found.gap == pytest.approx(0.5 - 0.4375)
    assert found.high - found.gap == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert found.p_value == max(2 * stats.norm.sf(0.0625 / deviation), poisson_binomial_p(2, probability))
    # Where the model is less sure than it could be, the binomial variance is the larger.
    sure = excess(np.array([1.0, 0, 1, 0]), np.full(4, 0.5), 8, 0.05)
    assert sure.high == pytest.approx(1.959964 * np.sqrt(0.25 * 3 / 8), rel=1e-6)
    assert np.isnan(excess(positive[:0], probability[:0], 8, 0.05).p_value)
    assert excess(np.ones(3), np.ones(3), 0, 0.05).p_value == 1.0
    assert excess(np.zeros(3), np.ones(3), 0, 0.05).p_value < 1e-12


def test_exact_tail_against_scipy_and_enumeration():
    for n, p, count in ((7, 0.3, 0), (40, 0.02, 4), (1000, 0.4, 430)):
        mass = stats.binom(n, p)
        expected = min(1.0, 2 * min(mass.cdf(count), mass.sf(count - 1)))
        assert poisson_binomial_p(count, np.full(n, p)) == pytest.approx(expected, rel=1e-8)
    p = np.array([0.1, 0.5, 0.9])
    mass = np.convolve(np.convolve([0.9, 0.1], [0.5, 0.5]), [0.1, 0.9])
    for count in range(4):
        tails = mass[: count + 1].sum(), mass[count:].sum()
        assert poisson_binomial_p(count, p) == pytest.approx(min(1, 2 * min(tails)))


@pytest.mark.parametrize(("n", "rate"), [(30, 0.02), (60, 0.95), (500, 0.01)])
def test_excess_keeps_its_level_where_few_are_expected(n, rate):
    """Also far out, where the correction for many groups looks."""
    rng = np.random.default_rng(0)
    probability = np.clip(rng.normal(rate, 0.01, n), 0.005, 0.995)
    drawn = (rng.random((1500, n)) < probability).astype(float)
    p_values = np.array([excess(row, probability, 10**9, 0.05).p_value for row in drawn])
    assert (p_values < 0.05).mean() <= 0.05
    assert (p_values < 0.002).mean() <= 0.005
